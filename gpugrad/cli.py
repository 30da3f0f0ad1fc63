"""The command line: `gpugrad train | search | evaluate | sample | plan | bench | doctor`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import secrets
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from . import _startup, backend, live, malloc, processes, threads
from .cuda import emulation
from .cuda.source import shipped
from .flags import make_parser
from .fused import _attention_sm90
from .generate import log_probability
from .models.scoring import perplexity
from .train import checkpoint, evaluation, plan, search, session, space
from .train.config import FIELDS, nearest, resolve, usual_folder
from .train.config_file import read_config_file
from .train.devices import device
from .train.folder import RunFolder
from .train.loop import DivergedError
from .train.sampling import beam_text, load_model, opening, sample_text

# What a wrong flag, file or machine raises; while training, an error is a bug and shows its trace.
_MISTAKES = (ValueError, TypeError, OSError, RuntimeError, ImportError)

_LESS_MEMORY = (
    "The last checkpoint is sound. Less memory is needed by a new run with a smaller --batch-size "
    "(and as many times more --accumulate, which gives the same gradients), and by this one, "
    "resumed, with --recompute block, --head-chunk 256 or --no-async-save."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: it could not be done; standard error says why. 2: the command line is wrong.
    128 + n: stopped by signal n (130: Ctrl-C), after saving.
    """
    return _interruptible(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    try:
        for module in (backend, emulation, malloc, processes, threads, _attention_sm90):
            module.asked()
    except ValueError as error:  # of a variable of the environment
        print(f"gpugrad: {error}", file=sys.stderr)
        return 1
    if arguments and arguments[0] == "bench":
        return _bench(arguments[1:])
    runs = {
        "train": _train,
        "search": _search,
        "evaluate": _evaluate,
        "sample": _sample,
        "plan": _plan,
        "bench": lambda given: _bench([]),
        "doctor": _doctor,
    }
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no error
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    parser = make_parser(runs)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = (*vars(given), *(FIELDS if given.command in ("train", "search", "plan") else ()))
        near = nearest(unknown[0], [f"--{name.replace('_', '-')}" for name in names])
        given.parser.error(f"unrecognized argument {unknown[0]}{near}")
    return given.run(given)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what is half done is cleared away as after Ctrl-C."""


def _interruptible(run: Callable[[], int]) -> int:
    try:
        with _short_warnings(), _terminable():
            _startup.done()
            status = run()
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except _Terminated:
        print("terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except MemoryError as error:
        print(f"gpugrad: {live.explained(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        if error.filename is not None:  # of a file, not of what is printed
            raise
        out = sys.__stdout__
        if out is not None and out is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if isinstance(error, BrokenPipeError):  # `gpugrad sample ... | head`
            return 128 + signal.SIGPIPE
        print(f"gpugrad: what is printed cannot be written: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise _Terminated, unless the process ignores it or handles it otherwise."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise _Terminated

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _train(given: argparse.Namespace) -> int:
    if given.resume and given.overwrite:
        given.parser.error("--resume and --overwrite exclude each other")
    flags = {name: value for name, value in vars(given).items() if name in FIELDS}
    with contextlib.ExitStack() as stack:
        try:
            file = read_config_file(given.config) if given.config else {}
            changes = {**file, **flags}
            usual = usual_folder(changes.get("preset", "default"), changes.get("init_from", ""))
            out = changes.get("out") or usual
            if given.resume == "always" or (given.resume and RunFolder(out).holds_run):
                run = stack.enter_context(session.go_on(out, changes))
            else:
                run = stack.enter_context(session.begin(resolve(flags, file), given.overwrite))
        except _MISTAKES as error:
            return _refuse("train", error)
        try:
            stopped = run.train()
        except MemoryError as error:
            return _refuse("train", f"{live.explained(error)}\n{_LESS_MEMORY}")
        except DivergedError as error:
            found = checkpoint.steps(run.folder.checkpoints)
            back = f"; --resume goes back to step {found[-1]}" if found else ""
            return _refuse("train", f"{error}{back}. A lower --lr may help")
        except BrokenPipeError:  # an OSError, but no mistake
            raise
        except OSError as error:  # a full disk, say
            out = shlex.quote(run.config.out)
            return _refuse(
                "train", f"{error}; that mended, go on with:\n  gpugrad train --resume --out {out}"
            )
    return 128 + stopped if stopped else 0


def _search(given: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(given).items() if name in FIELDS}
    try:
        settings = {**(read_config_file(given.config) if given.config else {}), **flags}
        found = search.Search(settings.pop("out"), _trials(given), settings)
        done = len(found.ranking)
        print(
            f"search    {len(found.trials)} trials in {found.path}" + f", {done} done" * (done > 0)
        )
        stopped = found.run(lambda trial: print(f"{trial.name}  {_outcome(trial)}", flush=True))
    except BrokenPipeError:  # an OSError, but no mistake
        raise
    except _MISTAKES as error:
        return _refuse("search", error)
    if stopped:
        print(f"Stopped by {stopped.name}; saved. The same command goes on.")
        return 128 + stopped
    print(f"\n{found.table()}\n")
    best = found.best
    if best is None:
        return _refuse("search", "no trial came to an end")
    out = shlex.quote(best.config.out)
    print(f"best      {best.name}: {_outcome(best)}")
    print(f"files     {found.results}, {best.config.out}")
    print(f'next      gpugrad sample {out} --best --prompt "..."')
    if best.config.test_fraction:
        print(f"test      gpugrad evaluate {out} --best --split test    (once, at the very end)")
    return 0


def _trials(given: argparse.Namespace) -> list[space.Settings]:
    """Return the trials that the flags of a search ask for."""
    if bool(given.grid) == bool(given.random):
        raise ValueError("give --grid NAME=VALUE,... or --random NAME=SPACE, one of the two kinds")
    if given.grid and (given.trials, given.search_seed) != (None, None):
        raise ValueError("--trials and --search-seed belong to --random; a grid has no choice")
    texts = given.grid or given.random
    chosen: dict[str, Any] = dict(space.parse(text, bool(given.random)) for text in texts)
    if len(chosen) < len(texts):
        raise ValueError(f"a setting is given twice: {' '.join(texts)}")
    if given.grid:
        return space.grid(chosen)
    trials = 10 if given.trials is None else given.trials
    return space.draw(chosen, trials, given.search_seed or 0)


def _outcome(trial: search.Trial) -> str:
    settings = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.settings.items()
    )
    if trial.loss is None:
        return f"{settings}: {trial.status}"
    return f"{settings}: dev loss {trial.loss:.4f} after step {trial.step}"


def _evaluate(given: argparse.Namespace) -> int:
    try:
        found = evaluation.evaluate(
            given.folder, given.split, given.device, given.best, given.again
        )
    except _MISTAKES as error:
        return _refuse("evaluate", error)
    print(
        f"{found.split} loss {found.loss:.4f} nats per token, perplexity "
        f"{perplexity(found.loss):.3f}, on {found.tokens:,} tokens after step {found.step}"
        + ("" if found.fresh else "; as it was found before")
    )
    return 0


def _plan(given: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(given).items() if name in FIELDS}
    try:
        config = resolve(flags, read_config_file(given.config) if given.config else {})
        found = plan.plan(config, device(given.gpu) if given.gpu else plan.default_device())
    except _MISTAKES as error:
        return _refuse("plan", error)
    if config.freeze or config.lora_rank:
        warnings.warn("this plan trains all parameters; with fewer a step needs less", stacklevel=1)
    print(found.to_text())
    unfit = plan.verdict(found)
    return _refuse("plan", unfit) if unfit else 0


def _sample(given: argparse.Namespace) -> int:
    drawn = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "greedy", "seed")
    written = (*drawn, "beams", "stop", "max_new_tokens")
    changed = [n for n in written if getattr(given, n) != given.parser.get_default(n)]
    if given.score is not None and changed:
        given.parser.error(f"--score writes nothing: leave out --{changed[0].replace('_', '-')}")
    changed = [n for n in changed if n in drawn]
    if given.beams is not None and changed:
        given.parser.error(f"--beams draws nothing: leave out --{changed[0].replace('_', '-')}")
    try:
        model, tokenizer = load_model(given.folder, given.device, given.best)
        prompt = tokenizer.encode(given.prompt or "")
        if not len(prompt):
            prompt = opening(tokenizer)
        if given.score is not None:
            text = tokenizer.encode(given.score)
            found = log_probability(model, text, prompt, use_cache=given.cache)
            print(
                f"log-probability {found.total:.4f} nats, {found.bits_per(len(given.score)):.4f} "
                f"bits per character, perplexity {found.perplexity:.4f} per token ({len(text)})"
            )
            return 0
        model_text = (model, tokenizer, prompt, given.max_new_tokens)
        common: dict[str, Any] = {"stop": given.stop, "use_cache": given.cache}
        pieces: Iterable[str]
        if given.beams is not None:
            pieces = [beam_text(*model_text, num_beams=given.beams, **common)]
        else:
            pieces = sample_text(
                *model_text,
                temperature=given.temperature or 1.0,
                top_k=given.top_k,
                top_p=given.top_p,
                min_p=given.min_p,
                repetition_penalty=given.repetition_penalty,
                greedy=given.greedy or not given.temperature,
                seed=secrets.randbits(64) if given.seed is None else given.seed,
                **common,
            )
    except _MISTAKES as error:
        return _refuse("sample", error)
    print(given.prompt or "", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _bench(arguments: Sequence[str]) -> int:
    """Run benchmarks/bench.py, which has a command line of its own."""
    try:
        sys.path.insert(0, str(shipped("benchmarks")))
        return importlib.import_module("bench").main(arguments, prog="gpugrad bench")
    except _MISTAKES as error:
        return _refuse("bench", error)


def _doctor(given: argparse.Namespace) -> int:
    name = "gpugrad.doctor.determinism" if given.determinism else "gpugrad.doctor"
    report = importlib.import_module(name).examine()  # which nothing else needs
    print(report.to_json() if given.json else report.to_text())
    return 0 if report.works else 1


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Show warnings without the line of code they come from."""

    def show(message: Warning | str, *arguments: Any, **named: Any) -> None:
        print(f"gpugrad: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _refuse(command: str, reason: object) -> int:
    print(f"gpugrad {command}: {reason}", file=sys.stderr)
    return 1
