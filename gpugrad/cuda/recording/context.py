"""What this thread records, and the errors that say what cannot be."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..._where import user_line
from .lifted import Held

if TYPE_CHECKING:
    from .trace import Trace

NAME = "gg.compile"
ESCAPED = (
    f"an array without elements is used outside of {NAME}: it was made while a step was recorded; "
    "return it from the step"
)


class NotRecordable(RuntimeError):
    """What a step does depends on more than the shapes of its arrays, or no kernel computes it."""


_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)


def current() -> Trace | None:
    """Return the trace that this thread records to now, if any."""
    return _current.get()


def held() -> Held | None:
    """Return what lifted tensors hold for this thread."""
    trace = _current.get()
    return None if trace is None else trace.held


@contextlib.contextmanager
def use(trace: Trace) -> Iterator[None]:
    """Have this thread record to a trace inside the ``with`` block."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


class operation:
    """Context that says what the launches inside belong to: for tables of costs, and messages."""

    __slots__ = ("name", "trace")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.trace = _current.get()
        if self.trace is not None:
            self.trace.operations.append(self.name)

    def __exit__(self, *error: object) -> None:
        if self.trace is not None:
            self.trace.operations.pop()


def described(array: Any) -> str:
    """Return dtype and shape of an array or tensor."""
    return f"{array.dtype}{list(array.shape)}"


def not_recordable(what: str) -> NotRecordable:
    """Return the error that says what a step did, and in which line."""
    trace = _current.get()
    if trace is None:
        return NotRecordable(ESCAPED)
    inside = f" (in {trace.operations[-1]})" if trace.operations else ""
    error = NotRecordable(
        f"{NAME}: {what} cannot be recorded{inside}, at {user_line()}. A recorded step is a "
        "list of launches over static shapes: do it outside of the step, or with operations that "
        "have kernels"
    )
    trace.refused = trace.refused or error
    return error
