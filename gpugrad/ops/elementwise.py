"""Elementwise operations: one row each, with NumPy's names and broadcasting.

Conventions where a derivative does not exist follow PyTorch: relu'(0) = 0 (a choice from the
Clarke subdifferential [0, 1]), abs'(0) = 0, steps such as sign and floor have gradient 0, ties in
maximum and minimum share the gradient equally, clip passes the gradient at its boundaries, and
x**0 has gradient 0 everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from ml_dtypes import finfo

from .. import backend, registry
from ..cuda.elementwise import chain
from ..cuda.emulation import expected
from ..registry import Op, Rule, Sample, primitive
from ._hot import binary_function, unary_function
from ._masks import where_or_zero
from .erf import erf as _erf
from .shape import asarray

SHAPES = ((3, 4), (), (1, 5))
PAIRS = (((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 3), (4, 1)), ((), (2, 3)), ((5,), ()))


def _unary(
    name: str,
    summary: str,
    rule: Rule | None,
    forward: str | Callable[..., Any] | None = None,
    domain: tuple[float, float] = (-2.0, 2.0),
    floats_only: bool = True,
) -> Callable[[Any], Any]:
    """Register a row of one argument; ``forward`` is NumPy's name for it or a function of xp."""
    run, fast = _forward(name, forward or name)
    op = Op(
        name,
        run,
        {} if rule is None else {"x": rule},
        ["x"],
        {},
        [Sample(shape, domain=domain) for shape in SHAPES],
        floats_only=floats_only,
    )
    return _public(op, unary_function(op, fast), summary)


def _binary(
    name: str,
    summary: str,
    x: Rule | None,
    y: Rule | None,
    forward: str | Callable[..., Any] | None = None,
    domain: Any = (-2.0, 2.0),
    floats_only: bool = False,
    distinct: bool = False,
    samples: Sequence[Sample] = (),
) -> Callable[[Any, Any], Any]:
    """Register a row of two broadcast arguments; ``samples`` are tested beside the usual ones."""
    run, fast = _forward(name, forward or name)
    op = Op(
        name,
        run,
        {} if x is None or y is None else {"x": x, "y": y},
        ["x", "y"],
        {},
        [*(Sample(*pair, domain=domain, distinct=distinct) for pair in PAIRS), *samples],
        broadcasts=True,
        floats_only=floats_only,
    )
    return _public(op, binary_function(op, fast), summary)


def _forward(
    name: str, forward: str | Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the forward over any namespace, and the one bound to numpy for the hot path."""
    if isinstance(forward, str):
        ufunc, fast = forward, _FASTER.get(forward) or getattr(np, forward)
        return (lambda xp, *arrays: (fast if xp is np else getattr(xp, ufunc))(*arrays)), fast
    function, run = forward, chain(name, forward)
    return run, lambda *arrays: (run if expected() else function)(np, *arrays)


def _widened(x: Any) -> Any:
    """Return x; as float32 if its dtype has two bytes, in which NumPy computes slowly."""
    return x.astype(np.float32) if x.dtype in backend.NARROW else x


def _log_add_exp(x: Any, y: Any) -> Any:
    out = np.maximum(x, y)
    low, high = _widened(np.minimum(x, y)), _widened(out)
    gap = np.subtract(low, high, out=np.zeros_like(high), where=low != high)  # 0 between infinities
    return (high + np.log1p(np.exp(gap))).astype(out.dtype, copy=False)


_FASTER = {"logaddexp": _log_add_exp}  # NumPy's takes one number at a time


def _public(op: Op, function: Callable[..., Any], summary: str) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = summary
    op.function = function
    return function


def _zero(g: Any, xp: Any) -> Any:
    return xp.zeros_like(g)


def _whole(name: str) -> Callable[..., Any]:
    """Return a rounding function that leaves integers alone; some versions make them float64."""
    return lambda xp, x: x.copy() if x.dtype.kind in "iub" else getattr(xp, name)(x)


# One argument

negative = _unary("negative", "Return -x.", lambda g: -g, floats_only=False)
positive = _unary("positive", "Return +x.", lambda g: g, floats_only=False)
abs = _unary("abs", "Return |x|.", lambda g, x, xp: g * xp.sign(x), floats_only=False)
sign = _unary("sign", "Return -1, 0 or 1.", _zero, floats_only=False)
floor = _unary(
    "floor", "Return the largest integer <= x.", _zero, _whole("floor"), floats_only=False
)
ceil = _unary("ceil", "Return the smallest integer >= x.", _zero, _whole("ceil"), floats_only=False)
trunc = _unary("trunc", "Return x without its fraction.", _zero, _whole("trunc"), floats_only=False)
round = _unary(
    "round", "Return the nearest integer, halves to even.", _zero, _whole("rint"), floats_only=False
)
square = _unary("square", "Return x*x.", lambda g, x: g * (x * 2), floats_only=False)
reciprocal = _unary("reciprocal", "Return 1/x.", lambda g, out: -g * out * out, domain=(0.5, 2.0))
sqrt = _unary("sqrt", "Return the square root.", lambda g, out: g / (out * 2), domain=(0.5, 3.0))
rsqrt = _unary(
    "rsqrt",
    "Return 1/sqrt(x).",
    lambda g, x, out: g * -0.5 * (out / x),
    lambda xp, x: 1 / xp.sqrt(x),
    domain=(0.5, 3.0),
)
exp = _unary("exp", "Return e to the power x.", lambda g, out: g * out)
exp2 = _unary("exp2", "Return 2 to the power x.", lambda g, out: g * out * math.log(2.0))
expm1 = _unary("expm1", "Return exp(x) - 1, exact near 0.", lambda g, out: g * (out + 1))
log = _unary("log", "Return the natural logarithm.", lambda g, x: g / x, domain=(0.3, 3.0))
log1p = _unary(
    "log1p", "Return log(1 + x), exact near 0.", lambda g, x: g / (x + 1), domain=(-0.6, 3.0)
)
log2 = _unary(
    "log2",
    "Return the logarithm to base 2.",
    lambda g, x: g / (x * math.log(2.0)),
    domain=(0.3, 3.0),
)
log10 = _unary(
    "log10",
    "Return the logarithm to base 10.",
    lambda g, x: g / (x * math.log(10.0)),
    domain=(0.3, 3.0),
)
sin = _unary("sin", "Return the sine of x in radians.", lambda g, x, xp: g * xp.cos(x))
cos = _unary("cos", "Return the cosine of x in radians.", lambda g, x, xp: -g * xp.sin(x))
tan = _unary(
    "tan",
    "Return the tangent of x in radians.",
    lambda g, out: g * (out * out + 1),
    domain=(-1.0, 1.0),
)
sinh = _unary("sinh", "Return the hyperbolic sine.", lambda g, x, xp: g * xp.cosh(x))
cosh = _unary("cosh", "Return the hyperbolic cosine.", lambda g, x, xp: g * xp.sinh(x))
tanh = _unary("tanh", "Return the hyperbolic tangent.", lambda g, out: g * (1 - out * out))
asin = _unary(
    "asin",
    "Return the inverse sine, in radians.",
    lambda g, x, xp: g / xp.sqrt(1 - x * x),
    "arcsin",
    domain=(-0.8, 0.8),
)
acos = _unary(
    "acos",
    "Return the inverse cosine, in radians.",
    lambda g, x, xp: -g / xp.sqrt(1 - x * x),
    "arccos",
    domain=(-0.8, 0.8),
)
atan = _unary(
    "atan", "Return the inverse tangent, in radians.", lambda g, x: g / (x * x + 1), "arctan"
)
asinh = _unary(
    "asinh",
    "Return the inverse hyperbolic sine.",
    lambda g, x, xp: g / xp.sqrt(x * x + 1),
    "arcsinh",
)
acosh = _unary(
    "acosh",
    "Return the inverse hyperbolic cosine.",
    lambda g, x, xp: g / xp.sqrt(x * x - 1),
    "arccosh",
    domain=(1.3, 3.0),
)
atanh = _unary(
    "atanh",
    "Return the inverse hyperbolic tangent.",
    lambda g, x: g / (1 - x * x),
    "arctanh",
    domain=(-0.8, 0.8),
)


def _sigmoid(xp: Any, x: Any) -> Any:
    if xp is registry.recorded:  # the slope of what follows is wrong at 0
        return sigmoid(x)
    if xp is np and x.dtype.itemsize == 2:
        return _sigmoid(np, _widened(x)).astype(x.dtype)
    e = xp.exp(-xp.abs(x))  # never overflows
    if xp is np:  # whose where takes longer than all the rest
        return np.maximum(e, (x >= 0).astype(e.dtype)) / (1 + e)
    return xp.where(x >= 0, 1, e) / (1 + e)


sigmoid = _unary(
    "sigmoid", "Return 1 / (1 + exp(-x)).", lambda g, out: g * (out * (1 - out)), _sigmoid
)


def _softplus(xp: Any, x: Any) -> Any:
    if xp is not np:
        return xp.logaddexp(x, xp.zeros_like(x))
    wide = _widened(x)
    return (np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))).astype(x.dtype, copy=False)


softplus = _unary(
    "softplus", "Return log(1 + exp(x)).", lambda g, x, xp: g * _sigmoid(xp, x), _softplus
)
relu = _unary(
    "relu",
    "Return max(x, 0). The gradient at 0 is 0.",
    lambda g, out, xp: where_or_zero(xp, out > 0, g),
    lambda xp, x: xp.maximum(x, 0),
    floats_only=False,
)
erf = _unary(
    "erf",
    "Return the error function, 2/sqrt(pi) times the integral of exp(-t*t) from 0 to x.",
    lambda g, x, xp: g * (xp.exp(-x * x) * (2 / math.sqrt(math.pi))),
    lambda xp, x: _erf(x, xp),
)
isnan = _unary("isnan", "Return where x is NaN.", None, floats_only=False)
isinf = _unary("isinf", "Return where x is infinite.", None, floats_only=False)
isfinite = _unary(
    "isfinite", "Return where x is neither NaN nor infinite.", None, floats_only=False
)
logical_not = _unary("logical_not", "Return not x.", None, floats_only=False)
bitwise_invert = _unary("bitwise_invert", "Return ~x.", None, "invert", floats_only=False)

# Two arguments

add = _binary("add", "Return x + y.", lambda g: g, lambda g: g)
subtract = _binary("subtract", "Return x - y.", lambda g: g, lambda g: -g)
multiply = _binary("multiply", "Return x * y.", lambda g, y: g * y, lambda g, x: g * x)
divide = _binary(
    "divide",
    "Return x / y; integers divide as float32.",
    lambda g, y: g / y,
    lambda g, y, out: -g * (out / y),
    domain=((-2.0, 2.0), (0.5, 2.0)),
    floats_only=True,
)


def _lowered(x: Any, y: Any, xp: Any) -> tuple[Any, Any]:
    """Return x and y - 1, or what has the same power times y where y is 0: that is 0, not NaN.

    Where the slope is derived again, that is so only where 1/x overflows.
    """
    if isinstance(y, (int, float)):
        return x, y - 1 if y else 0
    if xp is not registry.recorded:
        return x, xp.where(y == 0, 0, y - 1)
    overflows = xp.abs(x) < float(ml_dtypes.finfo(x.dtype).tiny)
    return xp.where(xp.logical_and(y == 0, overflows), 1, x), y - 1


power = _binary(
    "power",
    "Return x to the power y.",
    lambda g, x, y, xp: g * (xp.power(*_lowered(x, y, xp)) * y),
    lambda g, x, out, xp: (
        g * (out * xp.log(xp.where(xp.logical_and(x == 0, xp.isfinite(out)), 1, x)))
    ),
    domain=((0.3, 2.0), (-2.0, 2.0)),
    samples=[Sample((3, 2), np.array([0.0, 1.0]), domain=(0.3, 2.0))],
)


def _larger(g: Any, x: Any, y: Any, xp: Any) -> Any:
    return xp.where(x == y, g * 0.5, xp.where(x > y, g, 0))


def _smaller(g: Any, x: Any, y: Any, xp: Any) -> Any:
    return xp.where(x == y, g * 0.5, xp.where(x < y, g, 0))


maximum = _binary(
    "maximum",
    "Return the larger of x and y (NaN if either is); ties share the gradient equally.",
    _larger,
    lambda g, x, y, xp: _larger(g, y, x, xp),
)
minimum = _binary(
    "minimum",
    "Return the smaller of x and y (NaN if either is); ties share the gradient equally.",
    _smaller,
    lambda g, x, y, xp: _smaller(g, y, x, xp),
)


def _over_square(z: Any, x: Any, y: Any, xp: Any) -> Any:
    """Return z / (x*x + y*y) without overflow, 0 at (0, 0)."""
    r = xp.hypot(x, y)
    r = xp.where(r == 0, 1, r)
    return z / r / r


atan2 = _binary(
    "atan2",
    "Return the angle of the point (y, x), in radians: the inverse tangent of x / y. The gradient "
    "at (0, 0) is 0.",
    lambda g, x, y, xp: g * _over_square(y, x, y, xp),
    lambda g, x, y, xp: -g * _over_square(x, x, y, xp),
    "arctan2",
    domain=(0.5, 2.0),
    floats_only=True,
)
hypot = _binary(
    "hypot",
    "Return sqrt(x*x + y*y); the gradient at (0, 0) is 0.",
    lambda g, x, out, xp: g * (x / xp.where(out == 0, 1, out)),
    lambda g, y, out, xp: g * (y / xp.where(out == 0, 1, out)),
    domain=(0.5, 2.0),
    floats_only=True,
)


def _share(x: Any, y: Any, xp: Any) -> Any:
    """Return exp(x) / (exp(x) + exp(y)); 0 where both are -inf, as in logsumexp."""
    return _sigmoid(xp, xp.where(xp.maximum(x, y) == -math.inf, x, x - y))


logaddexp = _binary(
    "logaddexp",
    "Return log(exp(x) + exp(y)) without overflow; the gradient at (-inf, -inf) is 0.",
    lambda g, x, y, xp: g * _share(x, y, xp),
    lambda g, x, y, xp: g * _share(y, x, xp),
    floats_only=True,
)
remainder = _binary(
    "remainder",
    "Return x - floor(x/y)*y, which has the sign of y.",
    lambda g: g,
    lambda g, x, y, xp: -g * xp.floor_divide(x, y),
    domain=((-2.9, -2.3), (1.5, 2.0)),
)
fmod = _binary(
    "fmod",
    "Return x - trunc(x/y)*y, which has the sign of x.",
    lambda g: g,
    lambda g, x, y, xp: -g * xp.trunc(x / y),
    domain=((2.3, 2.9), (1.5, 2.0)),
)
floor_divide = _binary(
    "floor_divide",
    "Return floor(x / y).",
    _zero,
    _zero,
    domain=((-2.9, -2.3), (1.5, 2.0)),
)
equal = _binary("equal", "Return x == y.", None, None)
not_equal = _binary("not_equal", "Return x != y.", None, None)
less = _binary("less", "Return x < y.", None, None)
less_equal = _binary("less_equal", "Return x <= y.", None, None)
greater = _binary("greater", "Return x > y.", None, None)
greater_equal = _binary("greater_equal", "Return x >= y.", None, None)
logical_and = _binary("logical_and", "Return x and y.", None, None)
logical_or = _binary("logical_or", "Return x or y.", None, None)
logical_xor = _binary("logical_xor", "Return x xor y.", None, None)
bitwise_and = _binary("bitwise_and", "Return x & y.", None, None)
bitwise_or = _binary("bitwise_or", "Return x | y.", None, None)
bitwise_xor = _binary("bitwise_xor", "Return x ^ y.", None, None)

# Three arguments

_MASK = np.array(
    [[True, False, True, True], [False, False, True, False], [True, True, False, True]]
)


@primitive(
    [
        Sample(_MASK, (3, 4), (3, 4)),
        Sample(_MASK, (4,), ()),
        Sample(np.array(True), (2, 3), (3,)),
        Sample(_MASK[:, :1], (1, 4), (3, 1)),
    ],
    broadcasts=True,
    method=False,
    x=lambda g, condition, xp: xp.where(condition, g, 0),
    y=lambda g, condition, xp: xp.where(condition, 0, g),
)
def where(xp, condition, x, y):
    """Return x where condition is true and y elsewhere; all three broadcast."""
    out = xp.where(condition, x, y)
    return out if out.dtype == x.dtype else out.astype(x.dtype)  # CuPy widens bfloat16


def _inside(g: Any, x: Any, low: Any, high: Any, xp: Any) -> Any:
    inside = x == x  # NaN passes no gradient
    if low is not None:
        inside = inside & (x >= low)
    if high is not None:
        inside = inside & (x <= high)
    return xp.where(inside, g, 0)


@primitive(
    [
        Sample((3, 4), np.array(-0.8), np.array(0.7)),
        Sample((3, 4), (4,), (3, 1), domain=((-2.0, 2.0), (-0.9, -0.5), (0.5, 0.9))),
    ],
    name="clip",
    broadcasts=True,
    x=lambda g, x, min, max, xp: _inside(g, x, min, max, xp),
    min=lambda g, x, min, max, xp: xp.where(
        (x < min) if max is None else (x < min) & (min <= max), g, 0
    ),
    max=lambda g, x, min, max, xp: xp.where(
        (x > max) if min is None else (x > max) | (min > max), g, 0
    ),
)
@functools.partial(chain, "clip")
def _clip(xp, x, min, max):
    if min is not None:
        x = xp.maximum(x, min)
    return x if max is None else xp.minimum(x, max)


def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """Return x limited to [min, max], either of which may be None; where min > max, max.

    The gradient passes where min <= x <= max, boundaries included, and goes to a tensor bound
    where that bound decides the result. Raises TypeError when both bounds are None.
    """
    if min is None and max is None:
        raise TypeError("clip: min and max are both None; give at least one")
    return _clip(x, min, max)


def nan_to_num(
    x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Any:
    """Return x with NaN, inf and -inf replaced by these numbers; no gradient passes there.

    By default infinities become the largest and the smallest number of the dtype.
    """
    x = asarray(x)
    if not backend.is_float(x.dtype):
        return x.copy()
    largest = float(finfo(x.dtype).max)
    x = where(isnan(x), nan, x)
    x = where(equal(x, math.inf), largest if posinf is None else posinf, x)
    return where(equal(x, -math.inf), -largest if neginf is None else neginf, x)
