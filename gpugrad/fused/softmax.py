"""Softmax and its logarithm along one axis.

    softmax(x) = exp(x - max(x)) / sum(exp(x - max(x)))
    log_softmax(x) = x - max(x) - log(sum(exp(x - max(x))))

The maximum only keeps exp from overflowing: any other number would give the same result, so it
is a constant to the derivative, and NumPy looks for it only where 0 does not do. Along a line that
holds nothing but -inf (all masked) softmax is 0, and so is its gradient, and log_softmax is -inf.
A line with a NaN or +inf is NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend, cuda
from ..memory import empty
from ..ops import exp, log, max, sum, where
from ..ops._axes import normalize_axis
from ..registry import Sample
from ..tensor import Tensor
from ._arguments import floating
from ._rows import contiguous, for_blocks, largest, lost, reshaped, row_sums, wide_dtype, widened
from ._teams import room, teams
from .base import Cost, Implementation, fused

# NumPy


def _lines(x: np.ndarray, axis: int) -> np.ndarray:
    """Return x as contiguous (outer, n, inner) with the axis in the middle."""
    before, n, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    return contiguous(x, (math.prod(before), n, math.prod(after)))


def _for_blocks(lines: np.ndarray, work: Callable[[slice], None]) -> None:
    """Call work for slices of the outer axis; lines side by side in memory are not torn apart."""
    outer, n, inner = lines.shape
    with np.errstate(all="ignore"):
        for_blocks(lines.reshape(outer, n * inner), work, 1)


def _shifted(x: np.ndarray, out: np.ndarray, where: np.ndarray | None = None) -> None:
    """Write x minus its largest element along each line, or along some lines, to out."""
    out[...] = x  # also because the maximum of what is not in the cache is slow
    if x.shape[2] == 1:
        top = largest(out[:, :, 0])[:, None, None]
    else:
        top = np.maximum.reduce(out, axis=1, keepdims=True)
    top[top == -math.inf] = 0
    out -= top if where is None else np.where(where, top, 0)


def _sums(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Return the sums of x * y along each line, which is an axis of length 1 in the result."""
    if x.shape[2] == 1:
        return row_sums(x[:, :, 0], None if y is None else y[:, :, 0])[:, None, None]
    return np.add.reduce(x if y is None else x * y, axis=1, keepdims=True)


def _total(x: np.ndarray) -> np.ndarray:
    """Return the sum along each line, 1 where all was masked."""
    total = _sums(x)
    total[total == 0] = 1
    return total


def _softmax_forward(x: np.ndarray, axis: int) -> tuple[np.ndarray, tuple]:
    probabilities = empty(x.shape, wide_dtype(x.dtype))
    p_lines, x_lines = _lines(probabilities, axis), _lines(x, axis)

    def work(block: slice) -> None:
        p, x_block = p_lines[block], x_lines[block]
        np.exp(x_block, out=p, dtype=p.dtype)
        total = _sums(p)
        some = lost(total)
        if some is not None:  # the other lines keep their bits
            _shifted(x_block, p, some)
            np.exp(p, out=p)
            total = _total(p)
        p /= total

    _for_blocks(p_lines, work)
    return reshaped(probabilities, x.shape, x.dtype), (probabilities,)


def _softmax_backward(
    wanted: tuple[bool, ...], g: np.ndarray, arrays: Sequence[Any], residuals: tuple, axis: int
) -> Sequence[np.ndarray]:
    (probabilities,) = residuals
    dx = empty(g.shape, g.dtype)
    dx_lines, p_lines, g_lines = _lines(dx, axis), _lines(probabilities, axis), _lines(g, axis)

    def work(block: slice) -> None:
        p, g_block = p_lines[block], widened(g_lines[block])
        d = dx_lines[block] if dx.dtype == p.dtype else np.empty(p.shape, p.dtype)
        np.subtract(g_block, _sums(g_block, p), out=d)
        d *= p
        if dx.dtype != p.dtype:
            dx_lines[block] = d

    _for_blocks(p_lines, work)
    return (dx,)


def _log_softmax_forward(x: np.ndarray, axis: int) -> tuple[np.ndarray, tuple]:
    logarithms = empty(x.shape, wide_dtype(x.dtype))
    out_lines, x_lines = _lines(logarithms, axis), _lines(x, axis)

    def work(block: slice) -> None:
        y = out_lines[block]
        _shifted(x_lines[block], y)
        y -= np.log(_total(np.exp(y)))

    _for_blocks(out_lines, work)
    return reshaped(logarithms, x.shape, x.dtype), (logarithms,)


def _log_softmax_backward(
    wanted: tuple[bool, ...], g: np.ndarray, arrays: Sequence[Any], residuals: tuple, axis: int
) -> Sequence[np.ndarray]:
    (logarithms,) = residuals
    dx = empty(g.shape, g.dtype)
    dx_lines, y_lines, g_lines = _lines(dx, axis), _lines(logarithms, axis), _lines(g, axis)

    def work(block: slice) -> None:
        g_block = widened(g_lines[block])
        d = np.exp(y_lines[block])
        d *= _sums(g_block)
        np.subtract(g_block, d, out=dx_lines[block], casting="same_kind")

    _for_blocks(y_lines, work)
    return (dx,)


# CUDA

SOURCE = cuda.Source("softmax.cu", cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)


def _launch(
    way: str, x: Any, args: Sequence[Any], axis: int, logarithm: bool, kept: int = 1
) -> None:
    """Run the kernel for rows, or for lines whose elements do not lie side by side."""
    n, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    lines, code = x.size // n, cuda.dtype_code(x.dtype)
    if inner == 1:
        grid, block = teams(lines, n)
        packs, shared_mem = room(n, block, x, kept)
        args = [*args, lines, n, logarithm, packs]
        SOURCE.launch(f"softmax_{way}", grid, block, args, shared_mem, GPUGRAD_DTYPE=code)
    else:
        args = [*args, lines, n, inner, logarithm]
        grid = (-(-lines // 32),)
        SOURCE.launch(f"softmax_lines_{way}", grid, (32, 8), args, GPUGRAD_DTYPE=code)


def _cuda_forward(x: Any, axis: int, logarithm: bool) -> tuple[Any, tuple]:
    x = backend.xp_of(x).ascontiguousarray(x)
    out = cuda.empty(x.shape, x.dtype, like=x)
    top, total = (cuda.empty(x.size // x.shape[axis], np.float32, like=x) for _ in range(2))
    _launch("forward", x, [x, out, top, total], axis, logarithm)
    return out, (top, total)


def _cuda_backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    axis: int,
    logarithm: bool,
) -> Sequence[Any]:
    x, g = (backend.xp_of(a).ascontiguousarray(a) for a in (arrays[0], g))
    dx = cuda.empty(x.shape, x.dtype, like=x)
    kept = 1 if logarithm else 2  # rows that are read twice
    _launch("backward", x, [x, g, *residuals, dx], axis, logarithm, kept)
    return (dx,)


def _by_kernels(logarithm: bool) -> Implementation:
    return Implementation(
        functools.partial(_cuda_forward, logarithm=logarithm),
        functools.partial(_cuda_backward, logarithm=logarithm),
        lambda x, axis: cuda.fits(x),
    )


# The definitions


def _cost(x: Any, axis: int) -> Cost:
    """Return what one call cannot do without: x read, out written; x and g read, dx written."""
    size = math.prod(x.shape)
    return Cost(2 * size * x.dtype.itemsize, 10 * size, 3 * size * x.dtype.itemsize, 12 * size)


_SAMPLES = (
    Sample((3, 4), axis=1),
    Sample((3, 4), axis=0),
    Sample((2, 3, 4), axis=1),
    Sample((5,), axis=0),
)


def _shift(x: Any, axis: int) -> Any:
    largest = max(x, axis=axis, keepdims=True).detach() if x.size else 0.0
    return x - where(largest == -math.inf, 0, largest)


def _nonzero_sum(x: Any, axis: int) -> Any:
    total = sum(x, axis=axis, keepdims=True)
    return where(total == 0, 1, total)


@fused(
    _SAMPLES,
    arguments=("x",),
    numpy=Implementation(_softmax_forward, _softmax_backward, unread=("x",), prepared=True),
    cuda=_by_kernels(logarithm=False),
    cost=_cost,
)
def _softmax(x, axis):
    powers = exp(_shift(widened(x), axis))
    return (powers / _nonzero_sum(powers, axis)).astype(x.dtype)


@fused(
    _SAMPLES,
    arguments=("x",),
    numpy=Implementation(_log_softmax_forward, _log_softmax_backward, unread=("x",), prepared=True),
    cuda=_by_kernels(logarithm=True),
    cost=_cost,
)
def _log_softmax(x, axis):
    shifted = _shift(widened(x), axis)
    return (shifted - log(_nonzero_sum(exp(shifted), axis))).astype(x.dtype)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """Return exp(x) divided by its sum along an axis: positive numbers that sum to 1.

    Any shape with that axis; the result has the dtype of x and is computed in at least float32.
    Where all of a line is -inf it is 0. Raises IndexError where there is no such axis.
    """
    x = floating(x)
    return _softmax(x, axis=normalize_axis(axis, x.ndim, "softmax: axis"))


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """Return the logarithm of softmax(x) along an axis, exact also where that underflows to 0.

    Any shape with that axis; the result has the dtype of x and is computed in at least float32.
    Where all of a line is -inf it is -inf. Raises IndexError where there is no such axis.
    """
    x = floating(x)
    return _log_softmax(x, axis=normalize_axis(axis, x.ndim, "log_softmax: axis"))
