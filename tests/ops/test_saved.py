"""The golden table of what each operation keeps for backward, argument by argument.

A name is an argument or ``out`` (an array), a keyword, or a shape, which costs nothing. A change
here is a change of the memory a training step needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.registry import OPS

SAVED = {
    "negative": {"x": ""},
    "positive": {"x": ""},
    "abs": {"x": "x"},
    "sign": {"x": ""},
    "floor": {"x": ""},
    "ceil": {"x": ""},
    "trunc": {"x": ""},
    "round": {"x": ""},
    "square": {"x": "x"},
    "reciprocal": {"x": "out"},
    "sqrt": {"x": "out"},
    "rsqrt": {"x": "x out"},
    "exp": {"x": "out"},
    "exp2": {"x": "out"},
    "expm1": {"x": "out"},
    "log": {"x": "x"},
    "log1p": {"x": "x"},
    "log2": {"x": "x"},
    "log10": {"x": "x"},
    "sin": {"x": "x"},
    "cos": {"x": "x"},
    "tan": {"x": "out"},
    "sinh": {"x": "x"},
    "cosh": {"x": "x"},
    "tanh": {"x": "out"},
    "asin": {"x": "x"},
    "acos": {"x": "x"},
    "atan": {"x": "x"},
    "asinh": {"x": "x"},
    "acosh": {"x": "x"},
    "atanh": {"x": "x"},
    "sigmoid": {"x": "out"},
    "softplus": {"x": "x"},
    "relu": {"x": "out"},
    "erf": {"x": "x"},
    "add": {"x": "", "y": ""},
    "subtract": {"x": "", "y": ""},
    "multiply": {"x": "y", "y": "x"},
    "divide": {"x": "y", "y": "y out"},
    "dropout": {"x": "p draw"},
    "dropout_add": {"x": "p draw", "residual": ""},
    "power": {"x": "x y", "y": "x out"},
    "maximum": {"x": "x y", "y": "x y"},
    "minimum": {"x": "x y", "y": "x y"},
    "atan2": {"x": "x y", "y": "x y"},
    "hypot": {"x": "x out", "y": "y out"},
    "logaddexp": {"x": "x y", "y": "x y"},
    "remainder": {"x": "", "y": "x y"},
    "fmod": {"x": "", "y": "x y"},
    "floor_divide": {"x": "", "y": ""},
    "where": {"x": "condition", "y": "condition"},
    "clip": {"x": "x min max", "min": "x min max", "max": "x min max"},
    "astype": {"x": "x_dtype"},
    "to_device": {"x": "x_device"},
    "copy": {"x": ""},
    "reshape": {"x": "x_shape"},
    "permute_dims": {"x": "axes"},
    "broadcast_to": {"x": ""},
    "flip": {"x": "axis"},
    "roll": {"x": "shift axis"},
    "tril": {"x": "k"},
    "triu": {"x": "k"},
    "pad": {"x": "pad_width out_shape"},
    "getitem": {"x": "index x_shape"},
    "scatter": {"x": "index x_shape"},
    "getitem_view": {"x": "index x_shape"},
    "put": {"x": "index", "value": "index value_shape"},
    "repeat_each": {"x": "repeats axis x_shape"},
    "sum": {"x": "axis keepdims x_shape"},
    "mean": {"x": "axis keepdims x_shape"},
    "prod": {"x": "x out axis keepdims"},
    "max": {"x": "x out axis keepdims"},
    "min": {"x": "x out axis keepdims"},
    "var": {"x": "x axis correction keepdims"},
    "std": {"x": "x out axis correction keepdims"},
    "norm": {"x": "x out axis keepdims"},
    "logsumexp": {"x": "x out axis keepdims"},
    "cumulative_sum": {"x": "axis"},
    "cumulative_prod": {"x": "x out axis"},
    "matmul": {"x": "y", "y": "x"},
    "linear": {"x": "weight x_shape", "weight": "x", "bias": ""},
}


def test_the_table_is_complete() -> None:
    assert set(SAVED) == {op.name for op in OPS.values() if op.rules}


@pytest.mark.parametrize("name", SAVED)
def test_saved_names(name: str) -> None:
    op = OPS[name]
    found = {op.arguments[i]: " ".join(op.pullback((i,)).slots) for i in op.able}
    assert found == SAVED[name]


def alive_after(function: Callable[[gg.Tensor], gg.Tensor]) -> set[str]:
    """Return which of the arrays x and out outlive their tensors as long as the node lives."""
    x = gg.tensor(np.linspace(0.1, 0.9, 5), requires_grad=True)
    middle = x + 1.0  # not a leaf, so nobody but the node keeps its array
    out = function(middle)
    node = out._node
    watched = {"x": weakref.ref(middle.data), "out": weakref.ref(out.data)}
    del middle, out
    alive = {name for name, array in watched.items() if array() is not None}
    assert node is not None
    return alive


@pytest.mark.parametrize("name", ["negative", "exp", "sin", "rsqrt", "sum", "positive"])
def test_arrays_nobody_saved_are_freed(name: str) -> None:
    saved = set(SAVED[name]["x"].split()) & {"x", "out"}
    assert alive_after(OPS[name].function) == saved


def test_a_product_saves_only_what_the_gradient_asked_for_needs() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    constant = gg.tensor([3.0, 4.0])
    (saved,) = (x * constant)._node.saved
    assert saved is constant.data


def test_nothing_is_saved_without_grad() -> None:
    x, y = gg.tensor([1.0, 2.0], requires_grad=True), gg.tensor([3.0, 4.0])
    assert (y * y)._node is None
    with gg.no_grad():
        assert (x * y)._node is None
