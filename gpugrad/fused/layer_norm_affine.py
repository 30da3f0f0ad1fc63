"""Layer normalisation and the linear layer behind it: the way into attention.

    out = layer_norm(h) @ weight.T + bias,   h = x + residual

By NumPy the rows go from one to the other while they are in the cache, and what the norm makes of
them is not kept but made again on the way back. Kernels take both one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import cuda
from ..ops import asarray, linear
from ..registry import Sample
from ..tensor import Tensor
from . import _affine_numpy, _rows
from ._arguments import nonnegative
from ._layer_norm_numpy import Backward, Forward
from ._row_parts import pays
from .affine import affine
from .base import Implementation, fused
from .layer_norm import layer_norm

# NumPy


def fits(x: Any, norm_weight: Any, norm_bias: Any, residual: Any, *layers: Any) -> bool:
    """Return whether a norm of x and the layers behind it, each a weight and a bias, are one by
    NumPy: the shapes are right, and it pays. Where all rows fit into a cache, it does not.
    """
    features = x.shape[-1:]
    if x.size < _rows.ALONE or any(
        p is not None and p.shape != features for p in (norm_weight, norm_bias)
    ):
        return False
    if residual is not None and residual.shape != x.shape:
        return False
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if weight.ndim != 2 or weight.shape[1:] != features:
            return False
        features = weight.shape[:1]
        if bias is not None and bias.shape != features:
            return False
    return pays(x, *layers, norm_weight, norm_bias, residual) and not cuda.emulated()


def _forward(
    x: np.ndarray,
    norm_weight: np.ndarray | None,
    norm_bias: np.ndarray | None,
    residual: np.ndarray | None,
    weight: np.ndarray,
    bias: np.ndarray | None,
    eps: float,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple]:
    norm = Forward(x, norm_weight, norm_bias, residual, eps)
    out = _affine_numpy.forward(norm, weight, bias)
    return (out, norm.h), (norm.rows, norm.averages, norm.scales)


def _backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: Any, eps: float
) -> Sequence[Any]:
    x, norm_weight, norm_bias, _, weight, _ = arrays
    g, g_h = g
    if g is None:
        return g_h, None, None, g_h, None, None
    of = wanted[0] or wanted[3], wanted[1], wanted[2]
    norm = Backward(of, residuals, norm_weight, norm_bias, x.shape, g_h)
    found = _affine_numpy.backward((any(of), *wanted[4:]), norm, g, weight)
    return *norm.gradients(), *found


# The definition


@fused(
    [
        Sample((3, 4), (4,), (4,), (3, 4), (5, 4), (5,), eps=1e-5),
        Sample((2, 3, 4), (4,), None, (2, 3, 4), (5, 4), None, eps=0.1),
        Sample((4,), None, None, (4,), (2, 4), (2,), eps=1e-5),
    ],
    arguments=("x", "norm_weight", "norm_bias", "residual", "weight", "bias"),
    numpy=Implementation(
        _forward,
        _backward,
        lambda *arrays, eps: fits(*arrays),
        unread=("x", "residual", "bias"),
        prepared=True,
    ),
)
def _layer_norm_affine(x, norm_weight, norm_bias, residual, weight, bias, eps):
    normalized, h = layer_norm(x, norm_weight, norm_bias, residual, eps, paired=True)
    return linear(normalized, weight) if bias is None else affine(normalized, weight, bias), h


def layer_norm_affine(
    x: Any,
    norm_weight: Any,
    norm_bias: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Return layer_norm(h) @ weight.T + bias and h, which is x + residual, or x without one.

    x and residual: (..., C), weight (out, C), bias (out) or None, the first result (..., out).
    Norm, dtypes and errors are those of ``layer_norm`` and ``affine``: two operations where there
    are few rows, on a GPU, and for other dtypes than float32 and float64.
    """
    given = x, norm_weight, norm_bias, residual, weight, bias
    tensors = [None if a is None else asarray(a) for a in given]
    return _layer_norm_affine(*tensors, eps=nonnegative("layer_norm_affine", "eps", eps))
