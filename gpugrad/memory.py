"""Memory for the results of functions on NumPy arrays: new, or what a recorded step has laid out.

A function that makes its results by ``empty`` and ``zeros`` need not know which::

    def normalised(x):
        out = memory.empty(x.shape, x.dtype)
        ...
        return out

Called as it is, it returns new arrays. While ``gg.compile`` records it, what it asks for is noted
(``Noted``), and in every replay it is handed parts of one arena (``Planned``). It should ask in the
same order for the same shapes whenever it is called on arrays of the same shapes. What it asks for
within ``threads.for_rows`` is new: who takes which piece is chance.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import prepared


class Noted:
    """New arrays, by ``make``, and which these were."""

    def __init__(self, make: Callable[..., np.ndarray]) -> None:
        self.arrays: list[np.ndarray] = []
        self._make = make

    def __call__(self, shape: Any, dtype: Any) -> np.ndarray:
        """Return a new array."""
        self.arrays.append(self._make(shape, dtype))
        return self.arrays[-1]


class Planned:
    """Arrays that were there before, one after the other; new ones where they do not fit.

    ``fits`` says whether all that was asked for was there.
    """

    __slots__ = ("_arrays", "_next", "fits")

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._next = 0
        self.fits = True

    def __call__(self, shape: Any, dtype: Any) -> np.ndarray:
        """Return the next array if it has this shape and dtype."""
        if self._next < len(self._arrays):
            found = self._arrays[self._next]
            wanted = shape if shape.__class__ is tuple else np.broadcast_shapes(shape)
            if found.shape == wanted and found.dtype == dtype:
                self._next += 1
                return found
        self.fits = False
        return np.empty(shape, dtype)


class _Local(threading.local):
    source: Noted | Planned | None = None  # None: NumPy


_local = _Local()


def is_plain() -> bool:
    """Return whether what is asked for is new memory, and work with values is done at once."""
    return _local.source is None and prepared.is_plain()


def empty(shape: Any, dtype: Any) -> np.ndarray:
    """Return a C-contiguous array to be filled, as ``np.empty`` does."""
    source = _local.source
    return np.empty(shape, dtype) if source is None else source(shape, dtype)


def zeros(shape: Any, dtype: Any) -> np.ndarray:
    """Return a C-contiguous array of zeros, as ``np.zeros`` does."""
    if is_plain():
        return np.zeros(shape, dtype)
    made = empty(shape, dtype)
    prepared.once(functools.partial(made.fill, 0))
    return made


def noted(
    make: Callable[..., np.ndarray], function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> tuple[Any, list[np.ndarray]]:
    """Return what a function returns, and the arrays it asked for in this thread, made by ``make``.

    A call, and no ``with`` block: Ctrl-C does not come between its beginning and that of the block.
    """
    before, noting = _local.source, Noted(make)
    try:
        _local.source = noting
        return function(*args, **kwargs), noting.arrays
    finally:
        _local.source = before


def run_in(arrays: Sequence[np.ndarray], function: Any, args: Any, kwargs: Any) -> tuple[Any, bool]:
    """Return what a function returns that is handed these arrays, and whether they all fitted."""
    before, planned = _local.source, Planned(arrays)
    try:
        _local.source = planned
        return function(*args, **kwargs), planned.fits
    finally:
        _local.source = before


class new:
    """Context: what is asked for is new memory, as in pieces of work that threads share."""

    def __enter__(self) -> None:
        self._before = _local.source
        _local.source = None

    def __exit__(self, *error: object) -> None:
        _local.source = self._before
