"""A linear layer with a bias, out = x @ weight.T + bias.

On a GPU the products do the rest as well: the bias is added as the result is written, and the
gradient of the bias, a sum over the rows of g, comes with that of the weight. By NumPy the threads
share all three gradients at once. ``ops.linear`` is the same as a row of the registry, in which
every gradient is computed on its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend, cuda, openblas, ops
from ..cuda.column_sums import column_sums
from ..cuda.emulation import expected
from ..memory import empty
from ..ops import _products, asarray
from ..registry import Sample
from ..tensor import Tensor
from ._rows import as_rows
from .base import Cost, Implementation, fused

# NumPy


def pays(x: Any, weight: Any, *others: Any) -> bool:
    """Return whether the products of NumPy's arrays are large enough to be cut into pieces."""
    if x.size * weight.shape[0] < _products.WHOLE:
        return False
    alike = {a.dtype for a in (x, weight, *others) if a is not None}
    return len(alike) == 1 and x.dtype.itemsize != 2 and openblas.available()


def _forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, tuple]:
    out = _products.affine(as_rows(x), weight.T, bias)
    return out.reshape(*x.shape[:-1], len(weight)), ()


def _backward(
    wanted: tuple[bool, ...], g: np.ndarray, arrays: Sequence[Any], residuals: tuple
) -> Sequence[Any]:
    x, weight, _ = arrays
    rows, g_rows = as_rows(x), as_rows(g)
    made = [empty(a.shape, a.dtype) if w else None for a, w in zip(arrays, wanted, strict=True)]
    dx, of_weight, of_bias = made
    calls: list[Callable[[], Any]] = []
    if of_bias is not None:  # the least work: who takes one more has this one
        calls.append(lambda: np.copyto(of_bias, backend.total(np, g_rows, 0)))
    products = []
    if dx is not None:
        products.append(_products.pieces(g_rows, weight, as_rows(dx)))
    if of_weight is not None:
        products.append(_products.pieces(g_rows.T, rows, of_weight))
    _products.run(calls + _mixed(products))
    return made


def _mixed(lists: Sequence[Sequence[Callable[[], Any]]]) -> list[Callable[[], Any]]:
    """Return the calls of some lists so that every stretch has its share of each of them."""
    ranked = [((i + 0.5) / len(calls), call) for calls in lists for i, call in enumerate(calls)]
    return [call for _, call in sorted(ranked, key=operator.itemgetter(0))]


# CUDA


def as_matrix(x: Any) -> Any:
    """Return an array (..., C) as a C-contiguous matrix (N, C)."""
    return cuda.contiguous(x).reshape(-1, x.shape[-1])


def parameter_gradients(wanted: Sequence[bool], g: Any, x: Any, bias: Any) -> tuple[Any, Any]:
    """Return the gradients of weight and bias, those that are wanted, for x (N, in), g (N, out)."""
    if not wanted[0]:
        return None, column_sums(g, bias.dtype) if wanted[1] else None
    of_bias = cuda.empty(bias.shape, bias.dtype, like=g) if wanted[1] else None
    return cuda.gemm(g.mT, x, epilogue="bgrad" if wanted[1] else None, bias=of_bias), of_bias


def _cuda_forward(x: Any, weight: Any, bias: Any) -> tuple[Any, tuple]:
    out = cuda.gemm(as_matrix(x), weight.mT, epilogue="bias", bias=cuda.contiguous(bias))
    return out.reshape(*x.shape[:-1], len(weight)), ()


def _cuda_backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple
) -> Sequence[Any]:
    x, weight, bias = arrays
    g = as_matrix(g)
    dx = cuda.gemm(g, weight).reshape(x.shape) if wanted[0] else None
    return dx, *parameter_gradients(wanted[1:], g, as_matrix(x), bias)


# The definition


def _cost(x: Any, weight: Any, bias: Any) -> Cost:
    """Return what one call cannot do without; the bias counts for nothing."""
    rows, size = math.prod(x.shape[:-1]), x.dtype.itemsize
    out, features = weight.shape
    moved = (rows * (features + out) + out * features) * size
    flops = 2 * rows * out * features
    return Cost(moved, flops, moved + (rows + out) * features * size, 2 * flops)


@fused(
    [
        Sample((3, 4), (5, 4), (5,)),
        Sample((2, 3, 4), (1, 4), (1,)),
        Sample((4,), (2, 4), (2,)),
    ],
    arguments=("x", "weight", "bias"),
    numpy=Implementation(_forward, _backward, pays, unread=("bias",), prepared=True),
    cuda=Implementation(_cuda_forward, _cuda_backward, cuda.fits),
    cost=_cost,
    needs={"x": ("weight",), "weight": ("x",), "bias": ()},
)
def _affine(x, weight, bias):
    return ops.linear(x, weight, bias)


def affine(x: Any, weight: Any, bias: Any) -> Tensor:
    """Return x @ weight.T + bias: x (..., in), weight (out, in), bias (out), result (..., out).

    Raises ValueError naming the shapes that do not fit.
    """
    x, weight, bias = asarray(x), asarray(weight), asarray(bias)
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or bias.shape != weight.shape[:1]:
        return ops.linear(x, weight, bias)  # which says what is wrong
    if x._data.__class__ is np.ndarray and not pays(x, weight) and not expected():
        return ops.linear(x, weight, bias)  # the common case on a CPU, without a detour
    return _affine(x, weight, bias)
