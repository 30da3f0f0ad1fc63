"""Passing over large arrays in pieces that stay in the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from .. import backend
from ..backend import Array
from ..threads import for_rows

# Elements at a time. On the CPU the arrays of a piece stay in a cache, and each call of NumPy lasts
# long enough: threads that take turns with the interpreter lock every few µs slow each other down
# (with half as many, two of them gain a fifth; with these, two fifths). On a GPU only the number
# of launches counts.
CPU_BLOCK = 1 << 16
GPU_BLOCK = 1 << 26


class Block(NamedTuple):
    """A piece of arrays of one shape: ``flat`` in C order of elements, ``rows`` of the arrays."""

    flat: slice
    rows: slice


def blocks(*arrays: Array) -> tuple[list[Array], Iterator[Block]]:
    """Return the arrays, flattened if that copies none of them, and the pieces to visit.

    ``array[block.rows].reshape(-1)`` are the elements ``block.flat``: a view where the array is
    contiguous, else a copy of that piece only (a transposed weight's gradient, for example).
    """
    if all(a.flags.c_contiguous for a in arrays):
        arrays = tuple(a.reshape(-1) for a in arrays)
    return list(arrays), _pieces(arrays[0])


def _pieces(array: Array) -> Iterator[Block]:
    if array.size == 0:
        return
    width = array.size // len(array)
    limit = CPU_BLOCK if isinstance(array, np.ndarray) else GPU_BLOCK
    rows = max(limit // width, 1)
    for start in range(0, len(array), rows):
        stop = min(start + rows, len(array))
        yield Block(slice(start * width, stop * width), slice(start, stop))


def for_pieces(pieces: Sequence[Array], work: Callable[[int], None]) -> None:
    """Call work(i) for every piece; on the CPU side by side, in groups of about CPU_BLOCK elements.

    The groups depend on the sizes alone.
    """
    here, bounds, elements = [], [0], 0
    for i, piece in enumerate(pieces):
        if not isinstance(piece, np.ndarray):
            work(i)
            continue
        here.append(i)
        elements += piece.size
        if elements >= CPU_BLOCK:
            bounds.append(len(here))
            elements = 0
    if elements:
        bounds.append(len(here))

    def run(start: int, stop: int) -> None:
        for i in here[bounds[start] : bounds[stop]]:
            work(i)

    for_rows(len(bounds) - 1, run, 1)


class Scratch(threading.local):
    """Two work arrays that every piece reuses: fresh pages can cost as much as the arithmetic.

    Each thread has its own.
    """

    def __init__(self) -> None:
        self._pairs: dict[tuple[ModuleType, np.dtype], Array] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Scratch:
        return Scratch()  # there is nothing in it that lasts

    def pair(self, like: Array) -> tuple[Array, Array]:
        """Return two 1-D arrays of the length, dtype and library of ``like``."""
        xp = backend.xp_of(like)
        pair = self._pairs.get((xp, like.dtype))
        if pair is None or pair.shape[1] < like.size:
            pair = self._pairs[xp, like.dtype] = xp.empty((2, like.size), like.dtype)
        return pair[0, : like.size], pair[1, : like.size]
