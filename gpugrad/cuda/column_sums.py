"""Sums over the rows of a matrix by a CUDA kernel: the gradients of biases and of weights.

An ordinary sum leaves the order of its additions to the library; here it depends on the shape
alone, so that a gradient has the same bits on every GPU and in the emulator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import backend
from .kernel import Source, dtype_code, empty, variants

SOURCE = Source("column_sums.cu", variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)

_THREADS = 256
_BLOCKS = 528  # four on each of the 132 processors of a Hopper GPU
_AT_LEAST = 4  # rows for each thread of a stripe
_TEAM = 8  # threads over a row of the second pass: 32 bytes, what memory moves at least


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below n (at least 1)."""
    return 1 << max(0, n - 1).bit_length()


def tiling(rows: int, columns: int, itemsize: int) -> tuple[int, int, int]:
    """Return the threads over a row of a tile, the tiles of columns and the stripes of rows."""
    values = 16 // itemsize
    team = min(32, power_of_two(-(-columns // values)))
    tiles = -(-columns // (team * values))
    least = _AT_LEAST * (_THREADS // team)
    return team, tiles, max(1, min(rows // least, _BLOCKS // tiles))


def column_sums(x: Any, dtype: Any, out: Any = None) -> Any:
    """Return the sums over the rows of x, accumulated in float32: (N, C) to (C,).

    x is float32, bfloat16 or float16, on a GPU or, while the emulator is active, a numpy array;
    ``dtype`` is float32 or that of x. Nothing may be empty. ``out`` is written if it is given.
    """
    x = backend.xp_of(x).ascontiguousarray(x)
    rows, columns = x.shape
    if out is None:
        out = empty((columns,), dtype, like=x)
    team, tiles, stripes = tiling(rows, columns, x.dtype.itemsize)
    if stripes == 1:
        return _launch("column_sums", x, (tiles, 1), team, out, x.dtype)
    partial = empty((stripes, columns), backend.float32, like=x)
    _launch("column_sums", x, (tiles, stripes), team, partial, x.dtype)
    return _total(partial, out)


def sums(x: Any, axes: Sequence[int], dtype: Any) -> Any:
    """Return the sums over some axes, which stay with length 1, accumulated in float32.

    The conditions are those of ``column_sums``.
    """
    gone = [axis % x.ndim for axis in axes]
    kept = [axis for axis in range(x.ndim) if axis not in gone]
    rows = math.prod(x.shape[axis] for axis in gone)
    matrix = x.transpose([*gone, *kept]).reshape(rows, x.size // rows)
    shape = [1 if axis in gone else n for axis, n in enumerate(x.shape)]
    return column_sums(matrix, dtype).reshape(shape)


def add_partial(partial: Any, dtype: Any) -> Any:
    """Return the sums over the rows of partial sums: (S, C) float32 to (C,) of a dtype."""
    return _total(partial, empty(partial.shape[1:], dtype, like=partial))


def _total(partial: Any, out: Any) -> Any:
    grid = -(-partial.shape[1] // _TEAM), 1
    return _launch("column_sums_total", partial, grid, _TEAM, out, out.dtype)


def _launch(kernel: str, x: Any, grid: Any, team: int, out: Any, narrow: Any) -> Any:
    outs = (out, None) if out.dtype == backend.float32 else (None, out)
    code = dtype_code(narrow)
    SOURCE.launch(kernel, grid, (_THREADS,), (x, *outs, *x.shape, team), GPUGRAD_DTYPE=code)
    return out
