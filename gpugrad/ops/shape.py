"""Operations that move elements without computing: reshape, transpose, join, split, pad.

Like NumPy's, they return views where they can; a tensor that is a view cannot be changed in place
while operations are recorded.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, registry
from ..boundary import REFUSALS, refuse
from ..engine import Output
from ..registry import OPS, Node, Sample, primitive, state
from ._axes import Axis, along, integer, normalize_axes, normalize_axis


@primitive(
    name="astype",
    samples=[Sample((3, 4), dtype=backend.float64)],
    method=False,
    x=lambda g, x_dtype: g.astype(x_dtype),
)
def _astype(xp, x, dtype=None):
    return x.astype(dtype)


def astype(x: Any, dtype: Any, copy: bool = False) -> Any:
    """Return x in another dtype; the gradient comes back in the dtype of x."""
    return asarray(x).astype(dtype, copy=copy)


@primitive(
    name="to_device",
    method=False,
    x=lambda g, x_device: to_device(g, x_device),
)
def _to_device(xp, x, device=None):
    return backend.to_device(x, device)


def to_device(x: Any, device: str) -> Any:
    """Return x on another device; the gradient comes back on the device of x."""
    if not isinstance(x, registry.Tensor):
        return backend.to_device(x, device)
    if x.device == device or x.device == f"{device}:0":
        return x
    return _to_device(x, device=device)


OPS["to_device"].function = to_device


def asarray(x: Any) -> Any:
    """Return x as a tensor, sharing memory where it can."""
    return x if isinstance(x, registry.Tensor) else registry.Tensor(x)


def copy(x: Any) -> Any:
    """Return a copy in memory of its own; gradients flow through it."""
    return _copy(x)


@primitive([Sample((3, 4))], name="copy", x=lambda g: g)
def _copy(xp, x):
    return x.copy()


@primitive(
    [Sample((3, 4), shape=(2, 6)), Sample((3, 4), shape=(-1,)), Sample((), shape=(1, 1))],
    name="reshape",
    view=True,
    method=False,
    x=lambda g, x_shape: g.reshape(x_shape),
)
def _reshape(xp, x, shape=None):
    return x.reshape(shape)


_RESHAPE = OPS["reshape"]


def reshape(x: Any, *shape: Any) -> Any:
    """Return the elements in another shape; one length may be -1. A view where possible."""
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    try:
        if not isinstance(x, registry.Tensor):
            x = registry.Tensor(x)
        lengths = tuple(map(operator.index, shape))
        if lengths and min(lengths) < -1:  # which NumPy takes for -1
            raise ValueError("a length is -1, for what is left, or at least 0")
        return _RESHAPE.of_one(x, {"shape": lengths})
    except REFUSALS as error:
        refuse(error, "reshape", {"x": x, "shape": shape})
        raise


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Return x with the axes from start_dim to end_dim merged into one."""
    x = asarray(x)
    if not x.ndim:
        return reshape(x, 1)
    start, end = (normalize_axis(a, x.ndim, "dim") for a in (start_dim, end_dim))
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} lies behind end_dim {end_dim}")
    return reshape(
        x,
        (
            *x.shape[:start],
            -1 if x.size else math.prod(x.shape[start : end + 1]),
            *x.shape[end + 1 :],
        ),
    )


def ravel(x: Any) -> Any:
    """Return the elements in one axis."""
    return reshape(x, -1)


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


@primitive(
    [Sample((2, 3, 4), axes=(2, 0, 1)), Sample((3, 4), axes=(1, 0)), Sample((), axes=())],
    name="permute_dims",
    view=True,
    method=False,
    x=lambda g, axes, xp: xp.transpose(g, _inverse(axes)),
)
def _permute_dims(xp, x, axes=None):
    return x.transpose(axes)


def permute_dims(x: Any, axes: Sequence[int]) -> Any:
    """Return x with its axes in the order given, a view."""
    x = asarray(x)
    order = normalize_axes(tuple(axes), x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims: axes {tuple(axes)} do not name all {x.ndim} axes")
    return _permute_dims(x, axes=order)


def transpose(x: Any, axes: Sequence[int] | None = None) -> Any:
    """Return x with its axes in the order given, reversed by default, a view."""
    x = asarray(x)
    return permute_dims(x, tuple(range(x.ndim))[::-1] if axes is None else axes)


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """Return x with two axes exchanged, a view."""
    x = asarray(x)
    order = list(range(x.ndim))
    i, j = normalize_axis(axis1, x.ndim, "axis1"), normalize_axis(axis2, x.ndim, "axis2")
    order[i], order[j] = order[j], order[i]
    return _permute_dims(x, axes=tuple(order))


def matrix_transpose(x: Any) -> Any:
    """Return x with its last two axes exchanged, a view."""
    return swapaxes(x, -1, -2)


def moveaxis(x: Any, source: Axis, destination: Axis) -> Any:
    """Return x with the source axes moved to the destinations, the others in order."""
    x = asarray(x)
    sources, places = normalize_axes(source, x.ndim), normalize_axes(destination, x.ndim)
    if len(sources) != len(places):
        raise ValueError(f"moveaxis: {len(sources)} source axes but {len(places)} destinations")
    order = [i for i in range(x.ndim) if i not in sources]
    for place, axis in sorted(zip(places, sources, strict=True)):
        order.insert(place, axis)
    return _permute_dims(x, axes=tuple(order))


def expand_dims(x: Any, axis: Axis = 0) -> Any:
    """Return x with axes of length 1 inserted at these positions of the result."""
    x = asarray(x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    places = normalize_axes(axis, x.ndim + count)
    rest = iter(x.shape)
    return _reshape(x, shape=tuple(1 if i in places else next(rest) for i in range(x.ndim + count)))


def squeeze(x: Any, axis: Axis = None) -> Any:
    """Return x without the axes given, which must have length 1; without all such by default."""
    x = asarray(x)
    if axis is None:
        gone = tuple(i for i, n in enumerate(x.shape) if n == 1)
    else:
        gone = normalize_axes(axis, x.ndim)
        if builtin_any(x.shape[i] != 1 for i in gone):
            raise ValueError(f"squeeze: axis {axis} of shape {x.shape} does not have length 1")
    return _reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in gone))


builtin_any = any


@primitive(
    [
        Sample((4,), shape=(3, 4)),
        Sample((3, 1), shape=(2, 3, 4)),
        Sample((), shape=(2, 2)),
        Sample((1, 3), shape=(0, 3)),
    ],
    name="broadcast_to",
    view=True,
    broadcasts=True,
    x=lambda g: g,
)
def broadcast_to(xp, x, shape=None):
    """Return x repeated along new and length-1 axes to fill shape: a read-only view."""
    return xp.broadcast_to(x, shape)


def broadcast_arrays(*tensors: Any) -> list[Any]:
    """Return the tensors broadcast to their common shape."""
    tensors = tuple(asarray(t) for t in tensors)
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    return [t if t.shape == shape else broadcast_to(t, shape=shape) for t in tensors]


def meshgrid(*vectors: Any, indexing: str = "xy") -> list[Any]:
    """Return the coordinates of the grid that vectors span, one tensor per vector, as views.

    With indexing "xy" the first vector runs along the second axis, with "ij" along the first.
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: indexing must be 'xy' or 'ij', got {indexing!r}")
    tensors = [asarray(v) for v in vectors]
    count = len(tensors)
    places = list(range(count))
    if indexing == "xy" and count > 1:
        places[:2] = 1, 0
    for i, t in enumerate(tensors):
        if t.ndim > 1:
            raise ValueError(f"meshgrid: vector {i} has shape {t.shape}; it must have one axis")
    shaped = [
        reshape(t, [t.size if i == place else 1 for i in range(count)])
        for t, place in zip(tensors, places, strict=True)
    ]
    return broadcast_arrays(*shaped) if shaped else []


@primitive(
    [Sample((3, 4)), Sample((3, 4), axis=0), Sample((2, 3, 4), axis=(1, -1))],
    view=True,
    x=lambda g, axis, xp: xp.flip(g, axis=axis),
)
def flip(xp, x, axis=None):
    """Return x with the order of elements along axis (all axes by default) reversed, a view."""
    return xp.flip(x, axis=axis)


def _negated(shift: Any) -> Any:
    return tuple(-s for s in shift) if isinstance(shift, (tuple, list)) else -shift


@primitive(
    [
        Sample((3, 4), shift=1),
        Sample((3, 4), shift=-5, axis=1),
        Sample((3, 4), shift=(1, 2), axis=(0, 1)),
    ],
    x=lambda g, shift, axis, xp: xp.roll(g, _negated(shift), axis=axis),
)
def roll(xp, x, shift=0, axis=None):
    """Return x with elements moved by shift along axis, those pushed out re-entering."""
    places = tuple(map(operator.index, shift)) if isinstance(shift, (tuple, list)) else None
    return xp.roll(x, operator.index(shift) if places is None else places, axis=axis)


def _refuse_vectors(x: Any) -> None:
    if len(x.shape) < 2:  # of which NumPy makes a matrix
        raise ValueError("needs at least two dimensions")


@primitive(
    [Sample((3, 4)), Sample((3, 4), k=1), Sample((2, 3, 3), k=-1)],
    x=lambda g, k, xp: xp.tril(g, k=k),
)
def tril(xp, x, k=0):
    """Return x with the elements above the k-th diagonal of the last two axes set to 0."""
    _refuse_vectors(x)
    return xp.tril(x, k=operator.index(k)).astype(x.dtype, copy=False)  # CuPy widens bfloat16


@primitive(
    [Sample((3, 4)), Sample((3, 4), k=1), Sample((2, 3, 3), k=-1)],
    x=lambda g, k, xp: xp.triu(g, k=k),
)
def triu(xp, x, k=0):
    """Return x with the elements below the k-th diagonal of the last two axes set to 0."""
    _refuse_vectors(x)
    return xp.triu(x, k=operator.index(k)).astype(x.dtype, copy=False)


def _inner(pad_width: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(low, n - high) for (low, high), n in zip(pad_width, shape, strict=True))


@primitive(
    [Sample((3, 4), pad_width=((1, 0), (2, 1))), Sample((3,), pad_width=((2, 2),), value=1.5)],
    name="pad",
    method=False,
    x=lambda g, pad_width, out_shape: g[_inner(pad_width, out_shape)],
)
def _pad(xp, x, pad_width=None, value=0):
    return xp.pad(x, pad_width, constant_values=value) if x.ndim else x.copy()


def pad(x: Any, pad_width: Any, value: float = 0) -> Any:
    """Return x with ``value`` added around it.

    ``pad_width`` is (before, after) for every axis, one such pair for all axes, or one number.
    """
    x = asarray(x)
    given = np.asarray(pad_width)
    widths = np.broadcast_to(given, (x.ndim, 2))
    if given.size and given.min() < 0:
        raise ValueError(f"pad: pad_width must not be negative, got {pad_width}")
    return _pad(
        x, pad_width=tuple((operator.index(a), operator.index(b)) for a, b in widths), value=value
    )


class _Concat:
    """The operation behind concat, whose number of arguments varies."""

    name = "concat"
    view = False
    slots = ("axis", "lengths", "positions")

    def save(self, values: tuple) -> tuple:
        """Save the axis, the arguments' lengths along it, and which of them want a gradient."""
        return values

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return each parent's slice of g."""
        assert node.saved is not None
        axis, lengths, positions = node.saved
        ends = tuple(itertools.accumulate(lengths))
        grads = []
        for parent, i in zip(node.parents, positions, strict=True):
            wanted = needed is None or parent in needed
            part = slice(ends[i] - lengths[i], ends[i])
            grads.append(g[along(axis, part)] if wanted else None)
        return grads


_concat = _Concat()


def concat(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """Return the tensors joined along an axis; with axis None, flattened first.

    They must agree in all other axes; dtypes promote. Raises ValueError naming the first that
    does not fit.
    """
    tensors = [asarray(a) for a in arrays]
    if not tensors:
        raise ValueError("concat: needs at least one tensor")
    if axis is None:
        return concat([ravel(t) for t in tensors], 0)
    if registry.lift is not None:
        registry.lift_now(tensors)
    first = tensors[0]
    axis = normalize_axis(axis, first.ndim)
    for i, t in enumerate(tensors):
        if t.device != first.device:
            raise ValueError(f"concat: tensor 0 is on {first.device}, tensor {i} on {t.device}")
        expected = first.shape[:axis] + t.shape[axis : axis + 1] + first.shape[axis + 1 :]
        if t.shape != expected:
            raise ValueError(
                f"concat: tensor {i} of shape {t.shape} does not fit tensor 0 of shape "
                f"{first.shape} along axis {axis}; all other lengths must agree"
            )
    dtype = first.dtype
    for t in tensors[1:]:
        dtype = backend.promote(dtype, t.dtype)
    tensors = [t if t.dtype == dtype else t.astype(dtype) for t in tensors]
    xp = backend.xp_of(first._data)
    out = xp.concatenate([t._data for t in tensors], axis=axis)
    make_node = state.make_node
    positions = tuple(i for i, t in enumerate(tensors) if t._requires_grad)
    if make_node is None or not positions:
        return registry.Tensor._wrap(out, None)
    lengths = tuple(t.shape[axis] for t in tensors)
    parents = tuple(tensors[i]._node or tensors[i] for i in positions)
    return registry.Tensor._wrap(out, make_node(_concat, parents, (axis, lengths, positions), None))


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Return tensors of one shape joined along a new axis."""
    tensors = [asarray(a) for a in arrays]
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ValueError(
                f"stack: tensor {i} has shape {t.shape}, tensor 0 has {tensors[0].shape}"
            )
    if not tensors:
        raise ValueError("stack: needs at least one tensor")
    axis = normalize_axis(axis, tensors[0].ndim + 1)
    return concat([expand_dims(t, axis) for t in tensors], axis)


class _Split:
    """The operation behind split and unstack.

    Its gradient joins those of all parts at once: were every part an index of its own, the
    gradient of each would be as large as the whole tensor.
    """

    name = "split"
    view = True
    slots = ("axis", "shapes", "whole")

    def save(self, values: tuple) -> tuple:
        """Save the axis, the parts' shapes with that axis, and the shape of the whole."""
        return values

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return the parts' gradients joined, zeros for a part nobody used."""
        assert node.saved is not None
        axis, shapes, whole = node.saved
        one = next(iter(g.values()))
        zeros = registry.recorded.zeros if recorded else xp.zeros
        given = {"device": one.device} if recorded else {}
        parts = [
            xp.reshape(g[i], shape) if i in g else zeros(shape, dtype=one.dtype, **given)
            for i, shape in enumerate(shapes)
        ]
        return [xp.reshape(xp.concatenate(parts, axis=axis), whole)]


_split = _Split()


def _parts(x: Any, axis: int, edges: Sequence[int], keep: bool) -> list[Any]:
    """Return the slices of x between the edges along an axis, as views; keep that axis or not."""
    if registry.lift is not None:
        registry.lift_now([x])
    slices = [x._data[along(axis, slice(a, b))] for a, b in itertools.pairwise(edges)]
    shapes = [s.shape for s in slices]
    if not keep:
        slices = [s.reshape(s.shape[:axis] + s.shape[axis + 1 :]) for s in slices]
    make_node = state.make_node
    if make_node is None or not x._requires_grad or not slices:
        return [registry.Tensor._wrap(s, None) for s in slices]
    node = make_node(_split, (x._node or x,), (axis, shapes, x.shape), None)
    return [
        registry.Tensor._wrap(s, make_node(Output("split", i, view=True), (node,), (), None))
        for i, s in enumerate(slices)
    ]


def split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    """Return x cut along an axis into equal sections, or before each of the indices, as views."""
    x = asarray(x)
    axis = normalize_axis(axis, x.ndim)
    n = x.shape[axis]
    sections = integer(indices_or_sections)
    if sections is not None:
        if sections < 1 or n % sections:
            raise ValueError(f"split: axis {axis} of length {n} does not divide into {sections}")
        step = n // sections
        cuts = [i * step for i in range(1, sections)]
    else:
        cuts = [operator.index(i) for i in indices_or_sections]
        ordered = [0, *cuts, n]
        if ordered != sorted(ordered):
            raise ValueError(
                f"split: indices {cuts} must grow and lie between 0 and {n}, the length of axis "
                f"{axis}"
            )
    return _parts(x, axis, [0, *cuts, n], keep=True)


def unstack(x: Any, axis: int = 0) -> tuple[Any, ...]:
    """Return the slices of x along an axis, without it, as views."""
    x = asarray(x)
    axis = normalize_axis(axis, x.ndim)
    return tuple(_parts(x, axis, range(x.shape[axis] + 1), keep=False))


def tile(x: Any, repetitions: Any) -> Any:
    """Return x repeated as a whole along each axis, by one number for the last or one number each.

    Axes that have no number, the first ones, stay as they are.
    """
    x = asarray(x)
    every = integer(repetitions)
    reps = tuple(map(operator.index, repetitions)) if every is None else (every,)
    reps = (1,) * (x.ndim - len(reps)) + reps
    shape = (1,) * (len(reps) - x.ndim) + x.shape
    paired = [n for pair in zip(reps, shape, strict=True) for n in pair]
    ones = [n for s in shape for n in (1, s)]
    wide = broadcast_to(reshape(x, ones), shape=tuple(paired))
    return reshape(wide, tuple(r * n for r, n in zip(reps, shape, strict=True)))
