"""What a function of NumPy's arrays returns: found by calling it on zeros, once for each layout.

What would be done with values is left out (prepared.py): how a result looks does not depend on
them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from ... import backend, memory, prepared
from .buffer import Buffer
from .shadow import extent

ARGUMENT, ALLOCATED, COPIED = "argument", "allocated", "copied"


class Layout(NamedTuple):
    """The shape, strides and dtype of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class Place(NamedTuple):
    """Where an array among the results lies.

    ``source`` says in what: an argument, an array that ``gpugrad.memory`` was asked for, or one
    that has to be copied; ``number`` in which of them. ``offset`` is where it begins there, in
    bytes, None if it is that array itself; ``is_view`` tells that it does not own its memory.
    """

    source: str
    number: int
    offset: int | None
    layout: Layout
    is_view: bool


class Outcome(NamedTuple):
    """What a function asks ``gpugrad.memory`` for, and its result with Places for arrays."""

    allocated: tuple[Layout, ...]
    result: Any


def outcome(
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    known: dict[Hashable, Outcome],
) -> Outcome:
    """Return what a function does with arrays of these layouts; ``known`` are those found before.

    The arrays among the arguments are Buffers; ``distinct`` returns them as Places count them.
    """
    try:
        key = getattr(function, "key", function), _layouts((args, kwargs), {})
        found = known.get(key)
    except TypeError:  # something that has no hash
        return _called(function, args, kwargs)
    if found is None:
        found = known[key] = _called(function, args, kwargs)
    return found


def distinct(value: Any) -> list[Buffer]:
    """Return the Buffers in nested lists, tuples and dicts, each once."""
    return [b for b in {id(b): b for b in arrays_in(value)}.values() if isinstance(b, Buffer)]


def _layouts(value: Any, seen: dict[int, int]) -> Hashable:
    """Return what decides the result of a call: its arguments, layouts in the place of Buffers."""
    if isinstance(value, Buffer):
        return seen.setdefault(id(value), len(seen)), value.shape, value.strides, value.dtype
    if isinstance(value, (list, tuple)):
        return type(value), *(_layouts(v, seen) for v in value)
    if isinstance(value, dict):
        return tuple((k, _layouts(v, seen)) for k, v in value.items())
    if isinstance(value, slice):
        return slice, value.start, value.stop, value.step
    hash(value)
    return type(value), value


def _called(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Outcome:
    buffers = distinct((args, kwargs))
    # no value is read or written where the second half of the call is left out
    make = np.empty if getattr(function, "prepared", False) else np.zeros
    zeros = {id(b): zeros_like(b, make) for b in buffers}
    given, named = replaced((args, kwargs), lambda b: zeros[id(b)])
    with np.errstate(all="ignore"):
        result, noted = memory.noted(make, prepared.left_out, function, *given, **named)
    arguments = [zeros[id(b)] for b in buffers]
    alive: list[Any] = []  # or an id might become another's
    copies = 0
    places: dict[int, Place] = {}
    owners: dict[int, tuple[str, int, np.ndarray]] = {}
    for source, arrays in ((ARGUMENT, arguments), (ALLOCATED, noted)):
        for i, array in enumerate(arrays):
            places[id(array)] = Place(source, i, None, layout_of(array), False)
            owners[id(backend.memory_base(array))] = source, i, array

    def place(value: Any) -> Place:
        nonlocal copies
        found = places.get(id(value))
        if found is None:
            array = np.asarray(value)
            owner = owners.get(id(backend.memory_base(array))) if array.size else None
            if owner is None:
                is_view = value.base is not None
                found = Place(COPIED, copies, None, layout_of(array), is_view)
                copies += 1
            else:
                source, index, first = owner
                start = array.ctypes.data - first.ctypes.data
                found = Place(source, index, start, layout_of(array), True)
            alive.append(value)
            places[id(value)] = found
        return found

    return Outcome(
        tuple(layout_of(array) for array in noted), replaced(result, place, numbers=True)
    )


def layout_of(array: Any) -> Layout:
    """Return the layout of an array or a Buffer."""
    return Layout(array.shape, array.strides, array.dtype)


def zeros_like(buffer: Buffer, make: Callable[..., np.ndarray] = np.zeros) -> np.ndarray:
    """Return zeros, or what ``make`` makes, with the shape, dtype and strides of a Buffer."""
    low, high = extent(buffer.shape, buffer.strides, buffer.itemsize)
    return np.ndarray(buffer.shape, buffer.dtype, make(high - low, np.uint8), -low, buffer.strides)


def arrays_in(value: Any) -> list[Any]:
    """Return the arrays, Buffers and NumPy numbers in nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in arrays_in(v)]
    if isinstance(value, dict):
        return [a for v in value.values() for a in arrays_in(v)]
    return [value] if backend.is_array(value) or isinstance(value, np.generic) else []


def replaced(value: Any, function: Callable[[Any], Any], numbers: bool = False) -> Any:
    """Return nested lists, tuples and dicts with something else in the place of arrays.

    With ``numbers`` in the place of NumPy's numbers too.
    """
    if backend.is_array(value) or (numbers and isinstance(value, np.generic)):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced(v, function, numbers) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(v, function, numbers) for v in value)
    if isinstance(value, dict):
        return {k: replaced(v, function, numbers) for k, v in value.items()}
    return value
