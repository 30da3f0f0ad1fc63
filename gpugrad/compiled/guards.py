"""Whether the Python that a step depends on is what it was when the step was recorded.

What the code of a step names (``sight.Sight``) is looked at before it is recorded; after it, for
what a step changes would not change again in a replay; and before each replay: if anything is
another, so is the recording. Numbers, strings and the like are compared by value, all else by
identity: what a tensor or an optimiser holds is seen to where it is used.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from functools import partial
from itertools import repeat
from operator import is_
from types import CellType
from typing import Any

import numpy as np

from ..cuda import recording
from ..nn import Module
from ..tensor import Tensor
from .arguments import key_of

MISSING = CellType()  # in the place of a value where there is none
Values = Sequence[Any]


def same(now: Values, then: Values) -> bool:
    """Return whether values are what they were."""
    return len(now) == len(then) and (all(map(is_, now, then)) or all(map(_alike, now, then)))


def _alike(now: Any, then: Any) -> bool:
    if now is then:
        return True
    if isinstance(now, tuple) and type(now) is type(then):
        return same(now, then)
    key = key_of(now)
    return key is not None and key == key_of(then)


class Watch:
    """Values in one place, as they were: ``read`` returns them and ``write`` puts them back.

    ``name_of`` says in a message what a step does that changes the value at an index; None if it
    may.
    """

    def __init__(
        self,
        read: Callable[[], Values],
        write: Callable[[Values], object],
        name_of: Callable[[int], str | None],
        may_grow: bool = False,
        is_kept: bool = True,
    ) -> None:
        self._read, self._write, self._name_of, self._may_grow = read, write, name_of, may_grow
        self.is_kept = is_kept  # whether replays depend on it, or only the step may not change it
        self._values = [*read()]

    @property
    def is_log(self) -> bool:
        """Whether this is a list that something but tensors was added to, and nothing else."""
        now, then = self._read(), self._values
        if not self._may_grow or len(now) <= len(then) or not same(now[: len(then)], then):
            return False
        return not any(isinstance(value, Tensor) for value in now[len(then) :])

    def holds(self) -> bool:
        """Return whether the values are what they were."""
        now = self._read()
        if len(now) == len(self._values) and all(map(is_, now, self._values)):
            return True
        if not same(now, self._values):
            return False
        self._values = [*now]  # equal numbers in other objects: the next look is quick again
        return True

    def undo(self) -> str | None:
        """Put back what there was; return what was done to it, None if nothing was."""
        now, then = self._read(), self._values
        if same(now, then):
            return None
        pairs = enumerate(zip(now, then, strict=False))
        first = next((i for i, pair in pairs if not _alike(*pair)), 0)
        self._write(then)
        return self._name_of(first)


def watch_cells(names: Sequence[str], cells: Sequence[CellType], function: str) -> Watch:
    """Watch the variables of enclosing functions."""

    def read() -> Values:
        try:
            return [cell.cell_contents for cell in cells]
        except ValueError:  # not assigned yet
            return [MISSING if cell == MISSING else cell.cell_contents for cell in cells]

    def write(values: Values) -> None:
        for cell, value in zip(cells, values, strict=True):
            if value is not MISSING:
                cell.cell_contents = value

    return Watch(read, write, lambda i: f"setting {names[i]!r}, a variable around {function},")


def watch_names(space: Any, names: Sequence[str], label: str) -> Watch:
    """Watch names in a namespace: a dict, a class, or an object with slots."""
    get: Callable[[str, Any], Any]
    if isinstance(space, dict):
        get, put, drop = space.get, space.__setitem__, space.pop
    elif isinstance(space, type):
        get, put, drop = vars(space).get, partial(setattr, space), partial(delattr, space)
    else:
        get = partial(getattr, space)
        put, drop = partial(object.__setattr__, space), partial(object.__delattr__, space)

    def write(values: Values) -> None:
        for name, now, old in zip(names, read(), values, strict=True):
            if old is not now:
                drop(name) if old is MISSING else put(name, old)

    def read() -> Values:
        return [*map(get, names, repeat(MISSING))]

    return Watch(read, write, lambda i: "setting " + label % names[i])


def watch_items(value: Any, name: str, is_log: bool = False) -> Watch:
    """Watch all that is in a container. ``is_log`` tells that a step only appends to it."""
    what = f"changing the {type(value).__name__} {name!r}"
    if isinstance(value, list):
        whole = slice(None)
        return Watch(lambda: value, partial(value.__setitem__, whole), lambda i: what, is_log)

    def read() -> Values:
        return [*value, *value.values()] if isinstance(value, Mapping) else [*value]

    def write(values: Values) -> None:
        if isinstance(value, MutableSequence):
            while value:
                value.pop()
            value.extend(values)
        elif isinstance(value, MutableMapping):
            half = len(values) // 2
            value.clear()
            value.update(zip(values[:half], values[half:], strict=True))
        elif isinstance(value, set):
            value.clear()
            value.update(values)

    return Watch(read, write, lambda i: what)


def watch_elements(array: np.ndarray, name: str) -> Watch:
    """Watch the elements of a raw array that a step computes with by itself."""

    def write(values: Values) -> None:
        array[...] = np.frombuffer(values[0], array.dtype).reshape(array.shape)

    what = f"changing the array {name!r}"
    return Watch(lambda: [array.tobytes()], write, lambda i: what)


def watch_kinds(tensors: Sequence[Tensor]) -> Watch:
    """Watch what tensors tell that a step does not compute with: shapes, dtypes, flags."""
    seen: list[Any] = []  # arrays keep their kind
    kinds: list[Any] = []

    def read() -> Values:
        arrays = [t._data for t in tensors]
        if not seen or not all(map(is_, arrays, seen)):
            seen[:], kinds[:] = arrays, [(a.dtype, *a.shape) for a in arrays]
        return [*kinds, *[t._requires_grad for t in tensors]]

    return Watch(read, lambda values: None, lambda i: None)


def is_generator(value: Any) -> bool:
    """Return whether random numbers can be drawn from a value."""
    numpy = sys.modules.get("numpy.random")  # loaded, or nobody has a generator of its kinds
    kinds = () if numpy is None else (numpy.RandomState, numpy.Generator, numpy.BitGenerator)
    return isinstance(value, (random.Random, *kinds))


def everybodys_generator(module: str) -> Any:
    """Return the generator that the functions of a module draw from, None for other modules."""
    if module == "random":
        return random._inst
    if module == "numpy.random":
        return np.random.mtrand.get_bit_generator()
    return None


def watch_draws(generator: Any, name: str) -> Watch:
    """Watch for random numbers that are drawn while a step is recorded: others come in replays."""
    kind = f"{type(generator).__module__}.{type(generator).__qualname__}"
    what = f"drawing from a {kind} ({name!r}; gg.random can be recorded)"
    if isinstance(generator, random.SystemRandom):
        return refusal(what)
    get: Callable[[], Any]
    put: Callable[[Any], None]
    if isinstance(generator, random.Random):
        get, put = generator.getstate, lambda state: generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        get, put = partial(generator.get_state, legacy=False), generator.set_state
    else:
        bits = getattr(generator, "bit_generator", generator)
        get, put = partial(getattr, bits, "state"), partial(setattr, bits, "state")
    then = get()
    return Watch(
        lambda: [_flat(get())],
        lambda values: put(then),
        lambda i: what,
        is_kept=False,
    )


def _flat(state: Any) -> Any:
    """Return the state of a generator as values that compare."""
    if isinstance(state, dict):
        return tuple(_flat(value) for value in state.values())
    return state.tobytes() if isinstance(state, np.ndarray) else state


def refusal(what: str) -> Watch:
    """Watch what does not tell whether a step has used it, such as an iterator: it has."""
    return Watch(lambda: [object()], lambda values: None, lambda i: what, is_kept=False)


def watch_import(name: str) -> Watch:
    """Watch for a module that a step imports: a recording made ahead of that has not seen it."""
    return Watch(lambda: [sys.modules.get(name)], lambda values: None, lambda i: None)


LineOf = Callable[[str], str]
Held = Mapping[Module, Mapping[str, Any]]


def unchanged(watches: Sequence[Watch], modules: Held, line_of: LineOf) -> list[Watch]:
    """Return the watches that replays need: of no lists in which the step has logged something.

    Raises NotRecordable for what else the step has just changed, and puts it back. ``line_of``
    returns where the step's code sets a name.
    """
    watches = [watch for watch in watches if not watch.is_log]
    changed = [what for what in (watch.undo() for watch in watches) if what is not None]
    for module, then in modules.items():
        now = module.held()
        for name in [n for n in {**now, **then} if not same([now.get(n)], [then.get(n)])]:
            changed.append(f"setting {name!r}, an attribute of {type(module).__name__},")
            vars(module).pop(name, None)
            if name in then:
                vars(module)[name] = then[name]
            Module.changes += 1
    if changed:
        name = changed[0].partition("'")[2].partition("'")[0]
        raise recording.NotRecordable(
            f"gg.compile: {changed[0]} cannot be recorded, at {line_of(name)}: it would not happen "
            "again in a replay. Do it outside of the step with what the step returns, or keep the "
            "value in a tensor that the step changes in place"
        )
    return [watch for watch in watches if watch.is_kept]


class Guards:
    """What a recording depends on beside its arrays.

    Modules are looked at only after an attribute of some module was set.
    """

    def __init__(self, watches: Sequence[Watch], modules: Held) -> None:
        self._watches = watches
        self._modules = modules
        self._seen, self._alike = Module.changes, True

    def hold(self) -> bool:
        """Return whether all of it is as it was."""
        for watch in self._watches:
            if not watch.holds():
                return False
        if self._seen != (now := Module.changes):
            held = self._modules.items()
            self._seen, self._alike = now, all(_holds(m.held(), then) for m, then in held)
        return self._alike


def _holds(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    if now.keys() != then.keys():
        return False
    return same([*now.values()], [then[key] for key in now])
