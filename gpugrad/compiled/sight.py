"""What a step can see: what its code names, from its closure, its globals and its own object on.

A name is followed as far as attributes are spelled out, ``trainer.config.scale``, in the step and
in the user's functions and methods that it names, and in hooks of tensors. An attribute of
something that no name leads to, such as a local variable, is taken to be one of any object that was
found, a module too, and so is each string in code that uses ``getattr``. Libraries are not looked
into, nor is what only running the code would tell: names that are computed, clocks, files, the
environment.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import itertools
import sys
import types
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..nn import Module
from ..optim import Optimizer
from ..tensor import Tensor
from . import code
from .arguments import NUMBERS
from .guards import (
    MISSING,
    Watch,
    everybodys_generator,
    is_generator,
    refusal,
    watch_cells,
    watch_draws,
    watch_elements,
    watch_import,
    watch_items,
    watch_names,
)
from .kinds import function_of, is_container, is_library, is_opaque, owner_of, parts_of

_BY_STRING = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "vars", "__dict__"}
MOST_BYTES = 1 << 20  # of an array whose elements are compared at each call
# what makes a generator of random numbers, without an argument another one each time
_GENERATORS = {"Random", "SystemRandom", "RandomState", "default_rng", "SeedSequence"}
_GENERATORS |= {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"}
_APPENDS = (("append",), ("extend",))  # what may follow a list that is a log
# methods that nothing calls which computes with an object
_ASIDE = {"__del__", "__eq__", "__hash__", "__init__", "__new__", "__post_init__", "__repr__"}


class Sight:
    """The places that a function's code names, and the modules and optimisers found there.

    ``roots`` are objects that it is called with.
    """

    def __init__(self, function: Any, roots: Sequence[Any] = ()) -> None:
        while isinstance(function, functools.partial):
            roots = (*roots, function.args, function.keywords)
            function = function.func
        self._home = getattr(function, "__module__", None)  # where the step is, if in a library
        # attributes of what has no name, with the method where they are appended to
        self._loose: set[tuple[str, ...]] = {("__call__",), ("forward",)}
        known = 0
        while known != len(self._loose):  # all objects are asked for the last of them
            known = len(self._loose)
            self.modules: dict[Module, None] = {}
            self.optimizers: dict[Optimizer, None] = {}
            self._met: dict[tuple[int, int], Any] = {}
            self.arrays: list[tuple[np.ndarray, Watch]] = []
            self.tensors: list[Tensor] = []
            self._watched: list[Watch] = []
            self._codes: list[types.CodeType] = []
            self._named: dict[int, tuple[Any, str, dict[str, None]]] = {}
            self._containers: list[tuple[Any, str]] = []
            self._uses: dict[int, set[tuple[str, ...]]] = {}  # what follows names of containers
            for root in (function, *roots):
                self._meet(root, "an argument")

    def watches(self) -> list[Watch]:
        """Return what watches all places."""
        named = self._named.values()
        return [
            *self._watched,
            *(watch_items(value, name, self._is_log(value)) for value, name in self._containers),
            *(watch_names(space, [*n], label) for space, label, n in named),
        ]

    def line_of(self, name: str) -> str:
        """Return the file and line in which a name is set, or named; else where the step begins."""
        lines = [line for some in self._codes for line in code.lines(some, name)]
        first = [f"{some.co_filename}:{some.co_firstlineno}" for some in self._codes[:1]]
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
            if is_generator(value.__self__):
                self._meet(value.__self__, name)
        elif isinstance(value, NUMBERS) or not self._is_new(value):
            return
        elif isinstance(value, Tensor):
            self.tensors.append(value)
            for hook in value._hooks or ():
                self._meet(hook, "a hook")
        elif isinstance(value, np.ndarray):
            if value.nbytes <= MOST_BYTES:
                self.arrays.append((value, watch_elements(value, name)))
        elif is_generator(value):
            self._watched.append(watch_draws(value, name))
        elif isinstance(value, types.ModuleType):
            generator = everybodys_generator(value.__name__)
            if generator is not None:
                self._meet(generator, value.__name__)
            self._look_at(value, self._loose)
        elif (parts := parts_of(value)) is not None:
            if is_container(value):
                self._containers.append((value, name))
            for part in parts:
                self._meet(part, name)
        elif isinstance(value, weakref.ref):
            self._meet(value(), name)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._meet(part, name)
        elif is_opaque(value):
            what = f"taking from the iterator {name!r} (pass what it yields as arguments)"
            self._watched.append(refusal(what))
        elif isinstance(value, Optimizer):
            self.optimizers[value] = None
            for group in value.param_groups:
                self._meet(group["params"], "params")
            self._look_at(value, self._methods(value))
        elif isinstance(value, types.BuiltinMethodType) and is_generator(value.__self__):
            self._meet(value.__self__, name)
        elif hasattr(value, "__wrapped__"):  # a compiled function, a cached one
            self._meet(value.__wrapped__, name)
        else:
            if isinstance(value, Module):
                self._look_into(value, name)
            elif self._is_gpugrad(value):  # whose code is not looked into, such as a schedule's
                self._watched.append(watch_items(vars(value), type(value).__name__))
            self._look_at(value, [*self._loose, *self._methods(value)])

    def _look_at(self, value: Any, attributes: Iterable[tuple[str, ...]]) -> None:
        """Look at attributes of an object, which may be others' of the same name."""
        chains = [*attributes]
        if ("__match_args__",) in chains:  # the attributes that patterns look at by their places
            chains += [(name,) for name in getattr(type(value), "__match_args__", ())]
        for name, *then in chains:
            self._use(self._attribute(value, name, named=False), (*then,))

    def _methods(self, value: Any) -> list[tuple[str]]:
        """Return the methods of an object that are called without being named, as operators are.

        Those of optimisers are all.
        """
        kinds = [k for k in type(value).__mro__ if not self._is_library(k.__module__)]
        return [
            (name,)
            for kind in kinds
            for name, method in vars(kind).items()
            if isinstance(method, types.FunctionType)
            and name not in _ASIDE
            and (name.startswith("__") or isinstance(value, Optimizer))
        ]

    def _look_into(self, module: Module, name: str) -> None:
        """Look at the parts of a module, which the code of a library may call."""
        for part in module.modules():
            self.modules[part] = None
            self._meet(part, name)
            for value in vars(part).values():
                if isinstance(value, Tensor):
                    self._meet(value, name)
            if not self._is_library(type(part).__module__):
                for key, value in vars(part).items():
                    if is_container(value):  # which may change in place
                        self._meet(value, key)

    def _run(self, function: Any, owner: Any) -> None:
        """Look at what a function or method names, unless it is a library's."""
        if (
            not isinstance(function, types.FunctionType)
            or self._is_library(function.__module__)
            or not self._is_new(function, owner)
        ):
            return
        written, cells = function.__code__, function.__closure__ or ()
        if self._is_library(function.__globals__.get("__name__")):
            # a library's decorator, which says that it is of the module of what it decorates
            for cell in cells:
                if cell != MISSING:
                    self._meet(cell.cell_contents, "an argument of a decorator")
            self._run(getattr(function, "__wrapped__", None), owner)
            return
        self._codes.append(written)
        name = function.__qualname__
        names, strings = code.words(written)
        self._note(function, "__code__", f"%r of {name}")
        for defaults in ("__defaults__", "__kwdefaults__"):
            self._note(function, defaults, f"%r of {name}")
            self._meet(getattr(function, defaults), f"the defaults of {name}")
        if hasattr(function, "__wrapped__"):  # what a decorator calls, with the same arguments
            self._run(function.__wrapped__, owner)
        if code.matches_classes(written):
            strings.add("__match_args__")
        if names & _BY_STRING or "__match_args__" in strings:
            self._loose |= {(string,) for string in strings}
        if "random" in names:
            for module in ("random", "numpy.random"):
                self._meet(everybodys_generator(module), module)
        for module in code.imports(written):
            self._import(module, function.__globals__.get("__package__"))
        if cells:
            self._watched.append(watch_cells(written.co_freevars, cells, name))
        scope = {
            free: cell.cell_contents
            for free, cell in zip(written.co_freevars, cells, strict=True)
            if cell != MISSING
        }
        if owner is not None and written.co_argcount:
            scope[written.co_varnames[0]] = owner
        for free, value in scope.items():
            self._meet(value, free)
        for called, is_attribute in code.bare_calls(written):
            found = None if is_attribute else scope.get(called, function.__globals__.get(called))
            kind, home = getattr(found, "__name__", called), getattr(found, "__module__", None)
            if kind in _GENERATORS and self._is_library(home):
                what = f"making a generator without a seed ({called!r}; gg.random can be recorded)"
                self._watched.append(refusal(what))
        for chain in code.chains(written, scope):
            self._follow(chain, scope, function)

    def _import(self, name: str, package: str | None) -> None:
        """Look at a module that some code imports, or wait until it is there."""
        with contextlib.suppress(ImportError):
            name = importlib.util.resolve_name(name, package)
        parent, _, last = name.rpartition(".")
        if name in sys.modules:
            self._meet(sys.modules[name], name)
        elif not hasattr(sys.modules.get(parent), last):  # or it is no module
            self._watched.append(watch_import(name))

    def _follow(self, chain: code.Chain, scope: dict[str, Any], function: Any) -> None:
        """Look at what a name leads to."""
        if chain.name is None:
            self._look_for(chain.attributes)
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
        then = chain.attributes
        self._use(value, then)
        while then and then[0] != code.ITEM and not isinstance(value, property):
            value, then = self._attribute(value, then[0], named=True), then[1:]
            self._use(value, then)
        self._look_for(then)  # no name leads to what a property returns, or to an item

    def _look_for(self, attributes: Iterable[str]) -> None:
        """Look for attributes, one behind the other, in any object."""
        for name, *then in itertools.pairwise((*attributes, "")):
            self._loose.add((name, *then) if (*then,) in _APPENDS else (name,))

    def _use(self, value: Any, then: tuple[str, ...]) -> None:
        """Note what follows a name that leads to a container, and to what lies in it."""
        parts = parts_of(value)
        if parts is not None and then not in self._uses.setdefault(id(value), set()):
            self._uses[id(value)].add(then)
            for part in parts:
                self._use(part, then[1:] if then[:1] == (code.ITEM,) else ())

    def _is_log(self, value: Any) -> bool:
        """Return whether a list is appended to, and nothing else is done with it."""
        uses = self._uses.get(id(value), ())
        return bool(uses) and all(then[:1] in _APPENDS for then in uses)

    def _attribute(self, value: Any, name: str, named: bool) -> Any:
        """Look at an attribute of an object, and return it; MISSING where it is not looked for."""
        if value is MISSING or isinstance(value, (*NUMBERS, Tensor)):
            return MISSING
        if isinstance(value, Optimizer) and name == "param_groups":
            return MISSING  # see settings.py
        if isinstance(value, types.ModuleType) and self._is_library(value.__name__):
            return MISSING
        kind = value if isinstance(value, type) else type(value)
        label = f"%r, an attribute of {kind.__name__},"
        if name == "__class__":
            self._note(value, name, label)
            return type(value)
        space = getattr(value, "__dict__", None)  # of a class it is no dict
        found = space.get(name, MISSING) if isinstance(space, dict) else MISSING
        kinds = [k for k in kind.__mro__ if name in vars(k)]
        kinds = [k for k in kinds if not self._is_library(k.__module__)]
        if isinstance(value, Module):
            pass  # watched as a whole
        elif isinstance(space, dict) and (named or kinds or found is not MISSING):
            self._note(space, name, label)
        if found is MISSING:
            if not kinds:
                return MISSING
            for one in kinds:  # super() may lead to all of them
                self._note(one, name, label)
                self._run(function_of(vars(one)[name]), owner_of(value, vars(one)[name]))
            found = vars(kinds[0])[name]
            if isinstance(found, types.MemberDescriptorType):  # of an object with slots
                self._note(value, name, label)
                found = getattr(value, name, MISSING)
        if isinstance(function_of(found), types.FunctionType):
            self._run(function_of(found), owner_of(value, found))
        elif named or not is_opaque(found):  # a chance name is no sign that something is taken
            self._meet(found, name)
        return found

    def _is_gpugrad(self, value: Any) -> bool:
        module = type(value).__module__
        own = module.startswith("gpugrad.") and self._is_library(module)
        return own and isinstance(getattr(value, "__dict__", None), dict)

    def _is_library(self, module: str | None) -> bool:
        return module != self._home and is_library(module or "builtins")
