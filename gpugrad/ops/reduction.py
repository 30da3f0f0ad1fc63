"""Reductions and scans over axes.

float16 and bfloat16 accumulate in float32. Conventions where rules usually break: ties in max and
min share the gradient equally; products with zeros, norms and standard deviations of zero have
finite gradients (0 where none exists); sums over nothing are 0, products 1, means NaN, and the
maximum of nothing is an error.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backend
from ..boundary import REFUSALS, refuse
from ..cuda import recording
from ..registry import OPS, Sample, describe, primitive
from . import elementwise as ew
from ._axes import Axis, count, kept, normalize_axis, reduced_axes
from .shape import asarray, reshape

AXES = (
    Sample((3, 4)),
    Sample((3, 4), axis=0),
    Sample((2, 3, 4), axis=(0, -1)),
    Sample((2, 3, 4), axis=1, keepdims=True),
    Sample(()),
)
DISTINCT = tuple(Sample(*s.arguments, distinct=True, **s.statics) for s in AXES)


def _expanded(g: Any, shape: tuple[int, ...], axis: Axis, keepdims: bool, xp: Any) -> Any:
    """Return a reduced array with its axes back as axes of length 1."""
    return g if keepdims else g.reshape(kept(shape, axis))


def _wide(x: Any) -> Any:
    """Return x in float32 if it is narrower: counts and sums may be more than float16 holds."""
    return x.astype(backend.float32) if x.dtype in backend.NARROW else x


def _divided(g: Any, n: float) -> Any:
    return (_wide(g) / n).astype(g.dtype) if g.dtype in backend.NARROW else g / n


def _spread(g: Any, shape: tuple[int, ...], axis: Axis, keepdims: bool, xp: Any) -> Any:
    """Return a reduced array copied along the axes it was reduced over."""
    return xp.broadcast_to(_expanded(g, shape, axis, keepdims, xp), shape)


@primitive(
    [*AXES, Sample((0, 3), axis=0), Sample((3, 4), axis=[0, 1])],
    name="sum",
    x=lambda g, x_shape, axis, keepdims, xp: _spread(g, x_shape, axis, keepdims, xp),
)
def _sum_row(xp, x, axis=None, keepdims=False):
    return backend.total(xp, x, axis, keepdims)


def sum(
    x: Any,
    axis: Axis = None,
    dtype: Any = None,
    keepdims: bool = False,
    *,
    dim: Axis = None,
    keepdim: bool | None = None,
    out: None = None,
) -> Any:
    """Return the sum over axis (all axes by default), computed in dtype if given.

    ``dim`` and ``keepdim`` are PyTorch's names of ``axis`` and ``keepdims``; TypeError for both.
    Integers are added in 64 bits: TypeError for a boolean or narrower integer ``dtype``, in which a
    sum may overflow. ``out`` has to be None, as which ``numpy.sum(x)`` gives it.
    """
    if dim is not None:
        if axis is not None:
            raise TypeError("sum: argument 'axis' is given twice")
        axis = dim
    if keepdim is not None:
        if keepdims:
            raise TypeError("sum: argument 'keepdims' is given twice")
        keepdims = keepdim
    try:
        if out is not None:
            raise TypeError(f"sum: out must be None, got {describe(out)}; assign the result to it")
        if dtype is not None:
            wanted = backend.as_dtype(dtype)
            if wanted.kind in "iub" and wanted.itemsize < 8:
                raise TypeError(
                    f"sum: a sum in {wanted} may overflow; take int64, uint64 or a floating dtype, "
                    f"then .astype({wanted.name!r})"
                )
            x = asarray(x).astype(wanted)
        return OPS["sum"].of_one(asarray(x), {"axis": axis, "keepdims": keepdims})
    except REFUSALS as error:
        refuse(error, "sum", {"x": x, "axis": axis, "dtype": dtype})
        raise


@primitive(
    AXES,
    floats_only=True,
    x=lambda g, x_shape, axis, keepdims, xp: _spread(
        _divided(g, count(x_shape, axis) or math.nan), x_shape, axis, keepdims, xp
    ),
)
def mean(xp, x, axis=None, keepdims=False):
    """Return the mean over axis; integers give float32, an empty axis NaN."""
    total = backend.total(xp, _wide(x), axis, keepdims)
    return (total / (count(x.shape, axis) or math.nan)).astype(x.dtype)


def _product_before(x: Any, xp: Any) -> Any:
    """Return for each element the product of those before it on the last axis."""
    shifted = xp.concatenate([xp.ones_like(x[..., :1]), x[..., :-1]], axis=-1)
    return _running_product(shifted, -1, xp)


def _others_product(x: Any, axis: Axis, xp: Any) -> Any:
    """Return for each element the product of the other elements along axis, zeros or not."""
    axes = reduced_axes(axis, len(x.shape))
    rest = [i for i in range(len(x.shape)) if i not in axes]
    order = (*rest, *axes)
    moved = xp.transpose(x, order)
    flat = xp.reshape(moved, (*(x.shape[i] for i in rest), math.prod(x.shape[a] for a in axes)))
    after = xp.flip(_product_before(xp.flip(flat, axis=-1), xp), axis=-1)
    others = xp.reshape(_product_before(flat, xp) * after, moved.shape)
    return xp.transpose(others, [order.index(i) for i in range(len(order))])


@recording.whole
def _prod_rule(g: Any, x: Any, out: Any, axis: Axis, keepdims: bool, xp: Any) -> Any:
    g = _expanded(g, x.shape, axis, keepdims, xp)
    if (x == 0).any():
        return g * _others_product(x, axis, xp)
    return g * (_expanded(out, x.shape, axis, keepdims, xp) / x)


@primitive(
    [
        *(Sample(*s.arguments, domain=(0.5, 2.0), **s.statics) for s in AXES),
        Sample(np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 0.5]]), axis=1),
        Sample(np.array([[0.0, 2.0], [3.0, 1.5]])),
    ],
    x=_prod_rule,
)
def prod(xp, x, axis=None, keepdims=False):
    """Return the product over axis; exact gradients also where elements are zero."""
    if x.dtype in backend.NARROW:
        total = xp.prod(x.astype(backend.float32), axis=axis, keepdims=keepdims)
        return total.astype(x.dtype)
    return xp.prod(x, axis=axis, keepdims=keepdims)


def _extremum_rule(g: Any, x: Any, out: Any, axis: Axis, keepdims: bool, xp: Any) -> Any:
    ties = _wide((x == _expanded(out, x.shape, axis, keepdims, xp)).astype(x.dtype))
    share = ties / backend.total(xp, ties, axis, keepdims=True)
    return _expanded(g, x.shape, axis, keepdims, xp) * share


@primitive(DISTINCT, x=_extremum_rule)
def max(xp, x, axis=None, keepdims=False):
    """Return the largest element over axis, NaN if there is one; ties share the gradient."""
    return xp.max(x, axis=axis, keepdims=keepdims)


@primitive(DISTINCT, x=_extremum_rule)
def min(xp, x, axis=None, keepdims=False):
    """Return the smallest element over axis, NaN if there is one; ties share the gradient."""
    return xp.min(x, axis=axis, keepdims=keepdims)


def _centred(x: Any, axis: Axis, xp: Any) -> Any:
    x = _wide(x)
    return x - mean_of(xp, x, axis)


def _freedom(shape: tuple[int, ...], axis: Axis, correction: float) -> float:
    """Return what the squares are divided by; NaN where it would be zero or less."""
    n = count(shape, axis) - correction
    return n if n > 0 else math.nan


def _var(xp: Any, x: Any, axis: Axis, correction: float, keepdims: bool) -> Any:
    wide = _wide(x)
    centred = wide - mean_of(xp, wide, axis)
    squares = backend.total(xp, centred * centred, axis, keepdims)
    return squares / _freedom(x.shape, axis, correction)


def mean_of(xp: Any, x: Any, axis: Axis) -> Any:
    """Return the mean of an array with kept axes, NaN (and no warning) where it is empty."""
    return (backend.total(xp, x, axis, True) / (count(x.shape, axis) or math.nan)).astype(x.dtype)


@primitive(
    [*AXES, Sample((3, 4), axis=1, correction=1), Sample((3, 1), axis=1)],
    floats_only=True,
    x=lambda g, x, axis, correction, keepdims, xp: (
        _expanded(_wide(g), x.shape, axis, keepdims, xp)
        * (_centred(x, axis, xp) * (2 / _freedom(x.shape, axis, correction)))
    ),
)
def var(xp, x, axis=None, correction=0, keepdims=False):
    """Return the variance over axis, squares divided by n - correction (NaN if that is <= 0)."""
    return _var(xp, x, axis, correction, keepdims).astype(x.dtype)


def _std_rule(
    g: Any, x: Any, out: Any, axis: Axis, correction: float, keepdims: bool, xp: Any
) -> Any:
    out = _expanded(_wide(out), x.shape, axis, keepdims, xp)
    scale = _expanded(_wide(g), x.shape, axis, keepdims, xp) / (
        xp.where(out == 0, 1, out) * _freedom(x.shape, axis, correction)
    )
    return xp.where(out == 0, 0, scale) * _centred(x, axis, xp)


@primitive(
    [*AXES[:-1], Sample((3, 4), axis=1, correction=1)],
    floats_only=True,
    x=_std_rule,
)
def std(xp, x, axis=None, correction=0, keepdims=False):
    """Return the standard deviation over axis; where it is 0 the gradient is 0."""
    return xp.sqrt(_var(xp, x, axis, correction, keepdims)).astype(x.dtype)


@recording.whole
def _norm(xp: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    wide = _wide(x)
    out = xp.sqrt(backend.total(xp, wide * wide, axis, keepdims))
    if bool(((out == 0) | ~xp.isfinite(out)).any()) and x.size:  # squares may have under/overflown
        largest = xp.max(xp.abs(wide), axis=axis, keepdims=True)
        scale = xp.where((largest > 0) & xp.isfinite(largest), largest, 1).astype(wide.dtype)
        total = xp.sum((wide / scale) ** 2, axis=axis, keepdims=True)
        out = (xp.sqrt(total) * scale).reshape(out.shape)
    return out.astype(x.dtype)


@primitive(
    AXES,
    name="norm",
    floats_only=True,
    x=lambda g, x, out, axis, keepdims, xp: (
        _expanded(g, x.shape, axis, keepdims, xp)
        * (x / _nonzero(_expanded(out, x.shape, axis, keepdims, xp), xp))
    ),
)
def _norm_row(xp, x, axis=None, keepdims=False):
    with np.errstate(over="ignore"):
        return _norm(xp, x, axis, keepdims)


def _nonzero(x: Any, xp: Any) -> Any:
    return xp.where(x == 0, 1, x)


def norm(x: Any, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Any:
    """Return the vector norm over axis: (sum |x|**ord)**(1/ord), the largest |x| for ord=inf.

    The gradient at 0 is 0. Computed in at least float32; for ord=2 huge and tiny elements neither
    overflow nor vanish.
    """
    if ord == 2:
        return _norm_row(x, axis=axis, keepdims=keepdims)
    if ord == 1:
        return sum(ew.abs(x), axis=axis, keepdims=keepdims)
    if ord == math.inf:
        return max(ew.abs(x), axis=axis, keepdims=keepdims)
    if ord <= 0:
        raise ValueError(f"norm: ord must be positive, got {ord}")
    x = asarray(x)
    out = _raised(sum(_raised(ew.abs(_wide(x)), ord), axis=axis, keepdims=keepdims), 1 / ord)
    return out.astype(x.dtype) if x.dtype in backend.NARROW else out


def _raised(x: Any, exponent: float) -> Any:
    """Return x**exponent with the gradient 0 at 0, where that of a root is infinite."""
    zero = x == 0
    return ew.where(zero, 0, ew.power(ew.where(zero, 1, x), exponent))


def _logsumexp_rule(g: Any, x: Any, out: Any, axis: Axis, keepdims: bool, xp: Any) -> Any:
    out = _expanded(out, x.shape, axis, keepdims, xp)
    weights = xp.exp(x - xp.where(out == -math.inf, 0, out))  # a row of -inf has gradient 0
    return _expanded(g, x.shape, axis, keepdims, xp) * weights


@primitive(AXES, floats_only=True, x=_logsumexp_rule)
def logsumexp(xp, x, axis=None, keepdims=False):
    """Return log(sum(exp(x))) over axis without overflow; -inf over nothing or over -inf."""
    wide = _wide(x)
    if count(x.shape, axis):
        largest = xp.max(wide, axis=axis, keepdims=True)
        largest = xp.where(xp.isfinite(largest), largest, 0).astype(wide.dtype)
    else:
        largest = xp.zeros(kept(x.shape, axis), wide.dtype)
    with np.errstate(divide="ignore", over="ignore"):
        total = xp.log(xp.sum(xp.exp(wide - largest), axis=axis, keepdims=True)) + largest
    if not keepdims:
        axes = reduced_axes(axis, x.ndim)
        total = total.reshape([n for i, n in enumerate(x.shape) if i not in axes])
    return total.astype(x.dtype)


@primitive()
def any(xp, x, axis=None, keepdims=False):
    """Return whether any element over axis is true."""
    return xp.any(x, axis=axis, keepdims=keepdims)


@primitive()
def all(xp, x, axis=None, keepdims=False):
    """Return whether all elements over axis are true."""
    return xp.all(x, axis=axis, keepdims=keepdims)


@primitive()
def argmax(xp, x, axis=None, keepdims=False):
    """Return the position of the first largest element over one axis (or of the flat tensor)."""
    return xp.argmax(x, axis=axis, keepdims=keepdims)


@primitive()
def argmin(xp, x, axis=None, keepdims=False):
    """Return the position of the first smallest element over one axis (or of the flat tensor)."""
    return xp.argmin(x, axis=axis, keepdims=keepdims)


@primitive()
def count_nonzero(xp, x, axis=None, keepdims=False):
    """Return how many elements over axis are not zero."""
    return xp.sum(x != 0, axis=axis, keepdims=keepdims)


@primitive(
    [Sample((3, 4), axis=0), Sample((2, 3, 4), axis=-2), Sample((5,), axis=0)],
    name="cumulative_sum",
    x=lambda g, axis, xp: _running_total(g, axis, xp),
)
def _cumulative_sum(xp, x, axis=0):
    return _running_sum(xp, x, axis)


def _running_sum(xp: Any, x: Any, axis: int) -> Any:
    """Return the running sum in the dtype of x, accumulated in float32 at least, of many numbers
    by NumPy in float64: every one passes through all additions behind it.
    """
    if xp is np and x.shape[axis] > backend.MANY and x.dtype != backend.float64:
        return xp.cumsum(x, axis=axis, dtype=backend.float64).astype(x.dtype)
    if x.dtype in backend.NARROW:
        return xp.cumsum(x.astype(backend.float32), axis=axis).astype(x.dtype)
    return xp.cumsum(x, axis=axis)


def _running_product(x: Any, axis: int, xp: Any) -> Any:
    """Return the running product in the dtype of x, accumulated in float32 at least."""
    if x.dtype in backend.NARROW:
        return xp.cumprod(x.astype(backend.float32), axis=axis).astype(x.dtype)
    return xp.cumprod(x, axis=axis)


def _running_total(g: Any, axis: int, xp: Any) -> Any:
    """Return the running sum from the end, as ``_running_sum``."""
    return xp.flip(_running_sum(xp, xp.flip(g, axis=axis), axis), axis=axis)


@recording.whole
def _cumulative_prod_rule(g: Any, x: Any, out: Any, axis: int, xp: Any) -> Any:
    if not (x == 0).any():
        return _running_total(g * out, axis, xp) / x
    # with zeros: what comes before x[i], times the sum over j >= i of g[j] x[i+1] ... x[j]
    last, dtype = len(x.shape) - 1, x.dtype
    if dtype in backend.NARROW:
        x, g = x.astype(backend.float32), g.astype(backend.float32)
    x, g = xp.swapaxes(x, axis, last), xp.swapaxes(g, axis, last)
    before = _product_before(x, xp)
    rows = before * _unless_cut(_nested(g, x, xp), before, xp)
    return xp.swapaxes(rows, axis, last).astype(dtype)


def _nested(g: Any, x: Any, xp: Any) -> Any:
    """Return r with r[i] = g[i] + x[i+1] r[i+1] along the last axis.

    Each round doubles how many terms of g every element has, and how many factors are in one.
    """
    n = x.shape[-1]
    factors, step = x[..., 1:], 1
    while step < n:
        later = _unless_cut(g[..., step:], factors, xp)
        g = xp.concatenate([g[..., :-step] + factors * later, g[..., -step:]], axis=-1)
        factors = factors[..., :-step] * _unless_cut(factors[..., step:], factors[..., :-step], xp)
        step *= 2
    return g


def _unless_cut(y: Any, factors: Any, xp: Any) -> Any:
    """Return y, 0 where it overflowed behind a factor 0, which no product reaches beyond."""
    return xp.where(xp.logical_and(factors == 0, xp.isinf(y)), 0, y)


@primitive(
    [
        Sample((3, 4), axis=0, domain=(0.5, 2.0)),
        Sample((2, 5), axis=-1, domain=(-2.0, -0.5)),
        Sample(np.array([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 1.5, 2.0]]), axis=1),
    ],
    name="cumulative_prod",
    x=_cumulative_prod_rule,
)
def _cumulative_prod(xp, x, axis=0):
    return _running_product(x, axis, xp)


def cumulative_sum(x: Any, axis: int | None = None) -> Any:
    """Return the running sum along axis; without an axis, of the flattened tensor."""
    x = asarray(x)
    if axis is None:
        return _cumulative_sum(reshape(x, -1))
    return _cumulative_sum(x, axis=normalize_axis(axis, x.ndim))


def cumulative_prod(x: Any, axis: int | None = None) -> Any:
    """Return the running product along axis; without an axis, of the flattened tensor."""
    x = asarray(x)
    if axis is None:
        return _cumulative_prod(reshape(x, -1))
    return _cumulative_prod(x, axis=normalize_axis(axis, x.ndim))
