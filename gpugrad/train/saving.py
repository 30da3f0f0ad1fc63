"""Checkpoints written by a thread of their own while training goes on."""

from __future__ import annotations

import threading
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
        self._thread: threading.Thread | None = None
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
        self._thread = threading.Thread(target=self._run, args=(write,), name="gpugrad-saver")
        self._thread.start()

    def check(self) -> None:
        """Raise what writing raised."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def go_on(self) -> None:
        """Raise Abandoned, if that is so: to be called while writing, where it can be left."""
        if self._abandoned:
            raise Abandoned

    def _run(self, write: Callable[[], None]) -> None:
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
