"""Layer normalisation, with an optional residual added first.

    out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias,   h = x + residual

over the last axis, with the biased variance (Ba, Kiros, Hinton: Layer Normalization, 2016).
With z the normalised h and u = g * weight, the gradient of h is
(u - mean(u) - z * mean(u * z)) / sqrt(var(h) + eps), and what reaches h past the norm added to it:
a residual stream that goes on is a second result, so that both gradients meet in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..memory import empty
from ..ops import mean, rsqrt
from ..registry import Sample
from ..tensor import Tensor
from . import _layer_norm_numpy
from ._arguments import features, nonnegative, parameter, with_residual
from ._norms import Norm, cost, fits
from ._rows import as_rows, few, for_blocks, widened
from .base import Implementation, fused

# NumPy


def _forward(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    eps: float,
    paired: bool = False,
) -> tuple[Any, tuple]:
    if few(x, weight, bias, residual):
        with np.errstate(all="ignore"):
            out, h, kept = _layer_norm_numpy.few_rows(x, weight, bias, residual, eps)
        return ((out, h) if paired or residual is not None else out), kept
    norm, out = _layer_norm_numpy.Forward(x, weight, bias, residual, eps), empty(x.shape, x.dtype)
    out_rows = as_rows(out)
    with np.errstate(all="ignore"):
        for_blocks(norm.rows, lambda part: norm.write(part, out_rows[part]), light=True)
    outs = (out, norm.h) if paired or residual is not None else out
    return outs, (norm.rows, norm.averages, norm.scales)


def _backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    eps: float,
    paired: bool = False,
) -> Sequence[Any]:
    x, weight, bias, residual = arrays
    g, g_h = g if paired or residual is not None else (g, None)
    if g is None:
        return g_h, None, None, g_h
    of = wanted[0] or wanted[3], wanted[1], wanted[2]
    norm = _layer_norm_numpy.Backward(of, residuals, weight, bias, x.shape, g_h)
    g_rows = as_rows(g)
    for_blocks(norm.rows, lambda part: norm.add(part, g_rows[part]), light=True)
    return norm.gradients()


# CUDA

_KERNELS = Norm("layer_norm", centred=True)


def _cuda_forward(
    x: Any, weight: Any, bias: Any, residual: Any, eps: float, paired: bool = False
) -> tuple[Any, tuple]:
    out, kept = _KERNELS.forward(x, weight, bias, residual, eps)
    return ((out, x) if paired and residual is None else out), kept


def _cuda_backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    eps: float,
    paired: bool = False,
) -> Sequence[Any]:
    x, weight, _, residual = arrays
    g, g_h = g if paired or residual is not None else (g, None)
    if g is None:
        return g_h, None, None, g_h
    of_h = wanted[0] or wanted[3], wanted[1], wanted[2]
    dh, dweight, dbias = _KERNELS.backward(of_h, g, g_h, weight, residuals)
    dh = dh if dh is None else dh.reshape(x.shape)
    return dh, dweight, dbias, dh


# The definition


@fused(
    [
        Sample((3, 4), (4,), (4,), None, eps=1e-5),
        Sample((2, 3, 5), (5,), (5,), (2, 3, 5), eps=1e-5),
        Sample((3, 4), None, None, None, eps=0.1),
        Sample((3, 4), None, (4,), (3, 4), eps=0.0),
    ],
    arguments=("x", "weight", "bias", "residual"),
    numpy=Implementation(_forward, _backward, unread=("x", "residual"), prepared=True),
    cuda=Implementation(_cuda_forward, _cuda_backward, fits),
    cost=lambda x, weight, bias, residual, eps, paired=False: cost(x, residual, 8, 14),
)
def _layer_norm(x, weight, bias, residual, eps, paired=False):
    h = x if residual is None else x + residual
    wide = widened(h)
    centred = wide - mean(wide, axis=-1, keepdims=True)
    out = centred * rsqrt(mean(centred * centred, axis=-1, keepdims=True) + eps)
    if weight is not None:
        out = out * weight.astype(wide.dtype)
    if bias is not None:
        out = out + bias.astype(wide.dtype)
    out = out.astype(h.dtype)
    return (out, h) if paired or residual is not None else out


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    residual: Any = None,
    eps: float = 1e-5,
    *,
    paired: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return x normalised over its last axis, times weight plus bias.

    x: (..., C); weight and bias: (C,). With a residual of the shape of x, the sum x + residual is
    normalised, and the result is the pair of normalised sum and sum. ``paired`` gives a pair also
    without a residual, its second being x: who goes on with x from there, beside the norm, saves
    the pass that adds two gradients. Results have the dtype of x (and residual), mean and variance
    at least float32. Raises ValueError where shapes do not fit.
    """
    x, residual = with_residual("layer_norm", features("layer_norm", x), residual)
    weight = parameter("layer_norm", "weight", weight, x)
    bias = parameter("layer_norm", "bias", bias, x)
    eps = nonnegative("layer_norm", "eps", eps)
    return _layer_norm(x, weight, bias, residual, eps=eps, paired=paired)
