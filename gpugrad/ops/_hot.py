"""The hot path: elementwise functions on numpy tensors with one NumPy call, one node, one tensor.

Whatever is not plain (other types, mixed dtypes, integers, a GPU) takes the general way of
``registry.Op``. The budget and how it is measured: benchmarks/overhead.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import registry
from ..boundary import named
from ..registry import Op, prepare, state
from ..tensor import Tensor


def unary_function(op: Op, numpy_function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the public function of an elementwise operation with one argument.

    This is the hot path: one NumPy call, one node, one tensor.
    """
    pullback = op.pullback((0,)) if op.rules else None
    general = named(lambda x: op(prepare(op, (x,)), {}), op.name)
    ndarray, asarray, wrap = np.ndarray, np.asarray, Tensor._wrap

    def function(x: Any) -> Any:
        if isinstance(x, Tensor):
            data = x._data
            if data.__class__ is ndarray and data.dtype.kind == "f" and registry.lift is None:
                try:
                    out = numpy_function(data)
                except (TypeError, MemoryError):  # again it will be, then said in our words
                    return general(x)
                if out.__class__ is not ndarray:
                    out = asarray(out)
                if x._requires_grad and pullback is not None:
                    make_node = state.make_node
                    if make_node is not None:
                        node = make_node(pullback, (x._node or x,), (data, out), None)
                        return wrap(out, node)
                return wrap(out, None)
        return general(x)

    return function


def binary_function(op: Op, numpy_function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return the public function of an elementwise operation with two arguments."""
    general = named(lambda x, y: op(prepare(op, (x, y)), {}), op.name)
    if not op.rules:
        return general
    both, left, right = op.pullback((0, 1)), op.pullback((0,)), op.pullback((1,))
    ndarray, asarray, wrap = np.ndarray, np.asarray, Tensor._wrap

    def function(x: Any, y: Any) -> Any:
        if isinstance(x, Tensor):
            xd = x._data
            if isinstance(y, Tensor):
                yd = y._data
                if not (
                    registry.lift is None
                    and xd.dtype is yd.dtype
                    and xd.__class__ is ndarray
                    and yd.__class__ is ndarray
                    and xd.dtype.kind == "f"
                ):
                    return general(x, y)
                try:
                    out = numpy_function(xd, yd)
                except (ValueError, MemoryError):
                    return general(x, y)
                if out.__class__ is not ndarray:
                    out = asarray(out)
                make_node = state.make_node
                if make_node is None:
                    return wrap(out, None)
                shapes: tuple | None = None
                same = xd.shape == yd.shape
                if x._requires_grad:
                    if y._requires_grad:
                        parents = (x._node or x, y._node or y)
                        if not same:
                            shapes = (xd.shape, yd.shape)
                        node = make_node(both, parents, (xd, yd, out), shapes)
                    else:
                        if not same:
                            shapes = (xd.shape,)
                        node = make_node(left, (x._node or x,), (xd, yd, out), shapes)
                elif y._requires_grad:
                    if not same:
                        shapes = (yd.shape,)
                    node = make_node(right, (y._node or y,), (xd, yd, out), shapes)
                else:
                    node = None
                return wrap(out, node)
            if (y.__class__ is float or y.__class__ is int) and (
                xd.__class__ is ndarray and xd.dtype.kind == "f" and registry.lift is None
            ):
                try:
                    out = numpy_function(xd, y)
                except (OverflowError, MemoryError):  # of an integer no float can hold
                    return general(x, y)
                if out.__class__ is not ndarray:
                    out = asarray(out)
                if x._requires_grad:
                    make_node = state.make_node
                    if make_node is not None:
                        node = make_node(left, (x._node or x,), (xd, y, out), None)
                        return wrap(out, node)
                return wrap(out, None)
        return general(x, y)

    return function
