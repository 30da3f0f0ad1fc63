"""What the hand-fused NumPy implementations share: rows in cache-sized blocks, wide statistics.

A chain of ufuncs over a large array reads and writes main memory once per ufunc. Over one block at
a time it does so once in all, and needs scratch memory for one block only. Blocks are shared among
threads; where they begin depends on the shape alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import backend, memory, openblas, threads
from ..memory import empty
from ..prepared import once

# Elements: three arrays of float32 stay in a second-level cache of 2 MB. With half of that threads
# wait for each other's Python twice as often, which costs more than a smaller cache saves.
BLOCK = 1 << 17
FEW = 1 << 13  # elements of which OpenBLAS multiplies so many, or sums a row, in one thread anyway
ALONE = 1 << 16  # elements that one thread takes faster than two
# Sums of powers that lost nothing by overflow or underflow, whatever the largest exponent was
FINE = 1e-10, 1e30
CHUNK = 16  # rows that ColumnSums adds up as one
LONG = 4096  # elements of a row beyond which sums are pairwise


def wide_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype that statistics and sums over this dtype have: at least float32."""
    return backend.float32 if dtype in (backend.float16, backend.bfloat16) else dtype


def widened(x: Any) -> Any:
    """Return a tensor or array as float32 where it is narrower; for tensors this is recorded."""
    dtype = wide_dtype(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)


def as_rows(x: np.ndarray) -> np.ndarray:
    """Return x as contiguous (rows, features), its last axis being the features; itself or a view
    if it is contiguous already.
    """
    if x.ndim == 2 and x.flags.c_contiguous:
        return x
    return contiguous(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def contiguous(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return x in another shape: a view if it is C-contiguous, else a copy."""
    return x.reshape(shape) if x.flags.c_contiguous else copied(x, shape, x.dtype)


def copied(x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a C-contiguous copy of x in another shape and dtype."""
    out = empty(shape, dtype)
    once(lambda: np.copyto(out.reshape(x.shape), x, casting="unsafe"))
    return out


def reshaped(x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype | None = None) -> np.ndarray:
    """Return x in another shape, and dtype where one is given: a view if it can be one.

    Of other arrays than NumPy's, which have no halves of calls, what ``reshape`` returns.
    """
    if not isinstance(x, np.ndarray):
        return x.reshape(shape)
    view = _view(x, shape) if dtype in (None, x.dtype) else None
    return copied(x, shape, x.dtype if dtype is None else dtype) if view is None else view


def _view(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return x in another shape, None if that is no view; nothing is copied to find out."""
    if x.flags.c_contiguous:
        return x.reshape(shape)
    try:
        return x.reshape(shape, copy=False)
    except ValueError:
        return None
    except TypeError:  # NumPy 2.0 does not know of copy
        found = x.reshape(shape)
        return found if np.may_share_memory(found, x) else None


def few(x: np.ndarray, *others: np.ndarray | None) -> bool:
    """Return whether x has axes and 1 to FEW elements, is, as the others, contiguous and of one
    dtype, float32 or float64, and nothing is recorded: work needs neither blocks nor a plan.
    """
    dtype = x.dtype
    if not (x.ndim and 0 < x.size <= FEW <= ALONE and dtype.char in "fd" and x.flags.c_contiguous):
        return False
    for other in others:
        if other is not None and (other.dtype is not dtype or not other.flags.c_contiguous):
            return False
    return memory.is_plain()


def for_blocks(
    rows: np.ndarray,
    work: Callable[[slice], None],
    multiple: int = CHUNK,
    light: bool = False,
) -> None:
    """Call work(part) for slices that cover rows, of equal length but the last, side by side.

    Each has about BLOCK elements at most, and starts at a multiple of ``multiple`` rows. There is
    one, or as many as make pairs, which two threads share without a rest. Where the work is light,
    some ten ufuncs none of which is a function like exp, no other thread takes one of a single
    pair: to wake it, and to wait for each other's Python, takes longer than half of the work.
    """
    count = len(rows)
    if rows.size <= FEW <= ALONE and memory.is_plain():
        if rows.size:
            work(slice(0, count))
        return
    if not rows.size:
        return
    pairs = -(-rows.size // (2 * BLOCK))
    length = count if rows.size <= ALONE else -(-count // (2 * pairs))
    length = -(-length // multiple) * multiple
    if length >= count:  # small arrays, without a detour
        once(lambda: _alone(slice(0, count), work))
        return
    alone = light and pairs == 1
    threads.for_rows(count, lambda start, stop: work(slice(start, stop)), length, light=alone)


def _alone(part: slice, work: Callable[[slice], None]) -> None:
    with openblas.serial:
        work(part)


def cut(start: int, stop: int, rows: np.ndarray) -> Iterator[slice]:
    """Yield equal parts of these rows of about BLOCK elements; all start at multiples of CHUNK if
    the first does.
    """
    count = max(1, math.ceil((stop - start) * rows.shape[1] / BLOCK))
    length = math.ceil((stop - start) / count / CHUNK) * CHUNK
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))


@functools.lru_cache(maxsize=64)
def ones(count: int, dtype: np.dtype) -> np.ndarray:
    """Return so many ones, read-only: the factors of a sum that BLAS adds up."""
    found = np.ones(count, dtype)
    found.flags.writeable = False
    return found


def scratch(part: slice, rows: np.ndarray, dtype: np.dtype, count: int = 1) -> np.ndarray:
    """Return memory for a block of rows, ``count`` times: (count, block, width)."""
    return np.empty((count, part.stop - part.start, rows.shape[1]), dtype)


def wide_block(block: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Return block itself if it has the buffer's dtype, else as a copy in the buffer."""
    if block.dtype == buffer.dtype:
        return block
    buffer[...] = block
    return buffer


def largest(rows: np.ndarray) -> np.ndarray:
    """Return the maximum of each row, by the index of the maximum: that is faster than max."""
    return rows[np.arange(len(rows)), rows.argmax(axis=-1)]


def lost(totals: np.ndarray) -> np.ndarray | None:
    """Return which sums of exp(x) need the largest x subtracted first, None if none does.

    It is the rare case, and finding the largest x takes longer than exp.
    """
    low, high = FINE
    if totals.size <= CHUNK and all(low <= total <= high for total in totals.ravel().tolist()):
        return None  # of a few numbers Python knows sooner
    if not totals.size or (totals.min() >= low and totals.max() <= high):
        return None
    return ~((totals >= low) & (totals <= high))  # NaN is lost too


def row_sums(x: np.ndarray, factor: np.ndarray | None = None) -> np.ndarray:
    """Return the sums of x * factor, by BLAS where it is exact enough: it does not add in pairs."""
    if x.shape[1] > LONG:
        return np.add.reduce(x if factor is None else x * factor, axis=-1)
    return np.vecdot(x, ones(x.shape[1], x.dtype) if factor is None else factor)


class ColumnSums:
    """The sum over all rows of something computed block by block.

    Chunks of CHUNK rows are summed first and then their sums, so that the result depends neither
    on the size of the blocks nor, beyond a logarithm, on the number of rows.
    """

    def __init__(self, rows: np.ndarray, dtype: np.dtype) -> None:
        count, features = rows.shape
        self.chunks = empty((-(-count // CHUNK), features), dtype)
        self._ones = ones(CHUNK, dtype)[None]  # BLAS adds rows faster than add.reduce does

    def add(self, block: np.ndarray, part: slice, factors: np.ndarray | None = None) -> None:
        """Add the rows ``part``, which starts at a multiple of CHUNK, times a factor for each row.

        Threads may do so at once.
        """
        whole, first = len(block) // CHUNK, part.start // CHUNK
        full = whole * CHUNK
        chunks = block[:full].reshape(whole, CHUNK, block.shape[1])
        weights = self._ones if factors is None else factors[:full].reshape(whole, 1, CHUNK)
        np.matmul(weights, chunks, out=self.chunks[first : first + whole, None])
        if full < len(block):
            rest = block[full:] if factors is None else block[full:] * factors[full:, None]
            np.add.reduce(rest, axis=0, out=self.chunks[first + whole])

    def total(self, dtype: np.dtype) -> np.ndarray:
        """Return the sum over all rows."""
        wide = empty(self.chunks.shape[1:], self.chunks.dtype)
        once(lambda: np.copyto(wide, backend.total(np, self.chunks, 0)))
        return reshaped(wide, wide.shape, dtype)
