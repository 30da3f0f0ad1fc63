"""Rotary positions: pairs of features turned by angles that grow with the position.

    out = (a cos - b sin, b cos + a sin)    for the halves a and b of the features

with the cosines and sines of a position's row in two tables (Su et al., "RoFormer", 2021; pairs of
halves rather than neighbours, as GPT-NeoX and Llama have). The gradient is turned back: the same
with -sin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, cuda
from ..memory import empty
from ..ops import asarray, concat
from ..registry import Sample, describe
from ..tensor import Tensor
from ._arguments import floating
from ._rows import wide_dtype, widened
from .base import Cost, Implementation, fused

# NumPy


def _turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, start: int, sign: int) -> np.ndarray:
    wide = wide_dtype(backend.promote(x.dtype, cos.dtype))
    length, half = x.shape[-2], x.shape[-1] // 2
    cos, sin = (t[start : start + length].astype(wide, copy=False) for t in (cos, sign * sin))
    # whole rows at once: the halves alone are short, and NumPy begins anew for each
    same, other = np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)
    swapped = empty(x.shape, wide)
    swapped[..., :half], swapped[..., half:] = x[..., half:], x[..., :half]
    with np.errstate(all="ignore"):
        out = np.multiply(x, same, out=empty(x.shape, wide))
        swapped *= other
        out += swapped
    return out.astype(x.dtype, copy=False)


# CUDA

SOURCE = cuda.Source("rotary.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)

_THREADS = 256  # THREADS and ROWS in the kernel
_ROWS = 4


def _cuda_turned(x: Any, cos: Any, sin: Any, start: int, sign: int) -> Any:
    length, half = x.shape[-2], x.shape[-1] // 2
    out = cuda.empty(x.shape, x.dtype, like=x)
    x = _with_four_axes(x)
    batches, heads = x.shape[:2]
    tiles = -(-length * -(-half // (16 // x.itemsize)) // _THREADS)
    grid = tiles * -(-batches * heads // _ROWS)
    tables = cuda.contiguous(cos), cuda.contiguous(sin)
    strides = [n // x.itemsize for n in x.strides[:3]]
    args = (*tables, out, *strides, start, batches, heads, length, half, sign)
    code = cuda.dtype_code(x.dtype)
    SOURCE.launch("rotary", (grid,), (_THREADS,), (cuda.strided(x), *args), GPUGRAD_DTYPE=code)
    return out


def _with_four_axes(x: Any) -> Any:
    """Return x as (B, H, T, D) whose rows are contiguous, without a copy where there may be none.

    Queries and keys are cut out of a packed projection: copying them first would cost as much as
    turning them.
    """
    steps = [n for n, size in zip(x.strides, x.shape, strict=True) if size > 1]
    spread = any(n <= 0 or n % x.itemsize for n in steps)  # also broadcast or reversed
    if spread or x.ndim > 4 or (x.shape[-1] > 1 and x.strides[-1] != x.itemsize):
        x = cuda.contiguous(x)
    if x.ndim > 4:
        return x.reshape(1, math.prod(x.shape[:-2]), *x.shape[-2:])
    return x[(None,) * (4 - x.ndim)]


# The definition


def _cost(x: Any, *tables: Any, **statics: Any) -> Cost:
    """Return what one call cannot do without; the tables are shared by all batches and heads."""
    size = math.prod(x.shape)
    moved, operations = 2 * size * x.dtype.itemsize, 3 * size
    return Cost(moved, operations, moved, operations)


def _forward_of(turned: Any) -> Any:
    return lambda x, cos, sin, start: (turned(x, cos, sin, start, 1), ())


def _backward_of(turned: Any) -> Any:
    def backward(
        wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple, start: int
    ) -> Sequence[Any]:
        return turned(g, *arrays[1:], start, -1), None, None

    return backward


@fused(
    [
        Sample((2, 3, 4, 6), (4, 3), (4, 3), start=0),
        Sample((3, 2), (5, 1), (5, 1), start=2),
    ],
    arguments=("x", "cos", "sin"),
    differentiable=("x",),
    numpy=Implementation(_forward_of(_turned), _backward_of(_turned)),
    cuda=Implementation(
        _forward_of(_cuda_turned),
        _backward_of(_cuda_turned),
        lambda x, cos, sin, start: cuda.fits(x, cos, sin) and math.prod(x.shape[-2:]) < 2**31,
    ),
    cost=_cost,
)
def _rotary(x, cos, sin, start):
    wide, half, rows = widened(x), x.shape[-1] // 2, slice(start, start + x.shape[-2])
    cos, sin = widened(cos[rows]), widened(sin[rows])
    a, b = wide[..., :half], wide[..., half:]
    return concat([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rotary(x: Any, cos: Any, sin: Any, start: int = 0) -> Tensor:
    """Return x with features i and i + D/2 of position t turned by the angle of row start + t.

    x: (..., T, D) with D even; cos and sin, the angles' cosines and sines: (length, D/2), which get
    no gradient. The result has the dtype of x and is computed in at least float32. Raises
    ValueError where shapes do not fit, positions lie beyond the tables, or these require grad.
    """
    x, cos, sin = floating(x), asarray(cos), asarray(sin)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"rotary: x must be (..., T, D) with D even, got {describe(x)}")
    length, half = x.shape[-2], x.shape[-1] // 2
    if cos.ndim != 2 or cos.shape[1] != half or sin.shape != cos.shape or sin.dtype != cos.dtype:
        raise ValueError(
            f"rotary: cos and sin must be alike and (length, {half}), got {describe(cos)} and "
            f"{describe(sin)}"
        )
    if not 0 <= start <= cos.shape[0] - length:
        raise ValueError(
            f"rotary: positions {start} to {start + length - 1} are not all among the "
            f"{cos.shape[0]} of the tables"
        )
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("rotary: cos and sin get no gradient; pass them detached")
    return _rotary(x, cos, sin, start=start)
