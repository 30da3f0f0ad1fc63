"""What an object is to the step that finds it: a container, an iterator, a method, a library's."""

from __future__ import annotations

import functools
import io
import sys
import types
from collections.abc import Collection, Iterator, Mapping, MutableSequence, Set
from typing import Any


def owner_of(value: Any, method: Any) -> Any:
    """Return what an attribute of a value is called with ahead of its arguments, None if nothing.

    A function in a class is: through that class as any function, with an instance among these.
    """
    is_function = isinstance(value, type) and isinstance(method, types.FunctionType)
    return None if is_function or isinstance(method, staticmethod) else value


def function_of(value: Any) -> Any:
    """Return the function in a compiled or partial method, a class method or a property."""
    if isinstance(value, types.FunctionType):
        return value  # a decorator's, which depends on more than what it wraps
    if isinstance(value, (functools.partialmethod, functools.cached_property)):
        return function_of(value.func)
    for wrapper in ("__wrapped__", "__func__", "fget"):
        if hasattr(value, wrapper):
            return function_of(getattr(value, wrapper))
    return value


@functools.cache
def is_library(module: str) -> bool:
    """Return whether a module is Python's own, gpugrad's, or one that was installed."""
    top = module.partition(".")[0]
    if top in (*sys.stdlib_module_names, "gpugrad"):
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def is_container(value: Any) -> bool:
    """Return whether this is one of Python's own containers, which may change in place."""
    if isinstance(value, (list, dict, set)):
        return True
    kinds = (Mapping, MutableSequence, Set)
    own = type(value).__module__.partition(".")[0] in sys.stdlib_module_names
    return own and isinstance(value, kinds) and not isinstance(value, frozenset)


def parts_of(value: Any) -> Collection[Any] | None:
    """Return what lies in a container, None for other objects."""
    if not isinstance(value, (tuple, frozenset)) and not is_container(value):
        return None
    return value.values() if isinstance(value, Mapping) else value


def is_opaque(value: Any) -> bool:
    """Return whether this is an iterator that does not tell what was taken from it; no file."""
    if not isinstance(value, Iterator) or isinstance(value, io.IOBase):
        return False
    return not isinstance(getattr(type(value), "__next__", None), types.FunctionType)
