"""The threads of OpenBLAS, by which NumPy multiplies matrices where it comes as a wheel.

They wait for each other by spinning. Beside other busy threads, our own or another program's, that
costs more than they gain, often many times the product itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# OpenBLAS's own names, and those it has in the wheels of NumPy
_PREFIXES, _SUFFIXES = ("scipy_", ""), ("64_", "")


class _Threads(NamedTuple):
    """How many threads a product takes: read and written."""

    get: Callable[[], int]
    set: Callable[[int], None]


def set_openblas_threads(count: int) -> bool:
    """Let the matrix products of NumPy take `count` threads; return whether that could be done.

    Not with another BLAS. gpugrad's own take the threads of ``gpugrad.threads``.
    """
    threads = _threads()
    if threads is not None:
        threads.set(count)
    return threads is not None


def available() -> bool:
    """Return whether OpenBLAS is what NumPy multiplies with."""
    return _threads() is not None


class _Serial:
    """While one or more threads are inside, OpenBLAS takes one thread for a product."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside and (threads := _threads()) is not None:
                self._before = threads.get()
                if self._before != 1:
                    threads.set(1)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside = max(self._inside - 1, 0)
            if not self._inside and self._before != 1 and (threads := _threads()) is not None:
                threads.set(self._before)

    def after_fork(self) -> None:
        """Forget the threads inside: only the one that forked is in the child."""
        self._lock = threading.Lock()
        if self._inside and (threads := _threads()) is not None:
            threads.set(self._before)
        self._inside = 0


serial = _Serial()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=serial.after_fork)


@functools.cache
def _threads() -> _Threads | None:
    for path in _loaded():
        library = ctypes.PyDLL(path)  # unlike a CDLL it keeps the interpreter lock: 0.2 µs a call
        for name in (f"{p}openblas_%s_num_threads{s}" for p in _PREFIXES for s in _SUFFIXES):
            if hasattr(library, name % "set"):
                return _Threads(getattr(library, name % "get"), getattr(library, name % "set"))
    return None


def _loaded(maps: str | os.PathLike[str] = "/proc/self/maps") -> list[str]:
    """Return what may be NumPy's OpenBLAS: what is loaded; where no /proc says, what it ships."""
    if os.path.exists(maps):
        with open(maps, encoding="utf-8", errors="surrogateescape") as file:
            return sorted(set(re.findall(r"/\S*openblas\S*", file.read())))
    package = os.path.dirname(np.__file__)
    folders = os.path.join(os.path.dirname(package), "numpy.libs"), os.path.join(package, ".dylibs")
    return sorted(
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if "openblas" in name
    )
