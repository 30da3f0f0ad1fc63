"""What a trace depends on besides the elements of its tensors, as a key: for fuse.py.

A traced function is called once, so whatever it can reach must be part of the key under which the
trace is kept, or be known never to change. A function is followed through its code: the names it
loads from its module and its closure, its defaults, and the functions it finds there. Attributes
are followed on modules alone: those of other objects can change unseen, so objects are refused.
"""

from __future__ import annotations

import builtins
import dis
import functools
import math
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from .. import boundary, ops
from ..tensor import Tensor

# found in the code as a name and the attributes that follow it at once
_Path = tuple[bool, str, tuple[str, ...]]

_CONSTANT = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_SCALARS = (np.bool_, np.integer, np.floating)
_SAFE_TYPES = ("builtins", "gpugrad", "ml_dtypes", "numpy")  # where their classes are from

# functions that say the same whatever happened before; getattr, globals and eval are not among them
_BUILTINS = frozenset(
    {
        "abs",
        "all",
        "any",
        "callable",
        "divmod",
        "isinstance",
        "issubclass",
        "iter",
        "len",
        "max",
        "min",
        "next",
        "pow",
        "repr",
        "round",
        "sorted",
        "sum",
    }
)
# the parts of the library whose functions compute from their arguments alone, or draw random
# numbers, which a trace notices
_LIBRARY = ("gpugrad.ops", "gpugrad.fused", "gpugrad.nn")

_MISSING = object()
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_REFUSED = frozenset(
    {
        "DELETE_ATTR",
        "DELETE_GLOBAL",
        "IMPORT_NAME",
        "LOAD_BUILD_CLASS",
        "LOAD_NAME",
        "LOAD_SUPER_ATTR",
        "STORE_ATTR",
        "STORE_GLOBAL",
    }
)
# what a tensor does not share with the symbol that stands for it
_OF_TENSORS = frozenset(
    {
        "backward",
        "device",
        "grad",
        "is_leaf",
        "register_hook",
        "requires_grad",
        "requires_grad_",
        "retain_grad",
        "_data",
        "_grad",
        "_hooks",
        "_node",
        "_requires_grad",
    }
)


class Followed:
    """What does nothing but call ``function``."""

    function: Callable[..., Any]


def key_of_argument(value: Any) -> Hashable:
    """Return what a trace depends on of an argument: the dtype of a tensor, else as ``key_of``."""
    if not isinstance(value, Tensor):
        return key_of(value)
    if not type(value).__module__.startswith("gpugrad."):
        raise TypeError(f"{type(value).__name__} may compute anything")
    return value._data.dtype


def key_of(value: Any, seen: frozenset[int] = frozenset()) -> Hashable:
    """Return what identifies a value and all that a trace may take from it.

    Raises TypeError for what may change unseen, ValueError for a closure that is not filled yet.
    ``seen`` are the ids of the functions on the way here.
    """
    kind = type(value)
    if kind in _CONSTANT:  # with the type and as text, as 1 == True and 0.0 == -0.0
        return kind, repr(value) if kind in (float, complex) else value
    if isinstance(value, _SCALARS):
        return kind, repr(value)
    if kind is tuple:
        return (tuple, *(key_of(v, seen) for v in value))
    if _never_changes(value):
        return value
    if kind is types.FunctionType:
        return value if id(value) in seen else _key_of_function(value, seen | {id(value)})
    if isinstance(value, Followed):
        return value, key_of(value.function, seen)
    raise TypeError(f"{kind.__name__} may change unseen")


def _never_changes(value: Any) -> bool:
    """Return whether a trace may take the value for granted."""
    if isinstance(value, types.FunctionType):
        home = value.__module__ or ""
        homes = (ops.__name__, home) if home.startswith("gpugrad.ops") else ()
        if any(_at_home(value, h) is value for h in homes):
            return True
        if value.__globals__.get("__name__") == boundary.__name__:  # the edge of the package
            return _never_changes(value.__dict__.get("__wrapped__"))
        plain = not (value.__closure__ or value.__dict__)
        return plain and value.__globals__.get("__name__", "").startswith(_LIBRARY)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return owner is math or (owner is builtins and value.__name__ in _BUILTINS)
    if isinstance(value, np.ufunc):
        return getattr(np, value.__name__, None) is value
    if isinstance(value, type):
        home = value.__module__
        return home.partition(".")[0] in _SAFE_TYPES and _at_home(value, home) is value
    return isinstance(value, np.dtype)


def _at_home(value: Any, home: str) -> Any:
    """Return what a module calls by the name of a value; None if there is no such module."""
    module = sys.modules.get(home)
    return None if module is None else vars(module).get(value.__name__)


def _key_of_function(function: types.FunctionType, seen: frozenset[int]) -> Hashable:
    code = function.__code__
    paths = _paths(code)
    if paths is None:
        raise TypeError(f"{function.__name__} does more than compute")
    enclosed = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    parts: list[Any] = [
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
        *function.__dict__.values(),
    ]
    for from_closure, name, attributes in paths:
        if from_closure:
            value = enclosed[name].cell_contents
        elif name in function.__globals__:
            value = function.__globals__[name]
        else:
            value = vars(builtins).get(name, _MISSING)
        for attribute in attributes:
            if type(value) is not types.ModuleType:
                break  # an attribute of a value that is watched itself
            value = vars(value).get(attribute, _MISSING)
        parts.append(value)
    return (function, code, *function.__dict__, *(key_of(part, seen) for part in parts))


@functools.lru_cache(1024)
def _paths(code: types.CodeType, free: frozenset[str] | None = None) -> tuple[_Path, ...] | None:
    """Return what a function loads from outside; None if its code does more than compute.

    ``free`` are the names of the closure, for the code of a function inside.
    """
    free = frozenset(code.co_freevars) if free is None else free
    found: dict[_Path, None] = {}
    name: tuple[bool, str] | None = None
    attributes: list[str] = []
    for step in dis.get_instructions(code):
        opname, what = step.opname, step.argval
        if opname == "EXTENDED_ARG":
            continue
        if opname in _REFUSED or (opname == "STORE_DEREF" and what in free):
            return None
        if opname in _ATTRIBUTE:
            if what in _OF_TENSORS or what.startswith("__"):
                return None
            attributes.append(what)
            continue
        if name is not None:
            found[name[0], name[1], tuple(attributes)] = None
        name, attributes = None, []
        if opname == "LOAD_GLOBAL":
            name = False, what
        elif opname == "LOAD_DEREF" and what in free:
            name = True, what
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            paths = _paths(inner, free)
            if paths is None:
                return None
            found.update(dict.fromkeys(paths))
    return tuple(found)
