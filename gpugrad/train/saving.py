"""Checkpoints written by a thread of their own while training goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Abandoned(BaseException):
    """What was being written is no longer wanted: see Saver.check."""


class Saver:
    """Context: writes one thing after another, beside the thread that asks for it or within it.

    What is written does not change meanwhile: whoever asks has made a copy. Left by Ctrl-C, it
    abandons what it is at.
    """

    def __init__(self, beside: bool) -> None:
        self._beside = beside
        self._asked: deque[Callable[[], None]] = deque()  # what no thread has taken yet
        self._thread: threading.Thread | None = None  # known to have started
        self._writing = threading.Lock()
        self._error: BaseException | None = None
        self._abandoned = False

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._abandoned = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            self._join()
        except BaseException:
            self._abandoned = True
            self._join()
            raise
        if kind is None:
            self.check()

    def start(self, write: Callable[[], None]) -> None:
        """Write as soon as what was asked for before is written.

        Raises, now or when there is a next call of any method, what writing raised.
        """
        self._join()
        self.check()
        if not self._beside:
            write()
            return
        self._asked.append(write)
        thread = threading.Thread(target=self._run, name="gpugrad-saver")
        thread.start()  # a signal's exception can leave it with or without a thread
        self._thread = thread

    def check(self) -> None:
        """Raise what writing raised."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def go_on(self) -> None:
        """Raise Abandoned, if that is so: to be called while writing, where it can be left."""
        if self._abandoned:
            raise Abandoned

    def _run(self) -> None:
        with self._writing:
            try:
                write = self._asked.popleft()
            except IndexError:  # taken back
                return
            try:
                write()
            except Abandoned:
                pass
            except BaseException as error:
                self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._asked.clear()  # written, or its thread's start was interrupted
        with self._writing:
            pass
