"""Calls of NumPy as launches: what a function returns is found by calling it on arrays of zeros.

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

from ... import backend, memory
from .buffer import ARENA, Buffer, Storage
from .context import current
from .shadow import extent, shadow_of
from .trace import active


def as_one(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return function(*args, **kwargs); in a step that is recorded for NumPy that is one launch.

    What the function does may depend on the values of arrays, but the shapes of what it returns may
    not. It must not change its arguments: see ``changing``.
    """
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
    found = _Dry(function, args, kwargs)
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


class _Dry:
    """A call on zeros: its result with Buffers in the place of arrays, and which memory that is.

    ``allocated`` stands for what the function asks ``gpugrad.memory`` for, ``copied`` for arrays
    among its results that lie elsewhere, with None for the others, in their order.
    """

    def __init__(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        self._owners: dict[int, tuple[Buffer, np.ndarray]] = {}  # by the id of what owns memory
        self._same: dict[int, Buffer] = {}
        self._alive: list[Any] = []  # or an id might become another's
        dummies: dict[Buffer, np.ndarray] = {}

        def dummy(buffer: Buffer) -> np.ndarray:
            if buffer not in dummies:
                dummies[buffer] = zeros_like(buffer)
                self._learn(dummies[buffer], buffer)
            return dummies[buffer]

        given, named = replaced((args, kwargs), dummy)
        with np.errstate(all="ignore"), memory.noted() as noted:
            result = function(*given, **named)
        self.allocated = [laid_out(array) for array in noted.arrays]
        for array, buffer in zip(noted.arrays, self.allocated, strict=True):
            self._learn(array, buffer)
        self.copied: list[Buffer | None] = []
        self.result = replaced(result, self._placed, numbers=True)

    def _learn(self, array: np.ndarray, buffer: Buffer) -> None:
        self._alive.append(array)
        self._same[id(array)] = buffer
        self._owners[id(backend.memory_base(array))] = buffer, array

    def _placed(self, value: Any) -> Buffer:
        """Return the Buffer that stands for an array or a number among the results."""
        made = self._same.get(id(value))
        copied = None
        if made is None:
            array = np.asarray(value)
            owner = self._owners.get(id(backend.memory_base(array))) if array.size else None
            if owner is None:
                made = copied = laid_out(array)
            else:
                shadow = shadow_of(array.shape, array.dtype, array.strides)
                made = owner[0].at(_address(array) - _address(owner[1]), shadow)
            self._alive.append(value)
            self._same[id(value)] = made
        self.copied.append(copied)
        return made


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def laid_out(array: np.ndarray) -> Buffer:
    """Return a Buffer of temporary memory, with the shape, dtype and strides of an array."""
    low, high = extent(array.shape, array.strides, array.itemsize)
    shadow = shadow_of(array.shape, array.dtype, array.strides)
    return active().buffer(Storage(ARENA, high - low), -low, shadow)


def zeros_like(buffer: Buffer) -> np.ndarray:
    """Return zeros with the shape, dtype and strides of a Buffer, in memory of their own."""
    low, high = extent(buffer.shape, buffer.strides, buffer.itemsize)
    memory_ = np.zeros(high - low, np.uint8)
    return np.ndarray(buffer.shape, buffer.dtype, memory_, -low, buffer.strides)


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


def _name_of(function: Any) -> str:
    found = getattr(function, "func", function)  # of a partial
    return str(getattr(found, "__name__", type(found).__name__)).strip("_")
