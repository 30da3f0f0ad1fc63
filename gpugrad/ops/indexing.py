"""Reading and writing elements by position: x[...], take, sort, and their scatter adjoints.

An index used twice receives both gradients. Indices out of range are refused, on every device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backend, memory, registry
from ..boundary import REFUSALS, refuse
from ..cuda import recording
from ..registry import OPS, Sample, describe, primitive
from ._axes import along, normalize_axis
from .shape import asarray, moveaxis, ravel


def raw_index(index: Any) -> Any:
    """Return an index with tensors and lists in it as arrays."""
    if isinstance(index, tuple):
        return tuple(raw_index(i) for i in index)
    if isinstance(index, registry.Tensor):
        if registry.lift is not None:
            registry.lift_now((index,))
        index = index._data
    if isinstance(index, list):
        index = np.asarray(index, dtype=None if index else np.intp)
    if backend.is_array(index) and index.dtype.kind not in "iub":
        raise IndexError(f"getitem: an index must be integer or boolean, got {describe(index)}")
    return index


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return not any(backend.is_array(p) or isinstance(p, bool) for p in parts)


def _check_range(index: Any, shape: tuple[int, ...]) -> None:
    """Raise IndexError for what CuPy and ``_add_at`` would take for other places: indices out of
    range, masks that do not fit.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(_axes_used(p) for p in parts if p is not Ellipsis)
    axis = 0
    for part in parts:
        if part is Ellipsis:
            axis += len(shape) - consumed
            continue
        if backend.is_array(part) and part.dtype.kind in "iu" and part.size:
            if axis >= len(shape):
                raise IndexError(f"too many indices for {len(shape)} dimensions")
            n = shape[axis]
            low, high = int(part.min()), int(part.max())
            if low < -n or high >= n:
                bad = low if low < -n else high
                raise IndexError(f"index {bad} is out of range for axis {axis} of length {n}")
        used = _axes_used(part)
        if _is_mask(part) and part.shape != shape[axis : axis + used]:
            raise IndexError(f"a mask of shape {part.shape} does not fit axis {axis} of {shape}")
        axis += used


def _axes_used(part: Any) -> int:
    if part is None or isinstance(part, (bool, np.bool_)):
        return 0
    return part.ndim if backend.is_array(part) and part.dtype.kind == "b" else 1


def _for_cupy(index: Any) -> Any:
    """Return an index that CuPy takes and that means the same to NumPy.

    CuPy takes a mask only without other arrays, and no NumPy integers beside arrays. The places in
    masks are counted for that, which waits for the GPU.
    """
    if not isinstance(index, tuple):
        return index
    if sum(map(backend.is_array, index)) > 1:
        split = [p.nonzero() if _is_mask(p) else (p,) for p in index]
        index = tuple([part for parts in split for part in parts])
    return tuple([int(p) if isinstance(p, np.integer) else p for p in index])


def _is_mask(part: Any) -> bool:
    return backend.is_array(part) and part.dtype.kind == "b" and part.ndim > 0


def _without_front(value: Any) -> Any:
    """Return an array without axes of length 1 in front, which NumPy drops and CuPy does not."""
    first = next((i for i, n in enumerate(value.shape) if n != 1), value.ndim)
    return value.reshape(value.shape[first:]) if first else value


def raw_put(x: Any, index: Any, value: Any) -> None:
    """Write a number, an array or nested lists into an array: x[index] = value.

    Lists and NumPy arrays are copied to the device of x.
    """
    if not isinstance(x, (np.ndarray, backend.Symbolic)):
        _check_range(index, x.shape)
        index = _for_cupy(index)
        if not isinstance(value, (bool, int, float, np.generic)):
            value = _without_front(backend.as_array(value, device=backend.device_of(x)))
    x[index] = value


def _scatter(xp: Any, g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(g, (np.ndarray, backend.Symbolic)):
        index, g = _for_cupy(index), _without_front(g)
    if _is_basic(index) or (backend.is_array(index) and index.dtype.kind == "b"):
        out = memory.zeros(shape, g.dtype) if xp is np else xp.zeros(shape, g.dtype)
        out[index] = g
        return out
    wide = g.astype(_summable(g.dtype, xp), copy=False)
    out = memory.zeros(shape, wide.dtype) if xp is np else xp.zeros(shape, wide.dtype)
    if xp is np:
        _add_at(out, index, wide)
    else:
        xp.add.at(out, index, wide)
    return out.astype(g.dtype, copy=False)


def _summable(dtype: np.dtype, xp: Any) -> np.dtype:
    """Return the dtype in which numbers at one index are added: float32 at least.

    CuPy adds integers of 32 bits and unsigned ones of 64, which wrap around as signed ones do.
    """
    if dtype in backend.NARROW:
        return backend.float32
    if xp is np or dtype.kind == "f":
        return dtype
    return backend.uint64 if dtype.itemsize == 8 else backend.int32


_FEW = 2000  # elements: so many are added as they are faster than through positions of rows
_LONG = 128  # elements: rows of so many are added faster one by one than through their positions


def _add_at(out: np.ndarray, index: Any, g: np.ndarray) -> None:
    """Add g to the contiguous out[index] as np.add.at does, which is fast for one axis only."""
    if g.size <= _FEW and g.shape == out[index].shape:
        np.add.at(out, index, g)
        return
    rows = _rows_at(index, out.shape)
    if rows is None:
        np.add.at(out, index, np.broadcast_to(g, out[index].shape))  # or it may read beyond g
        return
    places, row = rows
    length = math.prod(row)
    g = np.broadcast_to(g, places.shape + row)
    places = places.reshape(-1)
    if length < _LONG:
        if length > 1:
            places = (places[:, None] * length + np.arange(length)).reshape(-1)
        np.add.at(out.reshape(-1), places, g.reshape(-1))
        return
    table = out.reshape(-1, length)
    for place, values in zip(places.tolist(), g.reshape(-1, length), strict=True):
        table[place] += values


def _rows_at(index: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """Return the numbers of the rows that an array of this shape has at an index, and their shape.

    Rows are what lies behind the last axis with an array of indices. None if there is more in the
    index than such arrays, side by side, and whole axes.
    """
    parts = index if isinstance(index, tuple) else (index,)
    axes = [i for i, part in enumerate(parts) if backend.is_array(part)]
    if not axes or len(parts) > len(shape):  # none: True or False; more than x has: refused
        return None
    first, end = axes[0], axes[-1] + 1
    if len(axes) < end - first or any(
        part.dtype.kind == "b" if i in axes else part != slice(None) for i, part in enumerate(parts)
    ):
        return None
    dimensions = max(parts[i].ndim for i in axes)
    places: Any = 0
    for i, n in enumerate(shape[:end]):
        if i in axes:
            part = parts[i].astype(np.intp, copy=False)
            if part.size and part.min() < 0:
                part = np.where(part < 0, part + n, part)
        else:
            part = np.arange(n).reshape(-1, *(1,) * (first - 1 - i + dimensions))
        places = places * n + part if i else part
    return places, shape[end:]


def _scatter_checked(xp: Any, g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    _check_range(index, shape)
    return _scatter(xp, g, index, shape)


def _scatter_arrays(xp: Any, g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    if xp is np:
        return recording.as_one(_scatter, np, g, index, shape)
    return _scatter(xp, g, index, shape)


def _scattered(g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(g, registry.Tensor):
        return _scatter_row(g, index=index, shape=shape)
    if registry.lift is None:  # the common case, without a detour
        return _scatter(backend.xp_of(g), g, index, shape)
    return _scatter_arrays(backend.xp_of(g), g, index, shape)


@primitive(
    [
        Sample((3, 4), index=1),
        Sample((3, 4), index=(slice(None, None, -1), slice(1, None, 2))),
        Sample((2, 3, 4), index=(Ellipsis, None, 0)),
        Sample((3, 4), index=(np.array([0, 2, 0]), np.array([1, 1, 1]))),
        Sample((3, 4), index=np.array([[2, 0], [2, 2]])),
        Sample((2, 2), index=np.array([[True, False], [True, True]])),
        Sample((0, 3), index=slice(None)),
    ],
    name="getitem",
    method=False,
    x=lambda g, index, x_shape: _scattered(g, index, x_shape),
)
def _getitem(xp, x, index=None):
    if xp is not np:
        _check_range(index, x.shape)
        index = _for_cupy(index)
    return x[index]


@primitive(
    [
        Sample((3, 2), index=(slice(None), slice(1, 3)), shape=(3, 4)),
        Sample((3,), index=np.array([1, 1, 0]), shape=(4,)),
        Sample((4,), index=slice(0, 2), shape=(3, 4)),
        Sample((2, 1), index=np.array([0, 1]), shape=(3, 4)),
    ],
    name="scatter",
    method=False,
    x=lambda g, index, x_shape, xp: _summed_to(g[index], x_shape, xp),
)
def _scatter_row(xp, x, index=None, shape=None):
    if xp is np:  # in a recorded step each run looks at its indices
        return recording.as_one(_scatter_checked, np, x, index, shape)
    return _scatter_checked(xp, x, index, shape)


@primitive(
    [Sample((3, 4), index=1), Sample((3, 4), index=(slice(1, 3), slice(None, None, 2)))],
    name="getitem_view",
    method=False,
    view=True,
    x=lambda g, index, x_shape: _scattered(g, index, x_shape),
)
def _getitem_view(xp, x, index=None):
    return x[index]


def getitem(x: Any, index: Any) -> Any:
    """Return x[index]: a view for integers and slices, a copy for arrays of indices."""
    try:
        index = raw_index(index)
        op = OPS["getitem_view" if _is_basic(index) else "getitem"]
        return op.of_one(asarray(x), {"index": index})
    except REFUSALS as error:
        refuse(error, "getitem", {"x": x, "index": index})
        raise


def _put(xp: Any, x: Any, index: Any, value: Any) -> Any:
    out = x.copy()
    raw_put(out, index, value)
    return out


def _cleared(g: Any, index: Any) -> Any:
    if isinstance(g, registry.Tensor):
        return put(g, index, 0.0)
    return _put(None, g, index, 0)


@primitive(
    [
        Sample((3, 4), (4,), index=1),
        Sample((3, 4), (2, 1), index=(slice(0, 2), slice(1, 3))),
        Sample((4,), (2,), index=np.array([3, 0])),
        Sample((3, 4), (1, 1, 4), index=1),
    ],
    name="put",
    method=False,
    x=lambda g, index: _cleared(g, index),
    value=lambda g, index, value_shape, xp: _summed_to(g[index], value_shape, xp),
)
def _put_row(xp, x, value, index=None):
    return _put(xp, x, index, value)


def _summed_to(g: Any, shape: tuple[int, ...], xp: Any) -> Any:
    """Return g summed over the axes an assignment broadcast a value of this shape along."""
    if g.shape == shape:
        return g
    extra = len(g.shape) - len(shape)  # negative if the value has axes of length 1 in front
    axes = (*range(extra), *(i + extra for i, n in enumerate(shape) if n == 1 and i + extra >= 0))
    g = backend.total(xp, g, axes, keepdims=True) if axes else g
    return xp.reshape(g, shape)


def put(x: Any, index: Any, value: Any) -> Any:
    """Return a copy of x with x[index] replaced by value; an index given twice is undefined."""
    x = asarray(x)
    if not isinstance(value, registry.Tensor):
        value = registry.Tensor(value, device=x.device)
    return _put_row(x, value.astype(x.dtype), index=raw_index(index))


def index_add(x: Any, index: Any, value: Any) -> Any:
    """Return x with value added at x[index]; an index given twice adds twice."""
    x, value = asarray(x), asarray(value)
    index = raw_index(index)
    return x + _scatter_row(value.astype(x.dtype), index=index, shape=x.shape)


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Return the slices of x at integer indices along an axis (of the flat tensor by default)."""
    if axis is None:
        return getitem(ravel(x), asarray(indices))
    x = asarray(x)
    axis = normalize_axis(axis, x.ndim)
    return getitem(x, along(axis, asarray(indices)))


def take_along_axis(x: Any, indices: Any, axis: int = -1) -> Any:
    """Return x[..., indices, ...] along one axis, all other axes walked in step."""
    x, indices = asarray(x), asarray(indices)
    if indices.ndim != x.ndim:
        raise ValueError(
            f"take_along_axis: indices have {indices.ndim} dimensions but x has {x.ndim}"
        )
    axis = normalize_axis(axis, x.ndim)
    xp = backend.xp_of(x._data)
    places: list[Any] = []
    for i, n in enumerate(x.shape):
        steps = [1] * x.ndim
        steps[i] = n
        places.append(indices if i == axis else xp.arange(n).reshape(steps))
    return getitem(x, tuple(places))


def _each(shape: tuple[int, ...], repeats: int, axis: int) -> tuple[int, ...]:
    return (*shape[: axis + 1], repeats, *shape[axis + 1 :])


def _summed_each(g: Any, repeats: int, axis: int, shape: tuple[int, ...], xp: Any) -> Any:
    axis = normalize_axis(axis, len(shape))
    return backend.total(xp, xp.reshape(g, _each(shape, repeats, axis)), axis + 1)


@primitive(
    [Sample((3, 4), repeats=2), Sample((2, 1, 3), repeats=3, axis=1), Sample((2,), repeats=0)],
    name="repeat_each",
    method=False,
    x=lambda g, repeats, axis, x_shape, xp: _summed_each(g, repeats, axis, x_shape, xp),
)
def _repeat_each(xp, x, repeats=1, axis=0):
    axis = normalize_axis(axis, x.ndim)
    wide = xp.broadcast_to(xp.expand_dims(x, axis + 1), _each(x.shape, repeats, axis))
    return wide.copy().reshape((*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :]))


def repeat(x: Any, repeats: Any, axis: int | None = None) -> Any:
    """Return x with each element along axis repeated, by one number or one number each.

    As in NumPy, also as a method: PyTorch's ``x.repeat(2, 1)`` is ``tile(x, (2, 1))``.
    """
    x = asarray(x) if axis is not None else ravel(x)
    axis = 0 if axis is None else normalize_axis(axis, x.ndim)
    counts = np.asarray(repeats.numpy() if isinstance(repeats, registry.Tensor) else repeats)
    counts = counts if counts.size else counts.astype(np.intp)  # of an empty list float64
    if counts.size and counts.min() < 0:
        raise ValueError("repeat: repeats must not be negative")
    if counts.ndim == 0 and counts.dtype.kind in "iu":  # its gradient is a sum over a short axis
        return _repeat_each(x, repeats=int(counts), axis=axis)
    xp = backend.xp_of(x._data)
    return take(x, xp.asarray(np.repeat(np.arange(x.shape[axis]), counts)), axis)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Return the indices (..., k) of the k largest along the last axis, in the order of argsort."""
    n = x.shape[-1]
    x = x.astype(backend.float32) if x.dtype == backend.bfloat16 else x
    if 8 * k > n or not k:  # what follows takes as long as to sort some of all
        return _argsort(np, x, -1, True)[..., :k]
    least = np.partition(x, n - k, axis=-1)[..., n - k, None]
    kept = ~(x < least)  # NaN is larger than all
    if (kept.sum(axis=-1) > k).any():  # of equals the first
        surely = (x > least) | np.isnan(x)
        kept = surely | (kept & ((kept & ~surely).cumsum(axis=-1) <= k - surely.sum(-1)[..., None]))
        kept &= kept.cumsum(axis=-1) <= k
    found = kept.nonzero()[-1].reshape(*x.shape[:-1], k)
    order = _argsort(np, np.take_along_axis(x, found, axis=-1), -1, True)
    return np.take_along_axis(found, order, axis=-1)


def _argsort(xp: Any, x: Any, axis: int, descending: bool) -> Any:
    if x.dtype == backend.bfloat16:
        x = x.astype(backend.float32)  # CuPy does not sort bfloat16, NumPy misplaces NaN in it
    if not descending:
        return xp.argsort(x, axis=axis, kind="stable")
    order = xp.flip(xp.argsort(xp.flip(x, axis=axis), axis=axis, kind="stable"), axis=axis)
    return x.shape[axis] - 1 - order


@primitive()
def argsort(xp, x, axis=-1, descending=False):
    """Return the indices that sort x along an axis; equal elements keep their order."""
    return _argsort(xp, x, axis, descending)


@primitive(name="argtopk", method=False)
def _argtopk(xp, x, k=1):
    if xp is not np:
        return _argsort(xp, x, -1, True)[..., :k]
    return recording.as_one(largest, x, k)


def sort(x: Any, axis: int = -1, descending: bool = False) -> Any:
    """Return x sorted along an axis; each gradient goes back where its element came from."""
    return take_along_axis(x, argsort(x, axis=axis, descending=descending), axis)


def topk(x: Any, k: int, axis: int = -1) -> tuple[Any, Any]:
    """Return the k largest elements along an axis, largest first, and their indices."""
    x = asarray(x)
    axis = normalize_axis(axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k={k} is not in 0..{x.shape[axis]}, the length of axis {axis}")
    is_last = axis == x.ndim - 1
    order = _argtopk(x if is_last else moveaxis(x, axis, -1), k=k)
    order = order if is_last else moveaxis(order, -1, axis)
    return take_along_axis(x, order, axis), order


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """Return the diagonal of two axes as a new last axis; a positive offset lies above it."""
    x = moveaxis(x, (axis1, axis2), (-2, -1))
    rows, columns = x.shape[-2:]
    n = max(0, min(rows - max(-offset, 0), columns - max(offset, 0)))
    i = np.arange(n)
    return getitem(x, (Ellipsis, i + max(-offset, 0), i + max(offset, 0)))


def diag(x: Any, k: int = 0) -> Any:
    """Return a matrix with x on its k-th diagonal, or for a matrix x that diagonal."""
    x = asarray(x)
    if x.ndim == 2:
        return diagonal(x, k)
    if x.ndim != 1:
        raise ValueError(f"diag: x must have one or two dimensions, got shape {x.shape}")
    i = np.arange(x.shape[0])
    n = x.shape[0] + abs(k)
    return _scatter_row(x, index=(i + max(-k, 0), i + max(k, 0)), shape=(n, n))


@primitive()
def nonzero(xp, x):
    """Return the positions of the elements that are not zero, one row each: (count, ndim)."""
    return xp.argwhere(x)


def masked_fill(x: Any, mask: Any, value: float) -> Any:
    """Return x with value wherever mask is true."""
    return registry.OPS["where"].function(mask, value, x)
