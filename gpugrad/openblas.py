"""OpenBLAS, by which NumPy multiplies matrices where it comes as a wheel.

Its threads wait for each other by spinning. Beside other busy threads, our own or another
program's, that costs more than they gain, often many times the product itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

# OpenBLAS's own names, and those it has in the wheels of NumPy
_PREFIXES, _SUFFIXES = ("scipy_", ""), ("64_", "")
# y = a x + b y, by the only names under which its integers are known to have 64 bits
_AXPBY = (
    ("scipy_cblas_saxpby64_", "f", ctypes.c_float),
    ("scipy_cblas_daxpby64_", "d", ctypes.c_double),
)
_PROBE = 131  # elements: some rounds of any kernel's vectors, and a rest


class _Threads(NamedTuple):
    """How many threads a product takes: read and written."""

    get: Callable[[], int]
    set: Callable[[int], None]


def available() -> bool:
    """Return whether OpenBLAS is what NumPy multiplies with."""
    return _threads() is not None


def add_scaled(x: Any, a: float, y: Any, b: float) -> bool:
    """Let y = a x + b y in one pass over both, which are 1-D; return whether that was done.

    It is done for float32 and float64 where NumPy's OpenBLAS has the function, whatever the size:
    bits do not depend on where an element stands. Not for a factor that is 0 or no normal number of
    the dtype: BLAS leaves out the NaN that is 0 times infinity. x and y may be the same, but not
    overlap otherwise.
    """
    if not (x.__class__ is y.__class__ is np.ndarray) or x.dtype != y.dtype or y.ndim != 1:
        return False
    axpby = _axpby().get(y.dtype)
    if axpby is None or x.shape != y.shape or not y.flags.carray:
        return False
    if not (axpby.least <= abs(a) <= axpby.most and axpby.least <= abs(b) <= axpby.most):
        return False
    given = x.flags
    if not (given.c_contiguous and given.aligned):
        return False
    if y.size:
        axpby.call(y.size, a, _address(x, given.writeable), 1, b, _address(y, True), 1)
    return True


class _Axpby(NamedTuple):
    """The function for a dtype, and the magnitudes of the factors it takes."""

    call: Callable[..., None]
    least: float
    most: float


@functools.cache
def _axpby() -> dict[np.dtype, _Axpby]:
    """Return the functions there are, of those that give an element the same bits anywhere."""
    found: dict[np.dtype, _Axpby] = {}
    for library in _libraries(ctypes.CDLL):  # without the interpreter lock, as ufuncs
        for name, kind, number in _AXPBY:
            if hasattr(library, name):
                call = getattr(library, name)
                sizes, place = ctypes.c_int64, ctypes.c_void_p
                call.argtypes = [sizes, number, place, sizes, number, place, sizes]
                call.restype = None
                if _same_anywhere(call, np.dtype(kind)):
                    info = np.finfo(kind)
                    made = _Axpby(call, float(info.tiny), float(info.max))
                    found.setdefault(np.dtype(kind), made)
    return found


def _same_anywhere(call: Callable[..., None], dtype: np.dtype) -> bool:
    """Return whether a kernel rounds an element alone as it does among others."""
    x, y = (np.sin(np.arange(start, start + _PROBE), dtype=np.float64) for start in (1, 500))
    x, together = x.astype(dtype), y.astype(dtype)
    alone = together.copy()
    call(_PROBE, 0.1, x.ctypes.data, 1, 0.9, together.ctypes.data, 1)
    for i in range(_PROBE):
        call(1, 0.1, x[i:].ctypes.data, 1, 0.9, alone[i:].ctypes.data, 1)
    return np.array_equal(together, alone)


def _address(array: Any, writeable: bool) -> int:
    """Return where the elements lie; ``array.ctypes`` takes four times as long."""
    if writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    return array.ctypes.data


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
    # unlike a CDLL a PyDLL keeps the interpreter lock: 0.2 µs a call
    for library in _libraries(ctypes.PyDLL):
        for name in (f"{p}openblas_%s_num_threads{s}" for p in _PREFIXES for s in _SUFFIXES):
            if hasattr(library, name % "set"):
                return _Threads(getattr(library, name % "get"), getattr(library, name % "set"))
    return None


def _libraries(load: Callable[[str], ctypes.CDLL]) -> Iterator[ctypes.CDLL]:
    for path in _loaded():
        try:
            library = load(path)
        except OSError:  # no library: data of that name is mapped, or a file that is gone
            continue
        yield library


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
