"""A few characters for an array of any size, and for an operation of any name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..nn import Module
from ..registry import describe
from ..tensor import Tensor

SMALL = 4  # elements up to which a vector is written out
SYMBOLS = {
    "add": "+",
    "subtract": "\u2212",
    "multiply": "\u00d7",
    "divide": "\u00f7",
    "negative": "\u2212",
    "matmul": "@",
    "power": "^",
    "sum": "\u03a3",
    "sqrt": "\u221a",
    "sigmoid": "\u03c3",
}
INFIX = {"add": "+", "subtract": "-", "multiply": "·", "divide": "/", "matmul": "@", "power": "^"}


def summary(array: Any) -> str:
    """Return the number, the few numbers of a short vector, or dtype, shape and Euclidean norm.

    The gradients of several outputs ({output: array}) stand at their own edges: "" for them.
    """
    if isinstance(array, dict):  # the gradient of an operation with several outputs
        return summary(next(iter(array.values()))) if len(array) == 1 else ""
    if not backend.is_array(array):
        return number(array)
    if isinstance(array, backend.Symbolic):
        return describe(array)
    values = backend.to_numpy(array)
    if values.ndim == 0:
        return number(values[()])
    if values.ndim == 1 and 0 < values.size <= SMALL:
        return f"[{', '.join(number(v, 3) for v in values)}]"
    if not values.size or not backend.is_float(values.dtype):
        return describe(values)
    with np.errstate(all="ignore"):
        norm = np.linalg.norm(values.astype(np.float64, copy=False).reshape(-1))
    return f"{describe(values)} \u2016{number(norm, 3)}\u2016"


def number(value: Any, digits: int = 4) -> str:
    """Return a number with a few significant digits."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__float__"):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(value)
    return f"{float(value) + 0.0:.{digits}g}"


class Named(NamedTuple):
    """Names by node, leaf or id of an array; and the arrays of named results by their node."""

    names: dict[Any, str]
    values: dict[Any, Any]


def named(names: Any) -> Named:
    """Return the names that a Module or a mapping of tensors and modules gives.

    ``locals()`` is such a mapping: values that are neither tensor nor module, and names that begin
    with an underscore, are passed over; of a tensor with two names the first counts.
    """
    found = Named({}, {})
    if names is None:
        return found
    if isinstance(names, Module):
        names = {"": names}
    if not isinstance(names, Mapping):
        raise TypeError(
            f"names must be a module or a mapping from name to tensor or module, such as "
            f"locals() or {{'x': x}}; got {type(names).__name__}"
        )
    for name, value in names.items():
        if isinstance(value, Tensor) and not name.startswith("_"):
            _note(found, name, value)
        elif isinstance(value, Module) and not name.startswith("_"):
            prefix = "" if name == "self" else name
            for path, tensor in (*value.named_parameters(prefix), *value.named_buffers(prefix)):
                _note(found, path, tensor)
    return found


def _note(found: Named, name: str, tensor: Tensor) -> None:
    key = tensor._node or tensor
    found.names.setdefault(key, name)
    found.names.setdefault(id(tensor._data), name)
    found.values.setdefault(key, tensor._data)


def expression(op: str, operands: list[str]) -> str:
    """Return an operation as a formula: ``a + d``, ``2 · b``, ``exp(z)``."""
    if op in INFIX and len(operands) == 2:
        return f"{operands[0]} {INFIX[op]} {operands[1]}"
    if op == "negative" and len(operands) == 1:
        return f"-{operands[0]}"
    return f"{op}({', '.join(operands)})"
