"""New tensors. Without a dtype they are float32; without a device they go to the default one."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, registry
from ..backend import DTypeLike
from ..boundary import REFUSALS, refuse
from ..cuda import recording

Shape = int | Sequence[int]


def _made(array: Any, requires_grad: bool, shared: bool = False) -> Any:
    if registry.lift is not None and not shared:
        recording.created(array)
    return registry.Tensor(array, requires_grad=requires_grad)


def tensor(
    data: Any, dtype: DTypeLike = None, device: str | None = None, requires_grad: bool = False
) -> Any:
    """Return a new leaf tensor holding a copy of data (numbers, nested lists, arrays, tensors).

    Python floats become float32 and ints int64; arrays keep their dtype. Data without a place of
    its own goes to ``device``, by default GPUGRAD_DEVICE or the GPU if there is one. Raises
    ValueError for Python numbers that an integer ``dtype`` cannot hold.
    """
    if isinstance(data, registry.Tensor):
        data = data.data
    if device is None and not (backend.is_array(data) and not isinstance(data, np.ndarray)):
        device = backend.default_device()
    array = backend.as_array(data, dtype, device)
    copied = isinstance(data, (list, tuple, int, float)) or not array.size
    return _made(array if copied else array.copy(), requires_grad)


def asarray(
    data: Any, dtype: DTypeLike = None, device: str | None = None, copy: bool | None = None
) -> Any:
    """Return data as a tensor that shares memory where it can; a tensor is returned as it is."""
    try:
        if isinstance(data, registry.Tensor):
            moved = data.to(device) if device else data
            moved = moved if dtype is None else moved.astype(dtype)
            return moved.copy() if copy and moved is data else moved
        array = backend.as_array(data, dtype, device)
        return _made(array.copy() if copy else array, False, shared=not copy)
    except REFUSALS as error:
        refuse(error, "asarray", {"data": data, "dtype": dtype, "device": device, "copy": copy})
        raise


as_tensor = asarray


def from_numpy(array: np.ndarray) -> Any:
    """Return a CPU tensor on the memory of a numpy array.

    As in PyTorch, changing the array before backward changes gradients, unnoticed.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a numpy array, got {type(array).__name__}")
    return _made(array, False, shared=True)


def from_dlpack(source: Any) -> Any:
    """Return a tensor on the memory of any array that speaks DLPack (torch, jax, cupy, numpy)."""
    device = source.__dlpack_device__()[0]
    xp = np if device == 1 else backend.cupy_module()
    return _made(xp.from_dlpack(source), False, shared=True)


def _shape(shape: Any, more: tuple[int, ...] = ()) -> tuple[int, ...]:
    lengths = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    lengths = tuple(operator.index(n) for n in (*lengths, *more))
    if any(n < 0 for n in lengths):
        raise ValueError(f"a shape has no negative lengths: {lengths}")
    return lengths


def full(
    shape: Shape,
    fill_value: float,
    dtype: DTypeLike = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Return a tensor of one number: float32 for a float, int64 for an int, bool for a bool.

    Raises ValueError for a number that an integer ``dtype`` cannot hold.
    """
    if dtype is None:
        is_bool = isinstance(fill_value, (bool, np.bool_))
        is_int = isinstance(fill_value, (int, np.integer))
        dtype = backend.bool_ if is_bool else backend.int64 if is_int else backend.float32
    kind = backend.as_dtype(dtype)
    _refuse_overflow(kind, fill_value)
    return _made(backend.namespace(device).full(_shape(shape), fill_value, kind), requires_grad)


def _refuse_overflow(dtype: np.dtype, *numbers: Any) -> None:
    if dtype.kind in "iu" and all(isinstance(n, (int, float, np.generic)) for n in numbers):
        backend.refuse_overflow(np.array(numbers), dtype)


def zeros(
    *shape: Any, dtype: DTypeLike = None, device: str | None = None, requires_grad: bool = False
) -> Any:
    """Return zeros of a shape given as a tuple or as numbers."""
    lengths = _shape(shape[0] if len(shape) == 1 else shape)
    xp = backend.namespace(device)
    return _made(xp.zeros(lengths, backend.as_dtype(dtype or backend.float32)), requires_grad)


def ones(
    *shape: Any, dtype: DTypeLike = None, device: str | None = None, requires_grad: bool = False
) -> Any:
    """Return ones of a shape given as a tuple or as numbers."""
    lengths = _shape(shape[0] if len(shape) == 1 else shape)
    xp = backend.namespace(device)
    return _made(xp.ones(lengths, backend.as_dtype(dtype or backend.float32)), requires_grad)


def empty(
    *shape: Any, dtype: DTypeLike = None, device: str | None = None, requires_grad: bool = False
) -> Any:
    """Return memory of a shape given as a tuple or as numbers, with whatever it holds."""
    lengths = _shape(shape[0] if len(shape) == 1 else shape)
    xp = backend.namespace(device)
    return _made(xp.empty(lengths, backend.as_dtype(dtype or backend.float32)), requires_grad)


def _like(name: str, x: Any, dtype: DTypeLike, *value: Any) -> Any:
    data = x._data if isinstance(x, registry.Tensor) else backend.as_array(x)
    kind = data.dtype if dtype is None else backend.as_dtype(dtype)
    _refuse_overflow(kind, *value)
    return getattr(backend.xp_of(data), name)(data.shape, *value, dtype=kind)


def zeros_like(x: Any, dtype: DTypeLike = None, requires_grad: bool = False) -> Any:
    """Return zeros of the shape, dtype and device of x."""
    return _made(_like("zeros", x, dtype), requires_grad)


def ones_like(x: Any, dtype: DTypeLike = None, requires_grad: bool = False) -> Any:
    """Return ones of the shape, dtype and device of x."""
    return _made(_like("ones", x, dtype), requires_grad)


def empty_like(x: Any, dtype: DTypeLike = None, requires_grad: bool = False) -> Any:
    """Return uninitialised memory of the shape, dtype and device of x."""
    return _made(_like("empty", x, dtype), requires_grad)


def full_like(
    x: Any, fill_value: float, dtype: DTypeLike = None, requires_grad: bool = False
) -> Any:
    """Return one number in the shape, dtype and device of x."""
    return _made(_like("full", x, dtype, fill_value), requires_grad)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: DTypeLike = None,
    device: str | None = None,
) -> Any:
    """Return start, start + step, ... up to but without stop; int64 if all three are integers."""
    first, last = (0, start) if stop is None else (start, stop)
    if dtype is None:
        integers = all(isinstance(n, (int, np.integer)) for n in (first, last, step))
        dtype = backend.int64 if integers else backend.float32
    kind = backend.as_dtype(dtype)
    count = math.ceil((last - first) / step) if step and kind.kind in "iu" else 0
    if count > 0:
        _refuse_overflow(kind, first, first + (count - 1) * step)
    return _made(backend.namespace(device).arange(first, last, step, kind), False)


def linspace(
    start: float,
    stop: float,
    num: int = 50,
    dtype: DTypeLike = None,
    device: str | None = None,
    endpoint: bool = True,
) -> Any:
    """Return num evenly spaced numbers from start to stop, rounded down for an integer dtype."""
    kind = backend.as_dtype(dtype or backend.float32)
    _refuse_overflow(kind, start, stop)
    xp = backend.namespace(device)
    values = xp.linspace(start, stop, num, endpoint=endpoint)
    values = xp.floor(values) if kind.kind in "iu" else values
    return _made(values.astype(kind), False)


def eye(
    n_rows: int,
    n_cols: int | None = None,
    k: int = 0,
    dtype: DTypeLike = None,
    device: str | None = None,
) -> Any:
    """Return a matrix with ones on its k-th diagonal."""
    xp = backend.namespace(device)
    return _made(xp.eye(n_rows, n_cols, k, dtype=backend.as_dtype(dtype or backend.float32)), False)
