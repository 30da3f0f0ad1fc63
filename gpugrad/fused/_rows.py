"""What the hand-fused NumPy implementations share: rows in cache-sized blocks, wide statistics.

A chain of ufuncs over a large array reads and writes main memory once per ufunc. Over one block at
a time it does so once in all, and needs scratch memory for one block only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import backend

BLOCK = 65536  # elements: 256 KB of float32, which a core's second-level cache keeps
CHUNK = 16  # rows that ColumnSums adds up as one


def wide_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype that statistics and sums over this dtype have: at least float32."""
    return backend.float32 if dtype in (backend.float16, backend.bfloat16) else dtype


def widened(x: Any) -> Any:
    """Return a tensor or array as float32 where it is narrower; for tensors this is recorded."""
    dtype = wide_dtype(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)


def as_rows(x: np.ndarray) -> np.ndarray:
    """Return x as contiguous (rows, features), its last axis being the features; a view if it is
    contiguous already.
    """
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def row_blocks(rows: np.ndarray, multiple: int = CHUNK) -> Iterator[slice]:
    """Yield slices of a multiple of rows, about BLOCK elements each; none if there are none."""
    count, width = rows.shape
    if width:
        step = max(1, BLOCK // (multiple * width)) * multiple
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))


def scratch(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return memory for the largest block of rows."""
    first = next(row_blocks(rows), slice(0, 0))
    return np.empty((first.stop, rows.shape[1]), dtype)


def wide_block(block: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Return block itself if it has the buffer's dtype, else as a copy in the buffer."""
    if block.dtype == buffer.dtype:
        return block
    copied = buffer[: len(block)]
    copied[...] = block
    return copied


class ColumnSums:
    """The sum over all rows of something computed block by block.

    Chunks of CHUNK rows are summed first and then their sums, so that the result depends neither
    on the size of the blocks nor, as badly as a running sum, on the number of rows.
    """

    def __init__(self, rows: np.ndarray, dtype: np.dtype) -> None:
        count, features = rows.shape
        self.chunks = np.zeros((-(-count // CHUNK), features), dtype)

    def add(self, block: np.ndarray, part: slice) -> None:
        """Add the rows ``part``, which starts at a multiple of CHUNK."""
        whole, first = len(block) // CHUNK, part.start // CHUNK
        full, rest = block[: whole * CHUNK], block[whole * CHUNK :]
        np.add.reduce(
            full.reshape(whole, CHUNK, block.shape[1]),
            axis=1,
            out=self.chunks[first : first + whole],
        )
        if len(rest):
            np.add.reduce(rest, axis=0, out=self.chunks[first + whole])

    def total(self, dtype: np.dtype) -> np.ndarray:
        """Return the sum over all rows."""
        return np.add.reduce(self.chunks, axis=0).astype(dtype, copy=False)
