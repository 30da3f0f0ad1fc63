"""Model selection: a run for each of some combinations of settings, the best by dev loss.

    found = Search("runs/search", grid({"n_layer": [2, 3], "lr": [1e-2, 1e-3]}), {"preset": "tiny"})
    found.run()
    print(found.table())
    found.best.config.out                # the folder of the best run

Each trial is a run in a folder of its own, `trial-001`, .... What is known of them stands in
`search.json`, sorted by loss in `results.csv`. Calling it again goes on: trials that ended are not
repeated, one that was stopped or killed is resumed bit for bit. The test part of the text is not
looked at: see ``evaluation``.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..text import atomic_write
from ..text.files import parse_json, read_small
from . import session
from .config import TrainConfig, resolve
from .folder import RunFolder
from .loop import DivergedError
from .progress import duration
from .seal import is_intact, sealed
from .space import Settings

FORMAT = "gpugrad-search"
VERSION = 2
# A loss with one value of these says nothing about the loss with another.
_INCOMPARABLE = (
    "data",
    "max_chars",
    "tokenizer",
    "vocab_size",
    "train_fraction",
    "test_fraction",
    "eval_windows",
)
_REFUSED = "refused: "  # the status of a trial that is tried again, with other settings perhaps
_MACHINE = ("device", "threads", "compile", "png")  # may differ when a search goes on


def _is_outcome(saved: Any) -> bool:
    """Return whether a trial in search.json is as Search writes it."""
    match saved:
        case {
            "settings": dict(),
            "status": str(),
            "loss": float() | None,
            "step": int() | None,
            "parameters": int() | None,
            "seconds": float() | None,
        }:
            return True
    return False


@dataclasses.dataclass
class Trial:
    """One combination of settings and what came of it.

    status: "" before it ended, "done", "diverged", "out of memory", or "refused: " and what its run
    says against beginning. loss: the best dev loss, in nats per token, after ``step`` updates; None
    unless it is done. seconds: spent in updates.
    """

    settings: Settings
    config: TrainConfig
    status: str = ""
    loss: float | None = None
    step: int | None = None
    parameters: int | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return Path(self.config.out).name

    def run(self) -> signal.Signals | None:
        """Train to the end, or to the signal that is returned; what is printed goes to log.txt."""
        out, folder = self.config.out, RunFolder(self.config.out)
        changes = {name: getattr(self.config, name) for name in _MACHINE}
        begun = folder.holds_run
        self.status = ""
        try:
            with contextlib.ExitStack() as stack:
                opened = session.go_on(out, changes) if begun else session.begin(self.config)
                try:
                    run = stack.enter_context(opened)
                except (ValueError, FileNotFoundError) as error:
                    if begun:
                        raise
                    self.status = f"{_REFUSED}{error}"
                    return None
                log = stack.enter_context(open(folder.log, "a", encoding="utf-8"))
                with contextlib.redirect_stdout(log):
                    stopped = run.train()
                trainer = run.trainer
        except DivergedError:
            self.status = "diverged"
        except MemoryError:  # CuPy's is one
            self.status = "out of memory"
        else:
            if stopped:
                return stopped
            best = trainer.patience
            self.status, self.loss, self.step = "done", best.best, best.best_step
            self.parameters, self.seconds = trainer.parameters, round(trainer.seconds, 3)
        return None


class Search:
    """The trials of a search in their folder: see the module.

    trials: the settings of each, as ``grid`` and ``draw`` return them. settings: those that all
    share, as ``resolve`` takes them. Unless they say otherwise, half of what is not trained on is
    left for a test.

    Raises ValueError for settings that cannot be, before anything runs, and when the folder holds
    another search, trials apart that were refused; FileExistsError when it holds something else.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        trials: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(out)
        self._file = self.path / "search.json"
        self.results = self.path / "results.csv"
        if not trials:
            raise ValueError("Search: trials is empty, there is nothing to try")
        self.names = list(trials[0])
        if any(list(trial) != self.names for trial in trials):
            raise ValueError(f"Search: each trial must set {', '.join(self.names)}, in this order")
        if "out" in self.names:
            raise ValueError("Search: out is no setting to search over, each trial has its own")
        shared = {**(settings or {}), "out": str(self.path)}
        if "test_fraction" not in shared:
            # what a trial sets may matter: without it the shared settings may contradict each other
            fraction = resolve({**shared, **trials[0]}).train_fraction
            shared["test_fraction"] = round((1 - fraction) / 2, 9)
        if any({**shared, **trial}.get("data") == "-" for trial in trials):
            raise ValueError("Search: each trial reads its data, standard input can be read once")
        self.settings = shared
        self.trials = [
            Trial(
                dict(chosen),
                resolve({**shared, **chosen, "out": str(self.path / f"trial-{number:03d}")}),
            )
            for number, chosen in enumerate(trials, start=1)
        ]
        for name in _INCOMPARABLE:
            values = {getattr(trial.config, name) for trial in self.trials}
            if len(values) > 1 and {name, "preset"} & {*self.names}:
                message = f"losses of trials with different {name} do not compare"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        if RunFolder(self.path).holds_run:
            raise FileExistsError(f"{self.path} holds a run; choose another folder with --out")
        self._read()

    def run(self, report: Callable[[Trial], None] = lambda trial: None) -> signal.Signals | None:
        """Run the trials that have not ended, calling report after each.

        Returns the signal that stopped it, if one did; a trial that diverges, does not fit into
        memory or cannot begin is only noted; one that could not begin is tried again. Raises
        RuntimeError when another process runs this search.
        """
        with RunFolder(self.path).locked():
            self._read()
            self._write()
            for trial in self.trials:
                if trial.status and not trial.status.startswith(_REFUSED):
                    continue
                stopped = trial.run()
                if stopped:
                    return stopped
                self._write()
                report(trial)
        return None

    @property
    def ranking(self) -> list[Trial]:
        """The trials that ended, the best first, those without a loss last."""
        ended = [trial for trial in self.trials if trial.status]
        return sorted(ended, key=lambda t: (t.loss is None, t.loss if t.loss is not None else 0.0))

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest dev loss; of equals the first. None when none has a loss."""
        return next((trial for trial in self.ranking if trial.loss is not None), None)

    def table(self) -> str:
        """Return the trials that ended as text, sorted by dev loss."""
        rows = [["trial", *self.names, "dev loss", "step", "parameters", "time", "status"]]
        for trial in self.ranking:
            rows.append(
                [
                    trial.name,
                    *(_shown(trial.settings[name]) for name in self.names),
                    "-" if trial.loss is None else f"{trial.loss:.4f}",
                    "-" if trial.step is None else str(trial.step),
                    "-" if trial.parameters is None else f"{trial.parameters:,}",
                    "-" if trial.seconds is None else duration(trial.seconds),
                    trial.status,
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def _description(self) -> dict[str, Any]:
        settings = {k: v for k, v in self.settings.items() if k not in (*_MACHINE, "out")}
        outcomes = ("settings", "status", "loss", "step", "parameters", "seconds")
        trials = [{name: getattr(trial, name) for name in outcomes} for trial in self.trials]
        return {"format": FORMAT, "version": VERSION, "settings": settings, "trials": trials}

    def _read(self) -> None:
        """Take over what search.json knows; raise ValueError when it tells of another search."""
        if not self._file.exists():
            return
        try:
            data = read_small(self._file)
            found = parse_json(data)
        except ValueError as error:
            raise ValueError(f"{self._file} is not JSON: {error}") from error
        match found:
            case {"format": "gpugrad-search", "version": 2, "settings": dict(), "trials": list()}:
                if not is_intact(found, data):
                    raise ValueError(f"{self._file} was altered: its SHA-256 is another")
            case _:
                raise ValueError(f"{self._file} does not describe a search of this gpugrad")
        own = self._description()
        elsewhere = "choose another folder with --out"
        for name in sorted({*found["settings"], *own["settings"]}):
            old, new = found["settings"].get(name), own["settings"].get(name)
            if old != new:
                raise ValueError(
                    f"{self.path} holds a search with {name} = {old!r}, not {new!r} (None: not "
                    f"given); {elsewhere}"
                )
        if not all(map(_is_outcome, found["trials"])):
            raise ValueError(f"{self._file} is damaged: not every trial in it is one")
        begun = [not saved["status"].startswith(_REFUSED) for saved in found["trials"]]
        if any(begun[len(self.trials) :]):
            raise ValueError(f"{self.path} holds {len(begun)} trials; {elsewhere}")
        for trial, saved, kept in zip(self.trials, found["trials"], begun, strict=False):
            if not kept:
                continue
            if trial.settings != saved["settings"]:
                raise ValueError(
                    f"{self.path} holds another search: {trial.name} has {saved['settings']}, not "
                    f"{trial.settings}; {elsewhere}"
                )
            for name in ("status", "loss", "step", "parameters", "seconds"):
                setattr(trial, name, saved[name])

    def _write(self) -> None:
        with atomic_write(self._file) as file:
            file.write(sealed(self._description()))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = ("loss", "step", "parameters", "seconds", "status")
        writer.writerow(["trial", *self.names, "dev_loss", *columns[1:]])
        for trial in self.ranking:
            chosen = [trial.settings[name] for name in self.names]
            writer.writerow([trial.name, *chosen, *(getattr(trial, name) for name in columns)])
        with atomic_write(self.results) as file:
            file.write(text.getvalue().encode())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
