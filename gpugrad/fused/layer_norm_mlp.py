"""The second half of a transformer block: layer normalisation, and the perceptron behind it.

    out = mlp(layer_norm(h)),   h = x + residual

By NumPy the rows go from one to the other while they are in the cache, and what the norm makes of
them is not kept but made again on the way back. Kernels take both one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ops import asarray
from ..registry import Sample
from ..tensor import Tensor
from . import _mlp_numpy
from ._arguments import nonnegative
from ._layer_norm_numpy import Backward, Forward
from .base import Implementation, fused
from .gelu import checked
from .layer_norm import layer_norm
from .layer_norm_affine import fits
from .mlp import mlp

# NumPy


def _forward(
    x: np.ndarray,
    norm_weight: np.ndarray | None,
    norm_bias: np.ndarray | None,
    residual: np.ndarray | None,
    up: np.ndarray,
    up_bias: np.ndarray | None,
    down: np.ndarray,
    down_bias: np.ndarray | None,
    eps: float,
    approximate: str,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple]:
    norm = Forward(x, norm_weight, norm_bias, residual, eps)
    layers = up, up_bias, down, down_bias
    out, kept = _mlp_numpy.forward(norm.h, *layers, approximate, norm)
    return (out, norm.h), (norm.rows, norm.averages, norm.scales, *kept)


def _backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    eps: float,
    approximate: str,
) -> Sequence[Any]:
    x, norm_weight, norm_bias, _, *layers = arrays
    g, g_h = g
    if g is None:
        return g_h, None, None, g_h, None, None, None, None
    rows, averages, scales, hidden = residuals
    of = wanted[0] or wanted[3], wanted[1], wanted[2]
    norm = Backward(of, (rows, averages, scales), norm_weight, norm_bias, x.shape, g_h)
    of_layers = (any(of), *wanted[4:])
    found = _mlp_numpy.backward(of_layers, g, (x, *layers), (hidden,), approximate, norm)
    return *norm.gradients(), *found[1:]


# The definition

_tanh: dict[str, Any] = {"eps": 1e-5, "approximate": "tanh"}
_exact: dict[str, Any] = {"eps": 0.1, "approximate": "none"}


@fused(
    [
        Sample((3, 4), (4,), (4,), (3, 4), (5, 4), (5,), (3, 5), (3,), **_tanh),
        Sample((2, 3, 4), (4,), None, (2, 3, 4), (5, 4), None, (4, 5), None, **_exact),
    ],
    arguments=(
        "x",
        "norm_weight",
        "norm_bias",
        "residual",
        "up_weight",
        "up_bias",
        "down_weight",
        "down_bias",
    ),
    numpy=Implementation(
        _forward,
        _backward,
        lambda *arrays, **statics: fits(*arrays),
        unread=("x", "residual", "up_bias", "down_bias"),
        prepared=True,
    ),
)
def _layer_norm_mlp(x, norm_weight, norm_bias, residual, *layers, eps, approximate):
    normalized, h = layer_norm(x, norm_weight, norm_bias, residual, eps, paired=True)
    return mlp(normalized, *layers, approximate=approximate), h


def layer_norm_mlp(
    x: Any,
    norm_weight: Any,
    norm_bias: Any,
    residual: Any,
    up_weight: Any,
    up_bias: Any,
    down_weight: Any,
    down_bias: Any,
    eps: float = 1e-5,
    approximate: str = "none",
) -> tuple[Tensor, Tensor]:
    """Return mlp(layer_norm(h)) and h, which is x + residual, or x without one.

    x and residual: (..., C); the other arguments, the first result, dtypes and errors are those of
    ``layer_norm`` and ``mlp``: two operations where there are few rows, on a GPU, and for other
    dtypes than float32 and float64.
    """
    given = x, norm_weight, norm_bias, residual, up_weight, up_bias, down_weight, down_bias
    tensors = [None if a is None else asarray(a) for a in given]
    eps = nonnegative("layer_norm_mlp", "eps", eps)
    return _layer_norm_mlp(*tensors, eps=eps, approximate=checked("layer_norm_mlp", approximate))
