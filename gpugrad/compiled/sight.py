"""What a step can see: what its code names, from its closure, its globals and its own object on.

A name is followed as far as attributes are spelled out, ``trainer.config.scale``, in the step and
in the user's functions and methods that it names. An attribute of something that no name leads to,
such as a local variable, is taken to be one of any object that was found. Libraries are not looked
into, nor is what only running the code would tell: ``getattr``, imports in functions.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..nn import Module
from ..optim import Optimizer
from ..tensor import Tensor
from .arguments import NUMBERS
from .guards import MISSING, Watch, watch_cells, watch_items, watch_names

_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR")
_BETWEEN = ("COPY", "DUP_TOP", "PUSH_NULL")  # what may stand between a name and its attribute
_GLOBAL = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME")


class _Chain(NamedTuple):
    """A name in some code, None for what has none, and the attributes that follow it."""

    name: str | None
    is_global: bool
    attributes: tuple[str, ...]


class Sight:
    """The places that a function's code names, and the modules and optimisers found there.

    ``roots`` are objects that it is called with.
    """

    def __init__(self, function: Any, roots: Sequence[Any] = ()) -> None:
        while isinstance(function, functools.partial):
            roots = (*roots, *function.args, *function.keywords.values())
            function = function.func
        self._home = getattr(function, "__module__", None)  # where the step is, if in a library
        self._loose = {"__call__", "forward"}  # attributes of what has no name
        known = 0
        while known != len(self._loose):  # all objects are asked for the last of them
            known = len(self._loose)
            self.modules: dict[Module, None] = {}
            self.optimizers: dict[Optimizer, None] = {}
            self._met: dict[tuple[int, int], Any] = {}
            self._watched: list[Watch] = []
            self._codes: list[types.CodeType] = []
            self._named: dict[int, tuple[Any, str, dict[str, None]]] = {}
            for root in (function, *roots):
                self._meet(root, "an argument")

    def watches(self) -> list[Watch]:
        """Return what watches all places."""
        named = self._named.values()
        return [*self._watched, *(watch_names(space, [*n], label) for space, label, n in named)]

    def line_of(self, name: str) -> str:
        """Return the file and line in which a name is set, or named; else where the step begins."""
        lines = [line for code in self._codes for line in _lines(code, name)]
        first = [f"{code.co_filename}:{code.co_firstlineno}" for code in self._codes[:1]]
        return min(lines, default=(0, "".join(first) or "an unknown line"))[1]

    def _note(self, space: Any, name: str, label: str) -> None:
        """Watch a name in a namespace: a dict, a class, or an object with slots."""
        self._named.setdefault(id(space), (space, label, {}))[2][name] = None

    def _is_new(self, value: Any, owner: Any = None) -> bool:
        key = (id(value), id(owner))
        known = key in self._met
        self._met[key] = value, owner  # held, or their ids might become others'
        return not known

    def _meet(self, value: Any, name: str) -> None:
        """Look at an object, and at what it holds."""
        if isinstance(value, types.FunctionType):
            self._run(value, None)
        elif isinstance(value, types.MethodType):
            self._run(value.__func__, value.__self__)
        elif isinstance(value, (*NUMBERS, Tensor)) or not self._is_new(value):
            return
        elif isinstance(value, (list, tuple, dict, set, frozenset)):
            if isinstance(value, (list, dict)):
                self._watched.append(watch_items(value, name))
            for part in value.values() if isinstance(value, dict) else value:
                self._meet(part, name)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._meet(part, name)
        elif isinstance(value, Optimizer):
            self.optimizers[value] = None
        elif hasattr(value, "__wrapped__"):  # a compiled function, a cached one
            self._meet(value.__wrapped__, name)
        else:
            if isinstance(value, Module):
                self._look_into(value, name)
            elif self._is_gpugrad(value):  # whose code is not looked into, such as a schedule's
                self._watched.append(watch_items(vars(value), type(value).__name__))
            for attribute in [*self._loose]:
                self._attribute(value, attribute, named=False)

    def _look_into(self, module: Module, name: str) -> None:
        """Look at the parts of a module, which the code of a library may call."""
        for part in module.modules():
            self.modules[part] = None
            self._meet(part, name)
            if not self._is_library(type(part).__module__):
                for key, value in vars(part).items():
                    if isinstance(value, (list, dict)):  # which may change in place
                        self._meet(value, key)

    def _run(self, function: Any, owner: Any) -> None:
        """Look at what a function or method names, unless it is a library's."""
        if (
            not isinstance(function, types.FunctionType)
            or self._is_library(function.__module__)
            or not self._is_new(function, owner)
        ):
            return
        code, cells = function.__code__, function.__closure__ or ()
        self._codes.append(code)
        name = function.__qualname__
        if cells:
            self._watched.append(watch_cells(code.co_freevars, cells, name))
        scope = {
            free: cell.cell_contents
            for free, cell in zip(code.co_freevars, cells, strict=True)
            if cell != MISSING
        }
        if owner is not None and code.co_argcount:
            scope[code.co_varnames[0]] = owner
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for value in (*scope.values(), *defaults):
            self._meet(value, name)
        for chain in _chains(code, scope):
            self._follow(chain, scope, function)

    def _follow(self, chain: _Chain, scope: dict[str, Any], function: Any) -> None:
        """Look at what a name leads to."""
        if chain.name is None:
            self._loose.update(chain.attributes)
            return
        if chain.is_global:
            space = function.__globals__
            if chain.name not in space and hasattr(builtins, chain.name):
                return
            self._note(space, chain.name, f"%r, a global of {function.__module__},")
            value = space.get(chain.name, MISSING)
            self._meet(value, chain.name)
        else:
            value = scope[chain.name]
        for attribute in chain.attributes:
            value = self._attribute(value, attribute, named=True)

    def _attribute(self, value: Any, name: str, named: bool) -> Any:
        """Look at an attribute of an object, and return it; MISSING where it is not looked for."""
        if value is MISSING or isinstance(value, (*NUMBERS, Optimizer, Tensor)):
            return MISSING
        if isinstance(value, types.ModuleType) and self._is_library(value.__name__):
            return MISSING
        kind = value if isinstance(value, type) else type(value)
        label = f"%r, an attribute of {kind.__name__},"
        space = getattr(value, "__dict__", None)  # of a class it is no dict
        found = space.get(name, MISSING) if isinstance(space, dict) else MISSING
        if isinstance(value, Module):
            pass  # watched as a whole
        elif isinstance(space, dict) and (named or found is not MISSING):
            self._note(space, name, label)
        if found is MISSING:
            kinds = [k for k in kind.__mro__ if name in vars(k)]
            kinds = [k for k in kinds if not self._is_library(k.__module__)]
            if not kinds:
                return MISSING
            for one in kinds:  # super() may lead to all of them
                self._note(one, name, label)
                self._run(_function_of(vars(one)[name]), value)
            found = vars(kinds[0])[name]
            if isinstance(found, types.MemberDescriptorType):  # of an object with slots
                self._note(value, name, label)
                found = getattr(value, name, MISSING)
        if isinstance(_function_of(found), types.FunctionType):
            owner = None if isinstance(found, staticmethod) else value
            self._run(_function_of(found), owner)
        else:
            self._meet(found, name)
        return found

    def _is_gpugrad(self, value: Any) -> bool:
        module = type(value).__module__
        own = module.startswith("gpugrad.") and self._is_library(module)
        return own and isinstance(getattr(value, "__dict__", None), dict)

    def _is_library(self, module: str | None) -> bool:
        return module != self._home and _is_library(module or "builtins")


def _function_of(value: Any) -> Any:
    """Return the function in a compiled method, a class method or a property."""
    for wrapper in ("__wrapped__", "__func__", "fget"):
        value = getattr(value, wrapper, value)
    return value


@functools.cache
def _is_library(module: str) -> bool:
    """Return whether a module is Python's own, gpugrad's, or one that was installed."""
    top = module.partition(".")[0]
    if top in (*sys.stdlib_module_names, "gpugrad"):
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _chains(code: types.CodeType, scope: Iterable[str]) -> Iterator[_Chain]:
    """Yield the names in some code, each with the attributes that follow; those in scope only."""
    chain = _Chain(None, False, ())
    for one in dis.get_instructions(code):
        if one.opname in _ATTRIBUTE:
            chain = chain._replace(attributes=(*chain.attributes, one.argval))
        elif one.opname not in _BETWEEN:
            yield chain
            name = one.argval[-1] if isinstance(one.argval, tuple) else one.argval
            is_global = one.opname in _GLOBAL
            is_local = "LOAD" in one.opname and "CONST" not in one.opname and name in scope
            chain = _Chain(name if is_global or is_local else None, is_global, ())
        if isinstance(one.argval, types.CodeType):
            yield from _chains(one.argval, {*scope} & {*one.argval.co_freevars})
    yield chain


def _lines(code: types.CodeType, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that use a name, after 0 where it is set and 1 where not."""
    starts, line = dict(dis.findlinestarts(code)), code.co_firstlineno
    for one in dis.get_instructions(code):
        line = starts.get(one.offset) or line
        if one.argval == name:
            is_set = one.opname.startswith(("STORE", "DELETE"))
            yield 1 - is_set, f"{code.co_filename}:{line}"
        elif isinstance(one.argval, types.CodeType):
            yield from _lines(one.argval, name)
