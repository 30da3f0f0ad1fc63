"""Array libraries and devices: numpy always, cupy where it works.

The device of a tensor is the type of its array, so this module is the only place (beside
``gpugrad.cuda``) that knows cupy exists. Nothing here imports cupy until a GPU is asked for.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from types import ModuleType
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray
DTypeLike: TypeAlias = Any

float16 = np.dtype("float16")
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype("float32")
float64 = np.dtype("float64")
int8 = np.dtype("int8")
int16 = np.dtype("int16")
int32 = np.dtype("int32")
int64 = np.dtype("int64")
uint8 = np.dtype("uint8")
uint16 = np.dtype("uint16")
uint32 = np.dtype("uint32")
uint64 = np.dtype("uint64")
bool_ = np.dtype("bool")

FLOATS = (float16, bfloat16, float32, float64)
DTYPES = (*FLOATS, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool_)
_BY_NAME = {dtype.name: dtype for dtype in DTYPES}


NARROW = (float16, bfloat16)  # accumulate in float32


def as_dtype(dtype: DTypeLike) -> np.dtype:
    """Return the numpy dtype for a name, a Python type, a numpy type or a dtype.

    Raises TypeError for dtypes a tensor cannot hold (complex, object, strings, dates).
    """
    if dtype is float:
        return float32
    try:
        resolved = _BY_NAME[dtype] if isinstance(dtype, str) else np.dtype(dtype)
    except (KeyError, TypeError):
        resolved = None
    if resolved is None or resolved not in DTYPES:  # np.dtype("float64") == None is true
        raise TypeError(
            f"dtype {dtype!r} is not supported; use one of {', '.join(d.name for d in DTYPES)}"
        )
    return resolved


def is_float(dtype: np.dtype) -> bool:
    """Return whether gradients can flow through arrays of this dtype."""
    return dtype.kind == "f" or dtype == bfloat16


def promote(x: np.dtype, y: np.dtype) -> np.dtype:
    """Return the dtype of an operation between two arrays.

    NumPy's promotion with one exception: an integer or boolean array never widens a floating
    array (``float32`` with ``int64`` stays ``float32``, as in PyTorch). ``float16`` with
    ``bfloat16``, for which NumPy has no answer, is ``float32``.
    """
    if x == y:
        return x
    x_is_float, y_is_float = is_float(x), is_float(y)
    if x_is_float != y_is_float:
        return x if x_is_float else y
    if {x, y} == {float16, bfloat16}:
        return float32
    return np.promote_types(x, y)


@functools.cache
def whole_numbers(dtype: np.dtype) -> tuple[int, int]:
    """Return the ends of the range in which a dtype holds every integer exactly."""
    if dtype == bool_:
        return 0, 1
    if is_float(dtype):
        largest = int(2 / ml_dtypes.finfo(dtype).eps)
        return -largest, largest
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def refuse_overflow(values: np.ndarray, dtype: np.dtype) -> None:
    """Raise ValueError if numbers given to an integer dtype are not finite or do not fit in it."""
    if dtype.kind not in "iu" or values.dtype.kind not in "iuf" or not values.size:
        return
    first, last = whole_numbers(dtype)
    ends = (np.minimum, np.maximum) if values.ndim else ()
    for value in [end.reduce(values, axis=None).item() for end in ends] or [values.item()]:
        if not (math.isfinite(value) and first <= int(value) <= last):
            raise ValueError(f"{value} is no {dtype}, which holds {first} to {last}")


@functools.cache
def cupy_or_reason() -> tuple[ModuleType | None, str]:
    """Return (cupy, "") if a GPU can be used, else (None, the reason in words)."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return None, 'CuPy is not installed: pip install "gpugrad[cuda13]"'
        return None, f"CuPy is installed but cannot be imported: {error}"
    except OSError as error:  # it makes its cache folder
        return None, (
            f"CuPy is installed but cannot be imported: {error}; if that is its cache folder "
            "(~/.cupy), CUPY_CACHE_DIR names another"
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return None, f"CuPy is installed but finds no usable CUDA driver or device: {error}"
    if count == 0:
        return None, "CuPy is installed and the CUDA driver works, but no device is visible"
    return cupy, ""


def cuda_is_available() -> bool:
    """Return whether tensors can live on a CUDA device."""
    return cupy_or_reason()[0] is not None


def cupy_module() -> ModuleType:
    """Return cupy, or raise RuntimeError that says what is missing."""
    cupy, reason = cupy_or_reason()
    if cupy is None:
        raise RuntimeError(
            f"device 'cuda' is not available. {reason}. `gpugrad doctor` checks the machine; "
            "GPUGRAD_DEVICE=cpu or device='cpu' computes with NumPy"
        )
    return cupy


def default_device() -> str:
    """Return where new data goes: GPUGRAD_DEVICE if set, else "cuda" if one works, else "cpu"."""
    device = asked()
    if device == "auto":
        return "cuda" if cuda_is_available() else "cpu"
    return device


def asked() -> str:
    """Return what GPUGRAD_DEVICE asks for; ValueError for what is no device."""
    asked = os.environ.get("GPUGRAD_DEVICE", "").strip().lower() or "auto"
    if asked in ("auto", "cpu") or asked.partition(":")[0] == "cuda":
        return asked
    raise ValueError(f"GPUGRAD_DEVICE={asked!r} is not a device; use cpu, cuda, cuda:N or auto")


def namespace(device: str | None = None) -> ModuleType:
    """Return the array library of a device ("cpu", "cuda", "cuda:N"; None is the default)."""
    name, _, index = (device or default_device()).partition(":")
    if name == "cpu" and not index:
        return np
    if name == "cuda" and (not index or index.isdigit()):
        cupy = cupy_module()
        if index:
            count = cupy.cuda.runtime.getDeviceCount()
            if int(index) >= count:
                raise RuntimeError(f"device {device!r} does not exist: {count} visible")
            cupy.cuda.Device(int(index)).use()
        return cupy
    if name == "symbolic" and not index:
        return Symbolic.namespace
    if name == "meta" and not index:
        return importlib.import_module(f"{__package__}.cuda.recording").xp
    raise ValueError(f"device {device!r} is not a device; use 'cpu', 'cuda' or 'cuda:N'")


def is_device(name: object) -> bool:
    """Return whether a string names a device rather than a dtype."""
    return isinstance(name, str) and name.partition(":")[0] in ("cpu", "cuda", "meta")


def destination(target: Any, device: str | None, dtype: Any) -> tuple[str | None, Any]:
    """Return device and dtype, with ``target``, a device or a dtype, in its place; None is neither.

    Raises TypeError if one of them is given twice.
    """
    if target is None:
        return device, dtype
    if is_device(target):
        if device is not None:
            raise TypeError(f"to: device is given twice, {target!r} and {device!r}")
        return target, dtype
    if dtype is not None:
        raise TypeError(f"to: {target!r} is no device, {dtype!r} a second dtype; give one of each")
    return device, target


class Symbolic:
    """An array without elements: it records what is computed from it.

    Tensors hold one while a function is traced: for one kernel, from any shapes
    (cuda/symbolic.py, device "symbolic"), or for a list of launches (cuda/recording.py, "meta").
    ``namespace`` is its array library.
    """

    __slots__ = ()
    device: Any = "symbolic"
    namespace: Any = None

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("an array without elements cannot become a NumPy array")

    def settle(self) -> Any:
        """Return self; if it waits to be computed together with what reads it, it is now."""
        return self


def is_array(value: object) -> bool:
    """Return whether value is a numpy or cupy array, or stands for one."""
    if isinstance(value, (np.ndarray, Symbolic)):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def is_numpy(array: object) -> bool:
    """Return whether NumPy computes with an array: one of its own, or one that stands for such."""
    return isinstance(array, np.ndarray) or (isinstance(array, Symbolic) and array.device == "cpu")


def xp_of(array: Array) -> ModuleType:
    """Return the library that owns an array: numpy or cupy."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    if isinstance(array, Symbolic):
        return array.namespace
    return sys.modules["cupy"]


def device_of(array: Array) -> str:
    """Return "cpu" or "cuda:N"."""
    if isinstance(array, np.ndarray):
        return "cpu"
    return array.device if isinstance(array, Symbolic) else f"cuda:{array.device.id}"


def to_device(array: Array, device: str) -> Array:
    """Return the array on a device: itself if it is already there, else a copy."""
    if isinstance(array, Symbolic):
        return array  # where it will be is decided later
    xp = namespace(device)
    if xp is np:
        return array if isinstance(array, np.ndarray) else sys.modules["cupy"].asnumpy(array)
    return xp.asarray(array)


def to_numpy(array: Array) -> np.ndarray:
    """Return the array as numpy: itself on the CPU, a copy from a GPU."""
    if isinstance(array, Symbolic):
        return array.__array__()  # which says that there are no values
    return to_device(array, "cpu")


def as_array(data: Any, dtype: DTypeLike = None, device: str | None = None) -> Array:
    """Return data as an array a tensor can hold, without copying when nothing has to change.

    Python floats become float32, Python ints int64; arrays keep their dtype. Without a device,
    arrays stay where they are and Python data goes to the default device. Raises ValueError for
    Python numbers that do not fit in an integer dtype; arrays are converted as NumPy does.
    """
    wanted = None if dtype is None else as_dtype(dtype)
    if is_array(data):
        array = data if device is None else to_device(data, device)
    else:
        ours = isinstance(data, np.generic) or not hasattr(data, "__array__")
        if not isinstance(data, np.generic):
            data = _python_data(data, narrow=wanted is None)
        if ours and wanted is not None and data.dtype != wanted:
            refuse_overflow(data, wanted)
        array = namespace(device).asarray(data)
    if wanted is None:
        wanted = as_dtype(array.dtype)
    if type(array) is not np.ndarray and isinstance(array, np.ndarray):
        array = array.view(np.ndarray)  # memmap and other subclasses
    return array if array.dtype == wanted else array.astype(wanted)


def _python_data(data: Any, narrow: bool) -> np.ndarray:
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(f"cannot make a tensor of nested data: {error}") from error
    if narrow and array.dtype == float64 and not _holds_float64(data):
        return array.astype(float32)
    return array


def _holds_float64(data: Any) -> bool:
    """Return whether data is, or holds in nested lists, a float64 array or NumPy number."""
    if isinstance(data, (list, tuple)):
        return any(map(_holds_float64, data))
    return hasattr(data, "__array__") and np.asarray(data).dtype == float64


def synchronize() -> None:
    """Wait until all work queued on the current GPU is done; returns at once on the CPU."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and cuda_is_available():
        cupy.cuda.get_current_stream().synchronize()


MANY = 1024  # numbers in float32 that are added one after the other at most
_RUN = 64  # those of which there are more

_add_reduce: Any = np.add.reduce


def total(xp: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Return the sum over axes in the dtype of x, accumulated in float32 at least.

    ``xp`` is numpy, cupy or gpugrad's own operations. NumPy adds what lies side by side in pairs,
    and the rest one after the other: of float32 that is done in runs, and runs of their sums, so
    that the error grows with the logarithm of how many there are.
    """
    if axis.__class__ is list:
        axis = tuple(axis)
    if x.dtype.itemsize == 2 and x.dtype in NARROW:
        return xp.sum(x, axis=axis, keepdims=keepdims, dtype=float32).astype(x.dtype)
    if xp is not np:
        return xp.sum(x, axis=axis, keepdims=keepdims)
    if x.size > MANY and axis is not None and x.dtype == float32:
        axes = axis if isinstance(axis, tuple) else (axis,)
        gone = {a + x.ndim if a < 0 else a for a in axes}
        fits = len(gone) == len(axes) and gone <= {*range(x.ndim)}
        if fits and MANY < math.prod(x.shape[a] for a in gone) < x.size:
            return _sum_of_many(x, gone, keepdims)
    return _add_reduce(x, axis=axis, keepdims=keepdims)  # numpy.sum takes a microsecond more


def _sum_of_many(x: Any, gone: set[int], keepdims: bool) -> Any:
    """Return the sums over some of the axes, one after the other, those far apart in runs."""
    by_step = sorted((a for a, n in enumerate(x.shape) if n > 1), key=lambda a: abs(x.strides[a]))
    out = x
    for a in by_step:
        if a in gone:
            out = out if a == by_step[0] and x.strides[a] else _in_runs(out, a)
            out = _add_reduce(out, axis=a, keepdims=True)
    return out if keepdims else out.reshape([n for a, n in enumerate(x.shape) if a not in gone])


def _in_runs(x: Any, axis: int) -> Any:
    """Return x with numbers along an axis added up until they are no more than a run or two."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    while x.shape[axis] > 2 * _RUN:
        count, rest = divmod(x.shape[axis], _RUN)
        runs, last = np.split(x, [count * _RUN], axis=axis)
        x = _add_reduce(runs.reshape(*before, count, _RUN, *after), axis=axis + 1)
        if rest:
            x = np.concatenate([x, _add_reduce(last, axis=axis, keepdims=True)], axis=axis)
    return x


def memory_base(array: Array) -> Array:
    """Return the array that owns the memory a chain of views looks at."""
    if isinstance(array, Symbolic):
        return array
    base = array.base
    while base is not None and is_array(base):
        array, base = base, base.base
    return array
