"""Embedding: the rows of a table that integer ids name.

out[n] = weight[ids[n]], NaN where there is no such row
gradient of weight[i] = sum of g[n] over all n with ids[n] = i
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, cuda
from ..memory import empty, zeros
from ..ops import where
from ..prepared import once
from ..registry import Sample, describe
from ..tensor import Tensor
from ._arguments import floating
from ._ids import in_range, on_device_of, refuse_non_integer, refuse_out_of_range
from ._rows import wide_dtype
from ._sort_ids import MOST, as_ids, is_wide, sorted_ids
from .base import Cost, Implementation, fused

# NumPy


def _forward(
    ids: np.ndarray, weight: np.ndarray, padding_idx: int | None
) -> tuple[np.ndarray, tuple]:
    out = empty((*ids.shape, weight.shape[1]), weight.dtype)
    # the ids were checked; in any other mode NumPy copies the result
    once(lambda: weight.take(ids.astype(np.intp, copy=False), axis=0, out=out, mode="clip"))
    return out, ()


def _backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    padding_idx: int | None,
) -> Sequence[Any]:
    ids, weight = arrays
    dweight = zeros(weight.shape, weight.dtype)

    def fill() -> None:
        if weight.size:
            _add_rows(dweight, ids.reshape(-1), g.reshape(ids.size, weight.shape[1]))
        if padding_idx is not None:
            dweight[padding_idx] = 0

    once(fill)
    return None, dweight


def _add_rows(out: np.ndarray, ids: np.ndarray, g: np.ndarray) -> None:
    """Write to out[i] the sum of the rows g[n] with ids[n] = i, for every i that occurs.

    A stable sort brings equal ids together, in their order: every run gives the same bits. Ids that
    occur equally often are summed at once, in as many calls as there are such numbers; np.add.at
    would take 4 to 10 times as long.
    """
    if not ids.size:
        return
    if len(out) <= 1 << 16:
        ids = ids.astype(np.uint16)  # which NumPy sorts in linear time
    order = ids.argsort(kind="stable")
    ids = ids[order]
    bounds = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1], [True])))
    starts, counts = bounds[:-1], np.diff(bounds)
    wide = wide_dtype(g.dtype)
    for count in np.flatnonzero(np.bincount(counts)).tolist():
        first = starts[counts == count]
        rows = g.take(order[first[:, None] + np.arange(count)], axis=0)
        rows = rows.astype(wide, copy=False)
        out[ids[first]] = rows[:, 0] if count == 1 else np.add.reduce(rows, axis=1)


# CUDA

SOURCE = cuda.Source("embedding.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)

_THREADS = 256  # THREADS, COPIES and CHUNK in the kernel; 8 warps of 32
_WARPS = _THREADS // 32
_COPIES = 4
_CHUNK = 32


def _cuda_forward(ids: Any, weight: Any, padding_idx: int | None) -> tuple[Any, tuple]:
    shape, ids, weight = ids.shape, as_ids(ids), cuda.contiguous(weight)
    rows, columns = weight.shape
    out = cuda.empty((ids.size, columns), weight.dtype, like=weight)
    warps = ids.size * -(-columns // (32 * _COPIES * _pack(weight)))
    args = ids, is_wide(ids), weight, out, ids.size, rows, columns
    _launch("embedding_forward", -(-warps // _WARPS), weight, *args)
    return out.reshape(*shape, columns), ()


def _cuda_backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    padding_idx: int | None,
) -> Sequence[Any]:
    ids, weight = arrays
    dweight = cuda.empty(weight.shape, weight.dtype, like=weight)
    write_gradient(dweight, ids, g, padding_idx)
    return None, dweight


def write_gradient(dweight: Any, ids: Any, g: Any, padding_idx: int | None) -> None:
    """Write the gradient of the table to dweight, all rows."""
    g, ids, (rows, columns) = cuda.contiguous(g), as_ids(ids), dweight.shape
    keys, order = sorted_ids(ids, rows, -1 if padding_idx is None else padding_idx)
    chunks, tiles = -(-ids.size // _CHUNK), -(-columns // (32 * _pack(dweight)))
    partial = None
    if chunks > 1:
        partial = cuda.empty((chunks, 2, columns), backend.float32, like=dweight)
    warps = (chunks + -(-rows // 32)) * tiles
    arrays, sizes = (keys, order, g, dweight, partial), (ids.size, rows, columns)
    _launch("embedding_backward", -(-warps // _WARPS), dweight, *arrays, *sizes)
    if partial is not None:
        joined = keys, partial, dweight, ids.size, columns
        _launch("embedding_join", (chunks - 1) * tiles, dweight, *joined)


def fits(ids: Any, weight: Any, padding_idx: int | None = None) -> bool:
    """Return whether the kernels take these arrays."""
    return cuda.fits(weight) and max(ids.size, weight.shape[0]) <= MOST


def _pack(weight: Any) -> int:
    """Return how many elements 16 bytes hold."""
    return 16 // weight.dtype.itemsize


def _launch(kernel: str, grid: int, weight: Any, *args: Any) -> None:
    code = cuda.dtype_code(weight.dtype)
    SOURCE.launch(kernel, (grid,), (_THREADS,), args, GPUGRAD_DTYPE=code)


# The definition


def _cost(ids: Any, weight: Any, **statics: Any) -> Cost:
    """Return what one call cannot do without: rows read and written; the whole gradient written.

    A row of the table that many ids name is read once, and then from the caches.
    """
    rows, table = math.prod(ids.shape) * weight.shape[1], math.prod(weight.shape)
    size = weight.dtype.itemsize
    return Cost((rows + min(rows, table)) * size, 0, (rows + table) * size, rows)


@fused(
    [
        Sample(np.array([[2, 0, 2], [1, 2, 2]]), (4, 3), padding_idx=None),
        Sample(np.array([2, 0, 2, 1]), (4, 5), padding_idx=3),
        Sample(np.array(1), (2, 3), padding_idx=None),
    ],
    arguments=("ids", "weight"),
    differentiable=("weight",),
    numpy=Implementation(_forward, _backward, prepared=True),
    cuda=Implementation(_cuda_forward, _cuda_backward, fits),
    cost=_cost,
)
def _embedding(ids, weight, padding_idx):
    known = in_range(ids, weight.shape[0])
    ids = where(known, ids, 0)
    rows = weight[ids]
    if padding_idx is not None:
        rows = where((ids == padding_idx)[..., None], weight.detach()[ids], rows)
    return where(known[..., None], rows, math.nan)


def checked_ids(ids: Any, weight: Tensor) -> Tensor:
    """Return ids on the device of weight; raise for what are no ids of its rows."""
    ids = on_device_of(ids, weight)
    refuse_non_integer("embedding", "ids", ids)
    rows = weight.shape[0]
    refuse_out_of_range("embedding", "ids", ids, rows, "the number of rows of weight is")
    return ids


def embedding(ids: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """Return the rows of weight that ids name.

    ids: any shape, integer, in [0, V); weight: (V, C) floating. The result is ids.shape + (C,) in
    the dtype of weight. The row padding_idx (negative counts from the end) gets no gradient.
    Ids on the CPU are checked; on a GPU, where nothing waits for them, an id out of range gives a
    row of NaN and no gradient. Raises TypeError for ids that are not integers, IndexError for an id
    out of range, naming it and its position, and ValueError for a weight that is no table.
    """
    weight = floating(weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (rows, features), got {describe(weight)}")
    ids, count = checked_ids(ids, weight), weight.shape[0]
    if padding_idx is not None:
        if not -count <= padding_idx < count:
            raise IndexError(f"embedding: padding_idx {padding_idx} names none of {count} rows")
        padding_idx %= count
    return _embedding(ids, weight, padding_idx=padding_idx)
