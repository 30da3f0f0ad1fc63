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

# Elements at a time. On the CPU seven arrays of float32 stay in a second-level cache of 1 MB, and
# each call of NumPy lasts the 5 µs that it takes until threads that take turns with the interpreter
# lock gain something. On a GPU only the number of launches counts.
CPU_BLOCK = 1 << 15
GPU_BLOCK = 1 << 26
# Elements of an array on the CPU that is worked on together with others: each call of NumPy lasts
# longer than the arithmetic on so few.
SMALL = 1 << 12


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


def scale(x: Array, factor: float, out: Array) -> None:
    """Write x times a factor to out: in float32 where the factor has all of its bits there.

    A factor of 1e-26 has no accurate value in float16, nor 1e-40 in float32.
    """
    xp = backend.xp_of(x)
    if x.dtype == out.dtype and x.dtype in (backend.float32, backend.float64) and factor > 1e-30:
        xp.multiply(x, factor, out=out)
    else:
        out[...] = xp.multiply(x, factor, dtype=backend.float64)


class Scratch(threading.local):
    """Work arrays that every piece reuses: fresh pages can cost as much as the arithmetic.

    Each thread has its own.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[ModuleType, np.dtype], Array] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Scratch:
        return Scratch()  # there is nothing in it that lasts

    def arrays(self, like: Array, count: int) -> list[Array]:
        """Return so many 1-D arrays of the length, dtype and library of ``like``."""
        xp, size = backend.xp_of(like), like.size
        memory = self._arrays.get((xp, like.dtype))
        if memory is None or memory.size < count * size:
            memory = self._arrays[xp, like.dtype] = xp.empty(count * size, like.dtype)
        return [memory[i * size : (i + 1) * size] for i in range(count)]
