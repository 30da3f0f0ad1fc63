"""Calls of NumPy as launches: what a function returns is found by calling it on zeros (dry_run.py).

A recorded call is the call itself: the same function on arrays of the same shapes and strides, so
that every bit is the same. What differs is where results lie. A ufunc writes to memory laid out for
the step (``out=``), and so does whatever allocates by ``gpugrad.memory``; the results of other
functions are copied there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import backend, memory, openblas, prepared
from .buffer import ARENA, Buffer, Storage
from .context import current
from .dry_run import (
    ALLOCATED,
    ARGUMENT,
    COPIED,
    Layout,
    Outcome,
    Place,
    arrays_in,
    distinct,
    outcome,
    replaced,
)
from .shadow import extent, shadow_of
from .trace import active


def as_one(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return function(*args, **kwargs); in a step that is recorded for NumPy that is one launch.

    What the function does may depend on the values of arrays, but the shapes of what it returns may
    not. It must not change its arguments: see ``changing``.
    """
    if current() is None:  # the common case, without a detour
        return function(*args, **kwargs)
    return changing((), function, *args, **kwargs)


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as one launch of whatever step is recorded for NumPy: see ``as_one``."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return as_one(function, *args, **kwargs)

    return run


def changing(
    changed: Sequence[Any], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Do what ``as_one`` does for a function that changes some of the arrays it is called with."""
    trace = current()
    if trace is None or not trace.buffer.by_numpy:
        return function(*args, **kwargs)
    if not any(isinstance(a, Buffer) for a in arrays_in((args, kwargs))):
        return function(*args, **kwargs)
    args, kwargs = replaced((args, kwargs), lambda a: a if isinstance(a, Buffer) else trace.lift(a))
    changed = [a if isinstance(a, Buffer) else trace.lift(a) for a in changed]
    found = _Made(outcome(function, args, kwargs, trace.known), distinct((args, kwargs)))
    copied = [b for b in found.copied if b is not None]
    writes = [*found.allocated, *copied, *changed]
    if found.copied and not writes:
        return found.result  # views of what is there already
    trace.record(
        Whole(function, [b is not None for b in found.copied]),
        (found.allocated, copied, args, kwargs),
        reads=[a for a in arrays_in((args, kwargs)) if backend.is_array(a)],
        writes=writes,
        name=_name_of(function),
    )
    return found.result


class Whole:
    """A call of a function whose results lie where the step has them.

    ``copies`` says of each array among its results whether that is copied there.
    """

    def __init__(self, function: Callable[..., Any], copies: Sequence[bool]) -> None:
        self.function = function
        self.copies = tuple(copies) if any(copies) else ()

    def bound(self, *args: Any) -> Callable[[], None]:
        """Return the call with these arguments, to be made again and again.

        Of a function with the attribute ``prepared`` it is what that does with values of arrays.
        """
        call = functools.partial(self, *args)
        return call if self.copies or not self.is_prepared else Repeated(call)

    @property
    def is_prepared(self) -> bool:
        """Whether the function leaves all that it does with values to ``gpugrad.prepared``."""
        return getattr(self.function, "prepared", False)

    def __call__(
        self,
        allocated: Sequence[np.ndarray],
        copied: Sequence[np.ndarray],
        args: tuple,
        kwargs: dict[str, Any],
    ) -> None:
        """Call the function, which is handed the arrays ``allocated``; fill those ``copied``."""
        result, fits = memory.run_in(allocated, self.function, args, kwargs)
        if not fits:
            raise RuntimeError(
                f"gg.compile: {_name_of(self.function)} asks for other memory than when it was "
                "recorded; what gpugrad.memory is asked for may depend on shapes alone"
            )
        if self.copies:
            pairs = zip(arrays_in(result), self.copies, strict=True)
            chosen = [a for a, is_copied in pairs if is_copied]
            for target, value in zip(copied, chosen, strict=True):
                if target.shape != value.shape:
                    raise RuntimeError(
                        f"gg.compile: {_name_of(self.function)} returned {value.shape} where it "
                        f"was recorded to return {target.shape}"
                    )
                np.copyto(target, value)


class Repeated:
    """A call of a function that is prepared once, and then made by what it does with values."""

    __slots__ = ("_call", "_works")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._works: list[Callable[[], Any]] | None = None

    @property
    def works(self) -> list[Callable[[], Any]]:
        """What it does with values, one after the other; others may be put in their place."""
        if self._works is None:
            _, self._works = prepared.noted(self._call)
        return self._works

    def __call__(self) -> None:
        """Make it."""
        with openblas.serial:
            for work in self._works or self.works:
                work()


class _Made:
    """The Buffers of a call: its result with Buffers in the place of arrays, and the memory of it.

    ``allocated`` stands for what the function asks ``gpugrad.memory`` for, ``copied`` for arrays
    among its results that lie elsewhere, with None for the others, in their order.
    """

    def __init__(self, found: Outcome, arguments: list[Buffer]) -> None:
        self.allocated = [laid_out(layout) for layout in found.allocated]
        self.copied: list[Buffer | None] = []
        self._sources = {ARGUMENT: arguments, ALLOCATED: self.allocated}
        self._made: dict[Place, Buffer] = {}
        self.result = self._placed(found.result)

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Place):
            return self._buffer(value)
        if isinstance(value, (list, tuple)):
            made = [self._placed(v) for v in value]
            return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
        return value

    def _buffer(self, place: Place) -> Buffer:
        made = self._made.get(place)
        copied = None
        if made is None:
            if place.source == COPIED:
                made = copied = laid_out(place.layout)
                if place.is_view:
                    made.base = made
            else:
                made = self._sources[place.source][place.number]
                if place.offset is not None:
                    shape, strides, dtype = place.layout
                    made = made.at(place.offset, shadow_of(shape, dtype, strides))
            self._made[place] = made
        self.copied.append(copied)
        return made


def laid_out(layout: Layout) -> Buffer:
    """Return a Buffer of temporary memory, with this shape, dtype and strides."""
    shape, strides, dtype = layout
    low, high = extent(shape, strides, dtype.itemsize)
    return active().buffer(Storage(ARENA, high - low), -low, shadow_of(shape, dtype, strides))


def _name_of(function: Any) -> str:
    found = getattr(function, "func", function)  # of a partial
    return str(getattr(found, "__name__", type(found).__name__)).strip("_")
