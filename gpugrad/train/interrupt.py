"""Ctrl-C and SIGTERM as a wish that is granted where nothing is lost by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ..cuda import recording


class Stopped(BaseException):
    """A signal came while work was done that may be left half done: see StopSignals.leaving."""


class StopSignals:
    """Context: the first SIGINT or SIGTERM sets `received`; a second one acts as it always does.

    Signals that the process was started to ignore (`nohup`, a background job) stay ignored.
    Outside the main thread, where Python handles no signals, nothing changes.

    at_once: whether work may be left at any moment, or not before it is done.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._at_once, self._leaving = at_once, False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Context of work that may be left half done: a signal before or within raises Stopped.

        Between any two lines of Python, that is: one call of NumPy comes to its end. So does a step
        that is being recorded, whose tensors are not themselves meanwhile; it is the first that a
        process takes, so little is lost should there be no time for it.
        """
        if self.received:
            raise Stopped
        self._leaving = self._at_once
        try:
            yield
        finally:
            self._leaving = False

    def stay(self) -> None:
        """Let what is left of the work come to its end: from here on it may not be left."""
        self._leaving = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        if self._leaving and recording.current() is None:
            raise Stopped

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
