"""Calls in two halves: what follows from shapes, and what is done with the values of arrays.

A replay makes the same calls on the same arrays, so that the first half, views and sizes and the
choice of pieces, is the same each time. A function that leaves the second half to ``once``, to
``threads.for_rows`` and to ``memory.zeros`` can be called once in full, and from then on by what it
gave to these::

    def shifted(x):                                     # (N, C)
        out, low = memory.empty(x.shape, x.dtype), memory.empty(x.shape[1:], x.dtype)
        prepared.once(lambda: np.min(x, axis=0, out=low))
        threads.for_rows(len(x), lambda i, j: np.subtract(x[i:j], low, out=out[i:j]), 256)
        return out
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class _Local(threading.local):
    noted: list[Callable[[], Any]] | None = None  # what was done with values, while that is noted


_local = _Local()


def once(work: Callable[[], Any]) -> None:
    """Call work(), which reads or writes the values of arrays; its result is left out."""
    noted = _local.noted
    if noted is None:
        work()
        return
    _local.noted = None  # what it calls in turn belongs to it
    try:
        work()
    finally:
        _local.noted = noted
    noted.append(work)


def is_noting() -> bool:
    """Return whether what this thread does with values is noted."""
    return _local.noted is not None


def noted(function: Callable[[], Any]) -> tuple[Any, list[Callable[[], Any]]]:
    """Return what a function returns, and the calls that do again what it did with values."""
    before, calls = _local.noted, list[Callable[[], Any]]()
    _local.noted = calls
    try:
        return function(), calls
    finally:
        _local.noted = before
