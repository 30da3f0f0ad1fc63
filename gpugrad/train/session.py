"""A whole training run, as `gpugrad train` does it: from settings to a folder with its results."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import cuda
from ..cuda import emulation
from ..text import atomic_write
from ..threads import set_num_threads
from . import checkpoint, curve
from .config import TrainConfig, resumed
from .data import baselines, open_data, read_corpus, store
from .folder import RunFolder
from .initial import Source, read_source, start
from .interrupt import Stopped, StopSignals
from .loop import DivergedError, Trainer, find_device
from .metrics import append_metrics, keep_metrics, read_metrics, sync_metrics
from .progress import Progress, duration
from .sampling import opening, sample_text
from .saving import Saver
from .speed import device_name

SAMPLE_TEMPERATURE = 0.8
_MOST_POINTS = 500  # of a drawn curve; neighbours on a longer one are averaged


@contextmanager
def begin(config: TrainConfig, overwrite: bool = False) -> Iterator[Session]:
    """Start a run: read the text, make the folder, and yield what is ready to train.

    What is wrong leaves no new folder, and a run that was to be overwritten as it was. Raises
    FileExistsError when the folder holds a run, unless `overwrite`.
    """
    folder = RunFolder(config.out)
    folder.check(overwrite)
    _prepare_machine(config)
    source = read_source(config)
    corpus = read_corpus(config)
    with folder.locked():
        with folder.replaced(overwrite) as new:
            new.write_config(config.to_dict())
            store(corpus, new)
            session = Session(config, new, source)
            append_metrics(new.metrics, kind="baseline", step=0, **session.baselines)
        session.folder = folder
        yield session


@contextmanager
def go_on(path: str, changes: Mapping[str, Any]) -> Iterator[Session]:
    """Open a run at its newest sound checkpoint, with some of its settings changed.

    Raises FileNotFoundError when there is no run, ValueError for a setting that cannot change and
    for fewer steps than are done: the run stays as it is.
    """
    folder = RunFolder(path)
    config = resumed(folder.read_config(), {**changes, "out": path})
    _prepare_machine(config)
    with folder.locked():
        begun = bool(checkpoint.steps(folder.checkpoints))
        if not begun and not folder.tokens.exists():  # killed before it had read its text
            store(read_corpus(config), folder)
        session = Session(config, folder, None if begun else read_source(config))
        trainer = session.trainer
        if begun:
            trainer.load_state_dict(folder.latest().state)
            if trainer.step > config.max_steps:
                raise ValueError(
                    f"max_steps must be at least {trainer.step}, as many steps as this run has "
                    f"done, got {config.max_steps}"
                )
            session.saved = trainer.step, trainer.evaluated
            for aside in checkpoint.set_aside(folder.checkpoints, after=trainer.step):
                print(f"damaged   a newer checkpoint, now called {aside}")
            trainer.prune(folder.checkpoints)
        last = {"baseline": 0, "train": trainer.step, "validation": trainer.evaluated}
        keep_metrics(folder.metrics, lambda record: record["step"] <= last[record["kind"]])
        if not read_metrics(folder.metrics):
            append_metrics(folder.metrics, kind="baseline", step=0, **session.baselines)
        folder.write_config(config.to_dict())
        session.draw()
        yield session


class Session:
    """A run in its folder, ready to train: see `begin` and `go_on`."""

    def __init__(self, config: TrainConfig, folder: RunFolder, source: Source | None) -> None:
        self.config, self.folder = config, folder
        self.data = open_data(config, folder)
        self.trainer = Trainer(config, self.data)
        if source is not None:
            start(self.trainer.model, source, config)
        self.baselines = baselines(self.data)
        self.saved = -1, -1  # the step of the newest checkpoint, and of its last evaluation
        self._saver = Saver(beside=False)

    def train(self) -> signal.Signals | None:
        """Train to the end, or to the signal that is returned, printing what happens.

        Raises DivergedError when loss or gradients are no longer finite. Checkpoints with the
        parameters that led there are set aside then, if there is an older one.
        """
        self._introduce()
        launched = cuda.launches.copy()
        trainer, config = self.trainer, self.config
        plain = trainer.device == "cpu" and not emulation.active()  # no recorded step that runs on
        with (
            self._going_back(),
            Saver(config.async_save) as self._saver,
            StopSignals(plain) as signals,
            Progress(config.max_steps, trainer.step) as progress,
        ):
            trainer.left_by(signals)
            try:
                while True:
                    if trainer.evaluation_due:
                        self._evaluate(progress)
                    if signals.received or trainer.finished:
                        break
                    self._saver.check()
                    trainer.update()
                    progress.advance()
                    if trainer.step % config.log_interval == 0:
                        self._report(progress)
            except Stopped:  # what was left is done again on resuming
                pass
            stopped = signals.received
            if stopped:
                self._save()
        if stopped:
            print(
                f"Stopped by {stopped.name} after step {trainer.step}; saved. Go on with:\n"
                f"  gpugrad train --resume --out {shlex.quote(config.out)}"
            )
        else:
            self._conclude()
        counts = cuda.launches - launched
        if counts:
            shown = ", ".join(f"{kernel} {count:,}" for kernel, count in sorted(counts.items()))
            print(f"kernels   launched on {self._kernels_run_on()}: {shown}")
        return stopped

    @contextmanager
    def _going_back(self) -> Iterator[None]:
        """Set aside, should the run diverge within, the checkpoints that would do so again."""
        try:
            yield
        except DivergedError:
            saved, unsound = self.folder.checkpoints, self.trainer.unsound
            found = checkpoint.steps(saved)
            kept = [step for step in found if step < unsound] or found[:1]
            for aside in checkpoint.set_aside(saved, kept[-1], "diverged") if kept else ():
                print(f"diverged  a checkpoint, now called {aside}")
            raise

    def _introduce(self) -> None:
        config, data, trainer = self.config, self.data, self.trainer
        size = data.tokenizer.vocab_size
        tested = f", {len(data.test):,} to test on once" if len(data.test) else ""
        print(
            f"data      {config.data}: {len(data.train):,} tokens to train on, {len(data.val):,} "
            f"held out{tested}; vocabulary of {size}"
        )
        if config.max_chars:
            print(f"          of {config.max_chars:,} characters at most (--max-chars 0: of all)")
        print(
            f"model     {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, "
            f"context {config.block_size}: {trainer.parameters:,} parameters, {config.precision} "
            f"on {device_name(trainer.device)}"
        )
        if config.init_from:
            print(f"start     {config.init_from}" + f", but {config.fresh}" * bool(config.fresh))
        if trainer.trained != trainer.parameters:
            print(f"trained   {trainer.trained:,} parameters, the others stay as they are")
        counted = ", ".join(f"{name} {loss:.4f}" for name, loss in self.baselines.items())
        print(f"baseline  {counted}, uniform {np.log(size):.4f} nats per token, by counting")
        if emulation.active():
            print(f"kernels   run on {self._kernels_run_on()}: to test them, not for speed")
        if config.detect_anomaly:
            print("anomalies every operation is looked at: to find the first one, not for speed")
        print(f"run       {config.out}" + (f", from step {trainer.step}" if trainer.step else ""))

    def _kernels_run_on(self) -> str:
        mode = emulation.active()
        return f"the CPU by the emulator ({mode})" if mode else device_name(self.trainer.device)

    def _evaluate(self, progress: Progress) -> None:
        trainer = self.trainer
        loss = trainer.evaluate()
        best = trainer.take_evaluation(loss)
        append_metrics(
            self.folder.metrics, kind="validation", step=trainer.step, loss=loss, best=best
        )
        self._save()
        self.draw()
        progress.evaluated(trainer.step, loss, best)

    def _report(self, progress: Progress) -> None:
        report = self.trainer.report()
        if report:
            append_metrics(self.folder.metrics, kind="train", **report._asdict())
            progress.show(report)

    def _save(self) -> None:
        now = self.trainer.step, self.trainer.evaluated
        if self.saved != now:  # stopped ahead of an evaluation, a step is saved again after it
            write, go_on = self.trainer.snapshot(self.folder.checkpoints), self._saver.go_on

            def save() -> None:
                sync_metrics(self.folder.metrics)
                write(go_on)

            self._saver.start(save)
            self.saved = now

    def draw(self) -> None:
        """Draw the curve of what is known so far."""
        records = read_metrics(self.folder.metrics)
        curves = {
            kind: _thinned(
                [
                    (r["step"], r["loss"])
                    for r in records
                    if r["kind"] == kind and r["loss"] is not None
                ]
            )
            for kind in ("train", "validation")
        }
        name = os.fsencode(self.config.data).decode("utf-8", "replace")
        title = f"{name}, {self.trainer.parameters:,} parameters"
        curve.write_svg(self.folder.curve, curves, self.baselines, title)
        if self.config.png:
            curve.write_png(self.folder.curve_png, curves, self.baselines, title)

    def _conclude(self) -> None:
        trainer, config, folder = self.trainer, self.config, self.folder
        best, step = trainer.patience.best, trainer.patience.best_step
        assert best is not None  # the last step is always evaluated
        difference = self.baselines["bigram"] - best
        print(f"done      {trainer.finished}; {duration(trainer.seconds)} of training")
        print(
            f"best      validation loss {best:.4f} after step {step}: {abs(difference):.2f} nats "
            f"per token {'below' if difference > 0 else 'ABOVE'} the bigram baseline"
        )
        if trainer.scaler is not None:
            print(f"scaling   the loss is scaled by {trainer.scaler.get_scale():g}")
        if trainer.guard.skipped:
            print(
                f"skipped   {trainer.guard.skipped} updates: {trainer.guard.not_finite} with a "
                f"gradient that was not finite, {trainer.guard.spikes} with a spike in its norm"
            )
        files = [folder.curve, folder.metrics, folder.checkpoints]
        if config.sample_tokens:
            text = self._sample()
            with atomic_write(folder.sample) as file:
                file.write(text.encode())
            print(f"sample\n\n{text}\n")
            files.insert(0, folder.sample)
        print(f"files     {', '.join(map(str, files))}")
        chosen = " --best" if step != trainer.step else ""
        print(f'next      gpugrad sample {shlex.quote(config.out)}{chosen} --prompt "..."')

    def _sample(self) -> str:
        config, tokenizer = self.config, self.data.tokenizer
        pieces = sample_text(
            self.trainer.model,
            tokenizer,
            opening(tokenizer),
            config.sample_tokens,
            temperature=SAMPLE_TEMPERATURE,
            seed=config.seed,
        )
        return "".join(pieces).strip("\n")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x) / len(x), sum(y) / len(y)) for x, y in (zip(*g, strict=True) for g in groups)]


def _prepare_machine(config: TrainConfig) -> None:
    """Set the CPU's threads; raise, saying what is missing, when the machine lacks something."""
    if find_device(config.device) == "cpu" and config.threads:
        set_num_threads(config.threads)
    if config.png:
        curve.require_matplotlib()
