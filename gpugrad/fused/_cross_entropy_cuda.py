"""Cross-entropy by the kernels of kernels/cross_entropy.cu: what they are launched with.

Sums over the rows, and the number the mean divides by, stay on the device: nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend, cuda
from ._teams import room, teams

SOURCE = cuda.Source("cross_entropy.cu", cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)
SUM_THREADS = 1024  # of the kernels that sum over the rows
PER_BLOCK = 16 * SUM_THREADS  # values
MOST_PARTS = 128


class Rows(NamedTuple):
    """What every kernel gets: contiguous arrays, and the statics as the kernels want them."""

    logits: Any
    target: Any
    wide: bool
    weight: Any
    ignored: int
    smoothing: float
    rows: int
    columns: int
    code: int

    def launch(self, kernel: str, args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run a kernel that has a team for every row."""
        grid, block = teams(self.rows, self.columns)
        SOURCE.launch(kernel, grid, block, args, shared_mem, GPUGRAD_DTYPE=self.code)


def rows_of(logits: Any, target: Any, weight: Any, ignored: int, smoothing: float) -> Rows:
    """Return what the kernels get for these arguments of an operation."""
    xp = backend.xp_of(logits)
    if target.dtype not in (np.int32, np.int64):
        target = target.astype(np.int64)
    columns = logits.shape[-1]
    return Rows(
        xp.ascontiguousarray(logits),
        xp.ascontiguousarray(target),
        target.dtype == np.int64,
        None if weight is None else xp.ascontiguousarray(weight),
        ignored,
        smoothing,
        logits.size // columns,
        columns,
        cuda.dtype_code(logits.dtype),
    )


def fits(logits: Any, target: Any, weight: Any, **statics: Any) -> bool:
    """Return whether the kernels can do it: ids, and logits of a dtype they know."""
    return cuda.fits(logits) and target.dtype.kind in "iu"


def forward(
    logits: Any,
    target: Any,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[Any, tuple]:
    """Return the loss, and for the backward the maxima, the totals and two sums of weights."""
    rows = rows_of(logits, target, weight, ignore_index, label_smoothing)
    weight_total = _weight_total(rows)
    losses = cuda.empty(rows.rows, np.float32, like=rows.logits)
    tops, totals = write_losses(rows, losses, weight_total)
    count = count_of(rows) if reduction == "mean" else None
    residuals = tops, totals, weight_total, count
    if reduction == "none":
        return losses.reshape(target.shape), residuals
    return sum_of(losses, rows.code, count), residuals


def backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Sequence[Any]:
    """Return the gradient of the logits."""
    logits, target, weight = arrays
    tops, totals, weight_total, count = residuals
    rows = rows_of(logits, target, weight, ignore_index, label_smoothing)
    g = backend.xp_of(g).ascontiguousarray(g)
    dx = cuda.empty(logits.shape, logits.dtype, like=rows.logits)
    args = [rows.logits, rows.target, rows.wide, rows.weight, weight_total, tops, totals]
    args += [g, int(reduction == "none"), count, dx]
    args += [rows.rows, rows.columns, rows.ignored, rows.smoothing]
    rows.launch("cross_entropy_backward", args)
    return dx, None, None


def in_place(
    logits: Any,
    target: Any,
    weight: Any,
    scale: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Any:
    """Return the loss; the contiguous logits become the gradient of scale times the loss.

    ``scale`` is a number, or a contiguous float32 array with one element or, without reduction,
    one for each row.
    """
    rows = rows_of(logits, target, weight, ignore_index, label_smoothing)
    count = count_of(rows) if reduction == "mean" else None
    losses = cuda.empty(rows.rows, np.float32, like=logits)
    write_gradient(rows, losses, scale, count, _weight_total(rows))
    return losses.reshape(target.shape) if reduction == "none" else sum_of(losses, rows.code, count)


# One launch over the rows


def write_losses(rows: Rows, losses: Any, weight_total: Any = None) -> tuple[Any, Any]:
    """Write the loss of each row; return the rows' maxima and totals."""
    tops, totals = (cuda.empty(rows.rows, np.float32, like=rows.logits) for _ in range(2))
    args = [rows.logits, rows.target, rows.wide, rows.weight, weight_total, losses, tops, totals]
    args += [rows.rows, rows.columns, rows.ignored, rows.smoothing]
    rows.launch("cross_entropy_forward", args)
    return tops, totals


def write_gradient(
    rows: Rows, losses: Any, scale: Any, count: Any = None, weight_total: Any = None
) -> None:
    """Write the loss of each row, and over its logits the gradient of scale times it over count."""
    upstream, factor = (scale, 1.0) if backend.is_array(scale) else (None, scale)
    step = 0 if upstream is None or upstream.size == 1 else 1
    packs, shared_mem = room(rows.columns, teams(rows.rows, rows.columns)[1], rows.logits)
    args = [rows.logits, rows.target, rows.wide, rows.weight, weight_total, upstream, step, factor]
    args += [count, losses, rows.rows, rows.columns, rows.ignored, rows.smoothing, packs]
    rows.launch("cross_entropy_in_place", args, shared_mem)


# Sums over the rows


def _parts(count: int) -> int:
    """Return the number of blocks that sum so many values."""
    return min(MOST_PARTS, -(-count // PER_BLOCK))


def sum_of(values: Any, code: int, divisor: Any = None) -> Any:
    """Return the sum of contiguous float32 values, divided by the divisor, as an array ().

    The dtype's code only says which variant is in use anyway.
    """
    count, parts = values.size, _parts(values.size)
    if parts > 1:
        partial = cuda.empty(parts, np.float32, like=values)
        _launch_sum("cross_entropy_sum", parts, [values, None, partial, count], code)
        values, count = partial, parts
    total = cuda.empty((), np.float32, like=values)
    _launch_sum("cross_entropy_sum", 1, [values, divisor, total, count], code)
    return total


def count_of(rows: Rows) -> Any:
    """Return how many targets count, or the sum of their weights."""
    parts = _parts(rows.rows)
    partial = cuda.empty(parts if parts > 1 else (), np.float32, like=rows.logits)
    args = [rows.target, rows.wide, rows.weight, partial, rows.rows, rows.columns, rows.ignored]
    _launch_sum("cross_entropy_count", parts, args, rows.code)
    return sum_of(partial, rows.code) if parts > 1 else partial


def _weight_total(rows: Rows) -> Any:
    """Return the sum of the class weights where it is needed."""
    return None if rows.weight is None or not rows.smoothing else sum_of(rows.weight, rows.code)


def _launch_sum(kernel: str, blocks: int, args: Sequence[Any], code: int) -> None:
    SOURCE.launch(kernel, (blocks,), (SUM_THREADS,), args, GPUGRAD_DTYPE=code)
