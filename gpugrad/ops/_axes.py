"""Axis arguments: checked, made non-negative, and put back as length-1 axes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

Axis = int | Sequence[int] | None


def integer(value: Any) -> int | None:
    """Return an integer of any type as an int, and None for what is no integer."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def normalize_axis(axis: Any, ndim: int, name: str = "axis") -> int:
    """Return axis counted from the front; raise IndexError if there is no such axis."""
    try:
        position = axis.__index__()
    except (AttributeError, TypeError):
        raise TypeError(f"{name} must be an integer, got {axis!r}") from None
    if not -ndim <= position < ndim:
        raise IndexError(f"{name} {position} is out of range for {ndim} dimensions")
    return position % ndim


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes as a tuple counted from the front; None means all of them."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(normalize_axis(a, ndim) for a in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis {axis} names an axis twice")
    return axes


def reduced_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return ``normalize_axes`` of axes that go; for a number without axes 0 and -1 name none.

    So they do in sums of NumPy's, and in all reductions of PyTorch's.
    """
    return () if not ndim and axis in (0, -1) else normalize_axes(axis, ndim)


def kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """Return the shape after reducing over axis with keepdims=True."""
    return _kept(shape, tuple(axis) if isinstance(axis, list) else axis)


@functools.lru_cache(maxsize=4096)
def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    axes = reduced_axes(axis, len(shape))
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def count(shape: tuple[int, ...], axis: Axis) -> int:
    """Return how many elements are reduced to one."""
    total = 1
    for i in reduced_axes(axis, len(shape)):
        total *= shape[i]
    return total


def along(axis: int, part: Any) -> tuple[Any, ...]:
    """Return the index that takes part of one axis and all of the axes before it."""
    return (slice(None),) * axis + (part,)
