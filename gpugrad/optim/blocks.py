"""Passing over large arrays in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np

from .. import backend
from ..backend import Array

# Elements at a time. On the CPU six float32 arrays of a piece fit a 1 MiB second-level cache, and
# NumPy's cost per call is spread over enough elements; on a GPU only the number of launches counts.
CPU_BLOCK = 1 << 15
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


class Scratch:
    """Two work arrays that every piece reuses: fresh pages can cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[ModuleType, np.dtype], Array] = {}

    def pair(self, like: Array) -> tuple[Array, Array]:
        """Return two 1-D arrays of the length, dtype and library of ``like``."""
        xp = backend.xp_of(like)
        pair = self._pairs.get((xp, like.dtype))
        if pair is None or pair.shape[1] < like.size:
            pair = self._pairs[xp, like.dtype] = xp.empty((2, like.size), like.dtype)
        return pair[0, : like.size], pair[1, : like.size]
