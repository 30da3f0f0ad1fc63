"""``empty``: arrays that count as uninitialised until a kernel writes to them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import memory_base
from . import compile as compiler

_marked: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


def empty(shape: int | Sequence[int], dtype: Any = np.float32, poison: int = 0xFF) -> np.ndarray:
    """Return an array that counts as uninitialised until a kernel writes to it.

    In the checked build a kernel that reads a byte nobody has written raises Uninitialised, in
    this launch or a later one. ``poison`` is the byte it is filled with. Writes from Python are
    not seen: fill it by a kernel, or use numpy.empty.
    """
    array = np.empty(shape, dtype)
    mark(array, np.ones(array.nbytes, np.uint8), poison)
    return array


def marks_of(array: np.ndarray) -> np.ndarray | None:
    """Return which bytes of an array no kernel has written (1), in C order.

    None if it shows no memory from ``empty``.
    """
    owner = memory_base(array)
    marks = marks_of_owner(owner)
    return None if marks is None else _shown(marks, owner, array).reshape(-1)


def marks_of_owner(owner: np.ndarray) -> np.ndarray | None:
    """Return the same for an array that owns its memory, in the order of addresses."""
    if _marked.get(id(owner)) is not owner:
        return None
    marks = np.zeros(owner.nbytes, np.uint8)
    with compiler.lock:
        _runtime().gpugrad_marks(_address(owner), ctypes.c_size_t(owner.nbytes), _address(marks))
    return marks


def mark(array: np.ndarray, marks: np.ndarray, poison: int) -> None:
    """Count bytes of an array as unwritten, and fill them with ``poison``."""
    if not array.nbytes:
        return
    _bytes(array)[marks != 0] = poison
    _runtime_mark(array, marks)
    weakref.finalize(array, _forget, _runtime(), _address(array)).atexit = False
    _marked[id(array)] = array


def wrote(array: np.ndarray) -> None:
    """Count what an array from ``empty``, or a view of one, shows as written by a kernel."""
    owner = memory_base(array)
    marks = marks_of_owner(owner)
    if marks is None or not array.size:
        return
    _shown(marks, owner, array)[...] = 0
    _runtime_mark(owner, marks)


def _shown(marks: np.ndarray, owner: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return the marks of what a view shows, with its shape and an axis for the bytes."""
    start = array.ctypes.data - owner.ctypes.data
    shape, strides = (*array.shape, array.itemsize), (*array.strides, 1)
    return np.lib.stride_tricks.as_strided(marks[start:], shape, strides)


def _runtime_mark(array: np.ndarray, marks: np.ndarray) -> None:
    with compiler.lock:
        _runtime().gpugrad_mark(_address(array), ctypes.c_size_t(array.nbytes), _address(marks))


def _forget(runtime: ctypes.CDLL, address: ctypes.c_void_p) -> None:
    with compiler.lock:
        runtime.gpugrad_mark(address, ctypes.c_size_t(0), None)


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _runtime() -> ctypes.CDLL:
    return compiler.loaded(compiler.runtime())
