"""Whether the modules that a recording was made with are what they were."""

from __future__ import annotations

import functools
import types
from typing import Any

from ..nn import Module
from .arguments import NUMBERS


class Modules:
    """What modules held when a function was recorded; looked at only after some module changed."""

    def __init__(self, held: dict[Module, dict[str, Any]]) -> None:
        self._held = held
        self._looked = Module.changes

    def hold(self) -> bool:
        """Return whether they hold the same still: parts by identity, numbers by value."""
        if self._looked != (now := Module.changes):
            if not all(same(module.held(), held) for module, held in self._held.items()):
                return False
            self._looked = now
        return True


def same(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Return whether a module holds now what it held then."""
    return now.keys() == then.keys() and all(_alike(now[key], then[key]) for key in now)


def _alike(now: Any, then: Any) -> bool:
    """Return whether an attribute is what it was: numbers by value, else by identity."""
    if isinstance(now, tuple) and isinstance(then, tuple):
        return len(now) == len(then) and all(map(_alike, now, then))
    return now is then or (isinstance(now, NUMBERS) and type(now) is type(then) and now == then)


def modules_of(function: Any, args: tuple, kwargs: dict[str, Any]) -> set[Module]:
    """Return the modules that a function can be seen to use, with their parts."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    owner = getattr(inner, "__self__", inner)
    inner = getattr(inner, "__func__", inner)
    code = getattr(inner, "__code__", None)
    cells = getattr(inner, "__closure__", None) or ()
    found = [cell.cell_contents for cell in cells if cell != types.CellType()]
    if code is not None:
        found += [inner.__globals__[n] for n in code.co_names if n in inner.__globals__]
    found += [owner, *getattr(owner, "__dict__", {}).values(), *args, *kwargs.values()]
    return {part for m in found if isinstance(m, Module) for part in m.modules()}
