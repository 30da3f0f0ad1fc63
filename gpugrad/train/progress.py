"""What a training run shows: a bar on the terminal, a line per evaluation everywhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from .loop import Report


class Progress:
    """Context: a progress bar on standard error, if that is a terminal, and lines above it."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._started = time.perf_counter()
        self._speed = self._loss = ""
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr,
            disable=sys.stderr is None or not sys.stderr.isatty(),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Count a step."""
        self._bar.update()

    def show(self, report: Report) -> None:
        """Show loss and speed beside the bar."""
        self._speed = f"{report.tokens_per_second:,.0f} tokens/s"
        if report.mfu is not None:
            self._speed += f", MFU {report.mfu:.1%}"
        self._loss = "not finite" if report.loss is None else f"{report.loss:.4f}"
        skipped = f", {report.skipped} skipped" if report.skipped else ""
        self._bar.set_postfix_str(f"loss {self._loss}, {self._speed}{skipped}")

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """Print a line about an evaluation, with the last loss in training that was shown.

        The time left is that of the steps so far, with all that happened between them.
        """
        parts = [f"step {step:>{len(str(self._total))}}", f"validation loss {loss:.4f}"]
        parts.append("*" if best else " ")  # as in "the best so far"
        if self._loss:
            parts.append(f"train loss {self._loss}")
        if self._speed:
            parts.append(self._speed)
        done, left = step - self._first, self._total - step
        if done and left:
            seconds = time.perf_counter() - self._started
            parts.append(f"{duration(seconds / done * left)} left")
        self.line("  ".join(parts).rstrip())

    def line(self, text: str) -> None:
        """Print a line on standard output, if it is open, above the bar."""
        if sys.stdout is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
