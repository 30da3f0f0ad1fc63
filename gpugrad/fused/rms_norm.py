"""Root-mean-square normalisation, with an optional residual added first.

    out = h / sqrt(mean(h * h) + eps) * weight,   h = x + residual

over the last axis (Zhang, Sennrich: Root Mean Square Layer Normalization, 2019). With z the
normalised h and u = g * weight, the gradient of h is
(u - z * mean(u * z)) / sqrt(mean(h * h) + eps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..memory import empty
from ..ops import mean, rsqrt
from ..prepared import once
from ..registry import Sample
from ..tensor import Tensor
from ._arguments import features, nonnegative, parameter, with_residual
from ._norms import Norm, cost, fits
from ._rows import (
    ColumnSums,
    as_rows,
    for_blocks,
    ones,
    reshaped,
    scratch,
    wide_block,
    wide_dtype,
    widened,
)
from .base import Implementation, fused

# NumPy


def _forward(
    x: np.ndarray, weight: np.ndarray | None, residual: np.ndarray | None, eps: float
) -> tuple[Any, tuple]:
    wide, n = wide_dtype(x.dtype), x.shape[-1]
    h, out = x if residual is None else empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    h_rows, out_rows = as_rows(h), as_rows(out)
    x_rows, residual_rows = as_rows(x), None if residual is None else as_rows(residual)
    weight = weight if weight is None else reshaped(weight, weight.shape, wide)
    scales = empty(len(h_rows), wide)

    def work(part: slice) -> None:
        scale = scales[part]
        if residual_rows is not None:
            np.add(x_rows[part], residual_rows[part], out=h_rows[part])
        y, block = out_rows[part], h_rows[part]
        if out.dtype != wide:
            y = block = wide_block(block, scratch(part, h_rows, wide)[0])
        np.vecdot(block, block, out=scale)
        scale /= n
        scale += eps
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        np.multiply(block, scale[:, None], out=y)
        if weight is not None:
            y *= weight
        if out.dtype != wide:
            out_rows[part] = y

    with np.errstate(all="ignore"):
        for_blocks(h_rows, work, light=True)
    return (out if residual is None else (out, h)), (h_rows, scales)


def _backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple, eps: float
) -> Sequence[Any]:
    x, weight, residual = arrays
    h_rows, scales = residuals
    g, g_h = (g, None) if residual is None else g
    if g is None:
        return g_h, None, g_h
    wide, n = wide_dtype(x.dtype), x.shape[-1]
    dh = empty(x.shape, x.dtype) if wanted[0] or wanted[2] else None
    dweight = ColumnSums(h_rows, wide) if wanted[1] else None
    g_rows, g_h_rows = as_rows(g), None if g_h is None else as_rows(g_h)
    dh_rows = None if dh is None else as_rows(dh)
    factor = ones(n, wide) if weight is None else reshaped(weight, weight.shape, wide)
    share = empty((n,), wide)
    once(lambda: np.divide(factor, n, out=share))

    def work(part: slice) -> None:
        z, d, spare = scratch(part, h_rows, wide, 3)
        scale, h_block = scales[part], wide_block(h_rows[part], z)
        g_block = wide_block(g_rows[part], spare)
        if dh_rows is not None and dh_rows.dtype == wide:
            d = dh_rows[part]
        np.multiply(g_block, h_block, out=d)
        if dweight is not None:
            dweight.add(d, part, scale)
        if dh_rows is None:
            return
        slope = np.dot(d, share)  # mean(u * h)
        slope *= scale
        slope *= scale
        np.multiply(h_block, slope[:, None], out=z)  # z * mean(u * z) is this times scale
        np.multiply(g_block, factor, out=d)
        d -= z
        d *= scale[:, None]
        if g_h_rows is not None:
            d += g_h_rows[part]
        if dh_rows.dtype != wide:
            dh_rows[part] = d

    for_blocks(h_rows, work, light=True)
    return dh, None if dweight is None else dweight.total(weight.dtype), dh


# CUDA

_KERNELS = Norm("rms_norm", centred=False)


def _cuda_forward(x: Any, weight: Any, residual: Any, eps: float) -> tuple[Any, tuple]:
    return _KERNELS.forward(x, weight, None, residual, eps)


def _cuda_backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple, eps: float
) -> Sequence[Any]:
    x, weight, residual = arrays
    g, g_h = (g, None) if residual is None else g
    if g is None:
        return g_h, None, g_h
    of_h = wanted[0] or wanted[2], wanted[1], False
    dh, dweight, _ = _KERNELS.backward(of_h, g, g_h, weight, residuals)
    dh = dh if dh is None else dh.reshape(x.shape)
    return dh, dweight, dh


# The definition


@fused(
    [
        Sample((3, 4), (4,), None, eps=1e-6),
        Sample((2, 3, 5), (5,), (2, 3, 5), eps=1e-6),
        Sample((3, 4), None, None, eps=0.1),
        Sample((3, 4), None, (3, 4), eps=0.0),
    ],
    arguments=("x", "weight", "residual"),
    numpy=Implementation(_forward, _backward, unread=("x", "residual"), prepared=True),
    cuda=Implementation(_cuda_forward, _cuda_backward, fits),
    cost=lambda x, weight, residual, eps: cost(x, residual, 4, 10),
)
def _rms_norm(x, weight, residual, eps):
    h = x if residual is None else x + residual
    wide = widened(h)
    out = wide * rsqrt(mean(wide * wide, axis=-1, keepdims=True) + eps)
    if weight is not None:
        out = out * weight.astype(wide.dtype)
    out = out.astype(h.dtype)
    return out if residual is None else (out, h)


def rms_norm(
    x: Any, weight: Any = None, residual: Any = None, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """Return x divided by the root of its mean square over the last axis, times weight.

    x: (..., C); weight: (C,). With a residual of the shape of x, the sum x + residual is
    normalised, and the result is the pair of normalised sum and sum. Results have the dtype of x
    (and residual), the mean square at least float32. Raises ValueError where shapes do not fit.
    """
    x, residual = with_residual("rms_norm", features("rms_norm", x), residual)
    weight = parameter("rms_norm", "weight", weight, x)
    return _rms_norm(x, weight, residual, eps=nonnegative("rms_norm", "eps", eps))
