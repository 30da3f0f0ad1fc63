"""What a compiled function is called with and returns: tensors in nested containers."""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, ValuesView
from typing import Any

import numpy as np

from .. import backend
from ..cuda.recording import Trace, dense
from ..nn import Module
from ..optim import Optimizer
from ..tensor import Tensor
from .kinds import parts_of

NUMBERS = (bool, int, float, complex, str, bytes, type(None))


class ById:
    """A key for an object, by what it is and not what it equals; keeps the object alive."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def key_of(value: Any) -> Any:
    """Return what a plain value is the same by: its type and bits, for 1 is not True nor 1.0.

    Zeros differ by their sign, and NaN is itself. None for what is no number, string or the like.
    """
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    if isinstance(value, (float, complex)):
        return type(value), repr(value)
    return (type(value), value) if isinstance(value, (*NUMBERS, enum.Enum, np.dtype)) else None


def flat(value: Any, arrays: list[Any]) -> Any:
    """Return what a recording depends on of arguments; append their arrays to a list."""
    if isinstance(value, Tensor) and value._requires_grad:
        if value._node is not None:
            raise TypeError(
                "an argument is the result of recorded operations, but gradients do not leave a "
                "compiled step; pass it with .detach()"
            )
        return "leaf", ById(value)  # a parameter: its array is not copied
    if isinstance(value, Tensor) or backend.is_array(value):
        array = value._data if isinstance(value, Tensor) else value
        arrays.append(array)
        return "array", array.shape, array.dtype.name
    if isinstance(value, (list, tuple)):
        return type(value), *(flat(v, arrays) for v in value)
    if isinstance(value, dict):
        items = [(key_of(k) or k, flat(v, arrays)) for k, v in value.items()]
        own = _attributes(value)
        return type(value), *items, flat(own, arrays) if own else None
    key = key_of(value)
    if key is not None:
        return key
    if isinstance(value, (Module, Optimizer, types.FunctionType, type)):
        return "object", ById(value)
    raise TypeError(
        f"an argument is a {type(value).__name__}; arguments are tensors, arrays, numbers, "
        "strings, None, modules, optimisers, functions, and lists, tuples and dicts of them. Let "
        "the function find other objects in its closure, or pass their parts"
    )


def _attributes(value: dict) -> dict[str, Any]:
    """Return the attributes of a dict of a subclass, those aside that are its items."""
    own = vars(value) if type(value).__dictoffset__ else {}
    return {} if own is value else own


def _parts(value: Any) -> Collection[Any]:
    """Return what lies in a list, a tuple or a dict, and in attributes of the latter."""
    if isinstance(value, dict):
        return [*value.values(), *_attributes(value).values()]
    return value


def objects(value: Any) -> list[Any]:
    """Return the modules, optimisers and functions among arguments."""
    if isinstance(value, (list, tuple, dict)):
        return [found for v in _parts(value) for found in objects(v)]
    return [value] if isinstance(value, (Module, Optimizer, types.FunctionType, type)) else []


def has_graph(value: Any) -> bool:
    """Return whether gradients would flow from a tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value._node is not None
    return isinstance(value, (list, tuple, dict)) and any(map(has_graph, _parts(value)))


def symbolic(value: Any, trace: Trace) -> Any:
    """Return arguments with inputs of a trace in the place of arrays."""

    def made(array: Any) -> Tensor:
        return Tensor._wrap(trace.input(array.shape, array.dtype, dense(array)), None)

    return replaced(value, made, keep=True)


def replaced(value: Any, function: Callable[[Any], Any], keep: bool = False) -> Any:
    """Return nested lists, tuples and dicts with something else in the place of arrays.

    With ``keep`` tensors that require a gradient stay.
    """
    if isinstance(value, Tensor):
        return value if keep and value._requires_grad else function(value._data)
    if backend.is_array(value):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced(v, function, keep) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(v, function, keep) for v in value)
    if isinstance(value, dict):
        if type(value) is dict:
            return {k: replaced(v, function, keep) for k, v in value.items()}
        made = copy.copy(value)  # what else a subclass holds
        for k, v in value.items():
            made[k] = replaced(v, function, keep)
        own = _attributes(value)
        if own:
            vars(made).update(replaced(own, function, keep))
        elif type(value).__dictoffset__ and vars(value) is value:
            made.__dict__ = made
        return made
    return value


def refuse_result(value: Any, trace: Trace) -> None:
    """Raise TypeError for a result that is no nested lists, tuples and dicts of what can be one.

    Other objects are returned as they are, unless they yield anything once or hold what the step
    makes.
    """
    if isinstance(value, (Tensor, *NUMBERS)) or backend.is_array(value):
        return
    if isinstance(value, (list, tuple, dict)):
        for part in _parts(value):
            refuse_result(part, trace)
        return
    once = isinstance(value, (set, frozenset, Iterator, Awaitable, AsyncIterator))
    if once or dataclasses.is_dataclass(value) or _holds_made(value, trace):
        raise TypeError(
            f"a {type(value).__name__} is returned; results are tensors, arrays, numbers, None, "
            "and lists, tuples and dicts of them"
        )


def _holds_made(value: Any, trace: Trace, depth: int = 2) -> bool:
    """Return whether a tensor that the step makes lies in a container or an attribute.

    ``depth`` is how many of these lie in each other at most.
    """
    if isinstance(value, Tensor):
        return isinstance(value._data, backend.Symbolic) and value not in trace.leaves
    if isinstance(value, (Module, Optimizer, *NUMBERS)) or backend.is_array(value) or not depth:
        return isinstance(value, backend.Symbolic)
    parts = value if isinstance(value, ValuesView) else parts_of(value)
    if parts is None:  # nothing is taken from others, such as long ranges and data sets
        parts = getattr(value, "__dict__", {}).values()
    return any(_holds_made(part, trace, depth - 1) for part in [*parts])
