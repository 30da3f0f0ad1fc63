"""Calls in two halves: what follows from shapes, and what is done with the values of arrays.

A replay makes the same calls on the same arrays, so that the first half, views and sizes and the
choice of pieces, is the same each time. A function that leaves the second half to ``once``, to
``threads.for_rows`` and to ``memory.zeros`` can be called once, and from then on by what it gave to
these::

    def shifted(x):                                     # (N, C)
        out, low = memory.empty(x.shape, x.dtype), memory.empty(x.shape[1:], x.dtype)
        prepared.once(lambda: np.min(x, axis=0, out=low))
        threads.for_rows(len(x), lambda i, j: np.subtract(x[i:j], low, out=out[i:j]), 256)
        return out

Another process may do some of the rows (``gpugrad.processes``), which sees what is written to
arrays of ``gpugrad.memory``, and no variable or attribute that ``once`` has set anew.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any


class _Local(threading.local):
    noted: list[Callable[[], Any]] | None = None  # where work is noted; None: it is done at once


_local = _Local()


def once(work: Callable[[], Any]) -> None:
    """Call work(), which reads or writes the values of arrays; its result is left out.

    It asks ``gpugrad.memory`` for nothing that outlasts it: that belongs to the first half.
    """
    if _local.noted is None:
        work()
    else:
        _local.noted.append(work)


def is_plain() -> bool:
    """Return whether this thread does with values what it is told to, and does not note it."""
    return _local.noted is None


def left_out(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a function returns of which the second half is left out.

    A call, and no ``with`` block: Ctrl-C does not come between its end and that of the block.
    """
    return noted(functools.partial(function, *args, **kwargs))[0]


def noted(function: Callable[[], Any]) -> tuple[Any, list[Callable[[], Any]]]:
    """Return what a function returns, and the calls that do what it would do with values."""
    before, calls = _local.noted, list[Callable[[], Any]]()
    try:
        _local.noted = calls
        return function(), calls
    finally:
        _local.noted = before
