"""``empty``: arrays that count as uninitialised until a kernel writes to them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import compile as compiler

_unwritten: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


def empty(shape: int | Sequence[int], dtype: Any = np.float32, poison: int = 0xFF) -> np.ndarray:
    """Return an array that counts as uninitialised until a kernel writes to it.

    In the checked build a kernel that reads a byte nobody has written raises Uninitialised, in
    this launch or a later one. ``poison`` is the byte it is filled with. Writes from Python are
    not seen: fill it by a kernel, or use numpy.empty.
    """
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = poison
    if array.nbytes:
        runtime = ctypes.CDLL(str(compiler.runtime()))
        address, size = array.ctypes.data, array.nbytes
        with compiler.lock:
            runtime.gpugrad_mark(ctypes.c_void_p(address), ctypes.c_size_t(size))
        weakref.finalize(array, _forget, runtime, address).atexit = False
        _unwritten[id(array)] = array
    return array


def is_unwritten(array: np.ndarray) -> bool:
    """Return whether the array came from ``empty``."""
    return _unwritten.get(id(array)) is array


def _forget(runtime: ctypes.CDLL, address: int) -> None:
    with compiler.lock:
        runtime.gpugrad_mark(ctypes.c_void_p(address), ctypes.c_size_t(0))
