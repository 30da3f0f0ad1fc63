"""The perceptron of a transformer block: two linear layers around GELU.

    out = gelu(x @ up_weight.T + up_bias) @ down_weight.T + down_bias

On a GPU that is two matrix products forward and four backward, and nothing else: cublasLt adds the
biases, applies GELU and its derivative, and sums the gradients of the biases as it goes. It knows
GELU by tanh only; the exact form takes the kernels of ``gelu`` between the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import cuda
from ..ops import asarray, linear
from ..registry import Sample, describe
from ..tensor import Tensor
from . import _gelu_cuda, _mlp_numpy
from ._row_parts import pays
from .affine import as_matrix, parameter_gradients
from .base import Cost, Implementation, fused
from .gelu import bias_gelu, checked, gelu

# CUDA


def _cuda_forward(
    x: Any, up_weight: Any, up_bias: Any, down_weight: Any, down_bias: Any, approximate: str
) -> tuple[Any, tuple]:
    """Return the result, and for the backward the hidden layer before and after GELU.

    Before GELU is with the bias if GELU is by tanh, without it if it is exact.
    """
    rows, up_bias, down_bias = as_matrix(x), cuda.contiguous(up_bias), cuda.contiguous(down_bias)
    if approximate == "tanh":
        before, after = (cuda.empty((len(rows), len(up_weight)), x.dtype, like=x) for _ in range(2))
        cuda.gemm(rows, up_weight.mT, after, epilogue="gelu", bias=up_bias, aux=before)
    else:
        before = cuda.gemm(rows, up_weight.mT)
        after, _ = _gelu_cuda.forward(before, up_bias, approximate)
    epilogue = None if down_bias is None else "bias"
    out = cuda.gemm(after, down_weight.mT, epilogue=epilogue, bias=down_bias)
    return out.reshape(*x.shape[:-1], len(down_weight)), (before, after)


def _cuda_backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    approximate: str,
) -> Sequence[Any]:
    x, up_weight, up_bias, down_weight, down_bias = arrays
    before, after = residuals
    g = as_matrix(g)
    of_down = parameter_gradients(wanted[3:], g, after, down_bias)
    if not any(wanted[:3]):
        return None, None, None, *of_down
    of_bias = cuda.empty(up_bias.shape, up_bias.dtype, like=g) if wanted[2] else None
    if approximate == "tanh":
        d = cuda.empty(before.shape, before.dtype, like=before)
        epilogue = "dgelu_bgrad" if wanted[2] else "dgelu"
        cuda.gemm(g, down_weight, d, epilogue=epilogue, bias=of_bias, aux=before)
    else:
        args = (True, wanted[2]), cuda.gemm(g, down_weight), (before, up_bias), ()
        d, of_bias = _gelu_cuda.backward(*args, approximate)
    of_weight, _ = parameter_gradients((wanted[1], False), d, as_matrix(x), None)
    dx = cuda.gemm(d, up_weight).reshape(x.shape) if wanted[0] else None
    return dx, of_weight, of_bias, *of_down


# The definition


def _cost(
    x: Any, up_weight: Any, up_bias: Any, down_weight: Any, down_bias: Any, approximate: str
) -> Cost:
    """Return what one call cannot do without; the biases count for nothing.

    Forward writes the hidden layer before and after GELU, backward reads both.
    """
    rows, size = math.prod(x.shape[:-1]), x.dtype.itemsize
    (hidden, features), out = up_weight.shape, down_weight.shape[0]
    ends, weights = rows * (features + out), hidden * (features + out)
    moved = (ends + weights + 2 * rows * hidden) * size
    again = (ends + rows * features + 2 * weights + 2 * rows * hidden) * size
    return Cost(moved, 2 * rows * weights, again, 4 * rows * weights)


@fused(
    [
        Sample((2, 3, 4), (5, 4), (5,), (3, 5), (3,), approximate="tanh"),
        Sample((3, 4), (6, 4), (6,), (4, 6), (4,), approximate="none"),
        Sample((3, 4), (8, 4), None, (4, 8), None, approximate="tanh"),
        Sample((4,), (5, 4), None, (2, 5), (2,), approximate="none"),
    ],
    arguments=("x", "up_weight", "up_bias", "down_weight", "down_bias"),
    numpy=Implementation(
        _mlp_numpy.forward,
        _mlp_numpy.backward,
        lambda *arrays, approximate: pays(*arrays),
        unread=("up_bias", "down_bias"),
        prepared=True,
    ),
    cuda=Implementation(_cuda_forward, _cuda_backward, lambda *a, approximate: cuda.fits(*a)),
    cost=_cost,
)
def _mlp(x, up_weight, up_bias, down_weight, down_bias, approximate):
    hidden = linear(x, up_weight)
    if up_bias is None:
        hidden = gelu(hidden, approximate)
    else:
        hidden = bias_gelu(hidden, up_bias, approximate)
    return linear(hidden, down_weight, down_bias)


def mlp(
    x: Any,
    up_weight: Any,
    up_bias: Any,
    down_weight: Any,
    down_bias: Any,
    approximate: str = "none",
) -> Tensor:
    """Return gelu(x @ up_weight.T + up_bias) @ down_weight.T + down_bias.

    x: (..., C); up_weight (H, C), up_bias (H,) or None, down_weight (D, H), down_bias (D,) or None;
    the result is (..., D). ``approximate`` as in gelu. Raises ValueError naming the shapes that do
    not fit.
    """
    x, up, down = asarray(x), asarray(up_weight), asarray(down_weight)
    if (
        up.ndim != 2
        or down.ndim != 2
        or x.shape[-1:] != up.shape[1:]
        or down.shape[1:] != up.shape[:1]
    ):
        raise ValueError(
            f"mlp: x {describe(x)}, up_weight {describe(up)} and down_weight {describe(down)} do "
            "not fit: they must be (..., C), (H, C) and (D, H)"
        )
    biases = []
    for name, bias, weight in (("up_bias", up_bias, up), ("down_bias", down_bias, down)):
        bias = None if bias is None else asarray(bias)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"mlp: {name} {describe(bias)} must have shape {weight.shape[:1]}, one number for "
                f"each row of its weight {describe(weight)}"
            )
        biases.append(bias)
    checked("mlp", approximate)
    if x._data.__class__ is np.ndarray and not pays(x, up) and not cuda.emulated():
        return _mlp.spec(x, up, biases[0], down, biases[1], approximate)  # without a detour
    return _mlp(x, up, biases[0], down, biases[1], approximate=approximate)
