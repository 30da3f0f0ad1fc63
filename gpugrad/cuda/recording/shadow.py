"""Shapes and strides without elements, and arrays at an address."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np


@functools.cache
def _dummy(dtype: np.dtype) -> np.ndarray:
    return np.zeros(1, dtype)


def shadow_of(shape: Sequence[int], dtype: Any, strides: Sequence[int] | None = None) -> np.ndarray:
    """Return a NumPy array to ask for shapes, strides and views; its elements are no memory."""
    shape = tuple(map(operator.index, (shape,) if isinstance(shape, int) else shape))
    return _shadow(shape, np.dtype(dtype), None if strides is None else tuple(strides))


@functools.lru_cache(maxsize=4096)  # a step has few shapes, each of them many times
def _shadow(shape: tuple[int, ...], dtype: np.dtype, strides: tuple[int, ...] | None) -> np.ndarray:
    base = _dummy(dtype)
    if strides is None:
        lengths = [max(n, 1) for n in shape]
        strides = tuple(base.itemsize * math.prod(lengths[i + 1 :]) for i in range(len(shape)))
    return np.lib.stride_tricks.as_strided(base, shape, strides, writeable=False)


def extent(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Return where the bytes of an array begin and end, from its first element on."""
    steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    if any(n == 0 for n in shape):
        return 0, 0
    return sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + itemsize


def dense(array: Any) -> tuple[int, ...] | None:
    """Return strides without gaps in which axes lie as they do in an array; None for C order.

    In which order NumPy sums depends on that: which axis is the innermost, and its direction.
    """
    if array.flags.c_contiguous:
        return None
    long = [axis for axis, length in enumerate(array.shape) if length > 1]
    inner_first = sorted(long, key=lambda i: (abs(array.strides[i]), -i))
    if inner_first == long[::-1] and all(array.strides[i] > 0 for i in long):
        return None
    step, strides = array.itemsize, [array.itemsize] * array.ndim
    for axis in inner_first:
        stride = array.strides[axis]
        strides[axis] = -step if stride < 0 else step
        if stride:
            step *= array.shape[axis]
        else:
            strides[axis] = 0  # it is broadcast
    return tuple(strides)


def lengths_of(size: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with its -1 filled in; ValueError if it has not so many elements."""
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        missing = size // known if known else 0
        shape = tuple(missing if n == -1 else n for n in shape)
    if math.prod(shape) != size:
        raise ValueError(f"cannot reshape array of size {size} into shape {shape}")
    return shape


class _Placed:
    """What NumPy makes an array of at an address."""

    def __init__(self, like: np.ndarray, address: int, keep: Any = None) -> None:
        kind = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8"}[like.itemsize]
        self.keep = keep
        self.__array_interface__ = {
            "version": 3,
            "shape": like.shape,
            "strides": like.strides,
            "typestr": kind,
            "data": (address, False),
        }


def array_at(
    shape: Sequence[int], strides: Sequence[int], dtype: Any, address: int, keep: Any
) -> Any:
    """Return a NumPy array on memory at an address, which ``keep`` owns."""
    like = shadow_of(shape, dtype, strides)
    array = np.asarray(_Placed(like, address, keep))
    return array if array.dtype == like.dtype else array.view(like.dtype)


def merged(shadow: np.ndarray, shape: tuple[int, ...]) -> list[int] | None:
    """Return the strides of a view in another shape, None where there is no such view."""
    groups: list[list[int]] = []  # lengths and strides of axes that lie one behind the other
    for length, stride in zip(shadow.shape, shadow.strides, strict=True):
        if length == 1:
            continue
        if groups and groups[-1][1] == length * stride:
            groups[-1] = [groups[-1][0] * length, stride]
        else:
            groups.append([length, stride])
    strides: list[int] = []
    rest = list(reversed(groups))
    left, step = (rest.pop(0)) if rest else (1, shadow.itemsize)
    for length in reversed(shape):
        if length == 1:
            strides.append(step)
            continue
        if left == 1 and rest:
            left, step = rest.pop(0)
        if left % length:
            return None
        strides.append(step)
        left //= length
        step *= length
    return strides[::-1]
