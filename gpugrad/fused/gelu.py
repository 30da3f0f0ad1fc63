"""The Gaussian error linear unit, alone and with a bias added first.

    out = h * P(h),   h = x + bias
    P(h) = (1 + erf(h / sqrt(2))) / 2                                  approximate="none"
    P(h) = (1 + tanh(sqrt(2 / pi) * (h + 0.044715 * h**3))) / 2        approximate="tanh"

(Hendrycks, Gimpel: Gaussian Error Linear Units, 2016). Beyond 40 P is 0 or 1 and its derivative 0
even in float64, so h is limited to that range where it is multiplied by them: for huge and
infinite h, out and gradient are the limits instead of the NaN of 0 * inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import cuda
from ..engine import is_grad_enabled
from ..memory import empty
from ..ops import clip, erf, tanh
from ..ops.erf import erf as numpy_erf
from ..registry import Sample
from ..tensor import Tensor
from . import _gelu_cuda
from ._arguments import features, floating, parameter
from ._rows import (
    ColumnSums,
    as_rows,
    contiguous,
    few,
    for_blocks,
    reshaped,
    scratch,
    wide_block,
    wide_dtype,
    widened,
)
from .base import Implementation, fused

LIMIT = 40.0
CUBIC = 0.044715
SLOPE = math.sqrt(2 / math.pi)

# P(h) = (1 + tanh(h q(h^2))) / 2 with a rational q: coefficients above and below, lowest degree
# first, the highest below being 1.
TANH = (SLOPE, SLOPE * CUBIC), ()
# For the exact P in float32, q = atanh(erf(h / sqrt(2))) / h on |h| <= 6: least squares, reweighted
# until the largest error of P times max(|h|, 1) was smallest, 5e-9. tanh damps the rounding errors
# of its argument, so this is as exact as erf, which computes in float64, and faster. All are
# positive: there is no pole, and beyond 6, where tanh is 1, q only grows.
EXACT = (20314.9987, 2515.85772, 189.971654, 4.78658199), (25461.0732, 1993.67425, 148.470518)

# NumPy


def _evaluate(
    h: np.ndarray,
    out: np.ndarray,
    slope: np.ndarray | None,
    spare: np.ndarray,
    rest: np.ndarray,
    approximate: str,
) -> None:
    """Write h * P(h) to out and its derivative to slope, if there is one.

    ``spare`` and ``rest`` are overwritten.
    """
    far = None
    np.multiply(h, h, out=spare)
    if not np.maximum.reduce(spare, axis=None) <= LIMIT * LIMIT:
        far = np.abs(h) > LIMIT
        limits = np.maximum(h[far], 0)
        h = np.clip(h, -LIMIT, LIMIT)
        np.multiply(h, h, out=spare)
    p = out if slope is None else slope
    if approximate == "none" and h.dtype == np.float64:
        np.multiply(h, math.sqrt(0.5), out=p)
        numpy_erf(p, out=p)
    else:
        (*lower, second, last), below = EXACT if approximate == "none" else TANH
        np.multiply(spare, last, out=p)
        p += second
        _continue(lower, spare, p)
        if below:
            divisor = rest if slope is None else out  # which is near, and written only later
            np.add(spare, below[-1], out=divisor)
            _continue(below[:-1], spare, divisor)
            p /= divisor
        p *= h
        np.tanh(p, out=p)
    p += 1
    p *= 0.5
    np.multiply(h, p, out=out)
    if slope is not None and approximate == "tanh":  # h P' = out (1 - P) (2 tanh's argument)'
        spare *= 6 * SLOPE * CUBIC
        spare += 2 * SLOPE
        spare *= out
        np.subtract(1, p, out=rest)
        rest *= spare
        slope += rest
    elif slope is not None:
        spare *= -0.5
        np.exp(spare, out=spare)
        spare *= 1 / math.sqrt(2 * math.pi)
        spare *= h
        slope += spare
    if far is not None:
        out[far] = limits


def _continue(lower: Sequence[float], z: np.ndarray, out: np.ndarray) -> None:
    """Take Horner's scheme, whose value so far is out, through these coefficients."""
    for coefficient in reversed(lower):
        out *= z
        out += coefficient


def _as_rows(x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return contiguous(x, (x.size, 1)) if bias is None else as_rows(x)


def _forward(x: np.ndarray, bias: np.ndarray | None, approximate: str) -> tuple[np.ndarray, tuple]:
    """Return the result, and the derivative if it may be asked for."""
    if few(x, bias):
        h = x if bias is None else x + bias
        out, (spare, rest) = np.empty(x.shape, x.dtype), np.empty((2, *x.shape), x.dtype)
        slope = np.empty(x.shape, x.dtype) if is_grad_enabled() else None
        with np.errstate(all="ignore"):
            _evaluate(h, out, slope, spare, rest, approximate)
        return out, (slope if slope is None else _as_rows(slope, bias),)
    wide = wide_dtype(x.dtype)
    out = empty(x.shape, x.dtype)
    rows, out_rows = _as_rows(x, bias), _as_rows(out, bias)
    bias = bias if bias is None else reshaped(bias, bias.shape, wide)
    slopes = empty(rows.shape, wide) if is_grad_enabled() else None

    def work(part: slice) -> None:
        held, spare, rest, *y = scratch(part, rows, wide, 3 if out.dtype == wide else 4)
        h = wide_block(rows[part], held) if bias is None else np.add(rows[part], bias, out=held)
        result = y[0] if y else out_rows[part]
        slope = None if slopes is None else slopes[part]
        _evaluate(h, result, slope, spare, rest, approximate)
        if y:
            out_rows[part] = result

    with np.errstate(all="ignore"):
        for_blocks(rows, work)
    return out, (slopes,)


def _backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    approximate: str,
) -> Sequence[Any]:
    x, bias = arrays
    (slopes,) = residuals
    wide = wide_dtype(x.dtype)
    dx = empty(x.shape, x.dtype) if wanted[0] else None
    g_rows, dx_rows = _as_rows(g, bias), None if dx is None else _as_rows(dx, bias)
    dbias = ColumnSums(slopes, wide) if wanted[1] else None

    def work(part: slice) -> None:
        if dx_rows is None or dx_rows.dtype != wide:
            (d,) = scratch(part, slopes, wide)
        else:
            d = dx_rows[part]
        np.multiply(g_rows[part], slopes[part], out=d)
        if dbias is not None:
            dbias.add(d, part)
        if dx_rows is not None and dx_rows.dtype != wide:
            dx_rows[part] = d

    for_blocks(slopes, work)
    return dx, None if dbias is None else dbias.total(bias.dtype)


# The definitions


def _gaussian(h: Any, approximate: str) -> Any:
    bounded = clip(h, -LIMIT, LIMIT)
    if approximate == "tanh":
        inner = tanh((bounded + bounded * bounded * bounded * CUBIC) * SLOPE)
    else:
        inner = erf(bounded * math.sqrt(0.5))
    return clip(h, -LIMIT) * ((inner + 1) * 0.5)


@fused(
    [
        Sample((3, 4), approximate="none"),
        Sample((2, 5), approximate="tanh"),
        Sample((), approximate="none"),
    ],
    arguments=("x",),
    numpy=Implementation(
        lambda x, approximate: _forward(x, None, approximate),
        lambda wanted, g, arrays, residuals, approximate: _backward(
            (*wanted, False), g, (*arrays, None), residuals, approximate
        )[:1],
        prepared=True,
    ),
    cuda=Implementation(
        lambda x, approximate: _gelu_cuda.forward(x, None, approximate),
        lambda wanted, g, arrays, residuals, approximate: _gelu_cuda.backward(
            (*wanted, False), g, (*arrays, None), residuals, approximate
        )[:1],
        lambda x, approximate: cuda.fits(x),
    ),
    cost=_gelu_cuda.cost,
)
def _gelu(x, approximate):
    return _gaussian(widened(x), approximate).astype(x.dtype)


@fused(
    [
        Sample((3, 4), (4,), approximate="none"),
        Sample((2, 3, 5), (5,), approximate="tanh"),
    ],
    arguments=("x", "bias"),
    numpy=Implementation(_forward, _backward, prepared=True),
    cuda=Implementation(
        _gelu_cuda.forward,
        _gelu_cuda.backward,
        lambda x, bias, approximate: cuda.fits(x, bias),
    ),
    cost=_gelu_cuda.cost,
)
def _bias_gelu(x, bias, approximate):
    wide = widened(x)
    return _gaussian(wide + bias.astype(wide.dtype), approximate).astype(x.dtype)


def checked(op: str, approximate: str) -> str:
    """Return the name of a form of gelu, refusing others."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'{op}: approximate must be "none" or "tanh", got {approximate!r}')
    return approximate


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """Return x times the probability that a standard normal variable is below x.

    ``approximate="tanh"`` is GPT-2's form, within 5e-4 of the exact one. Any shape; the result has
    the dtype of x and is computed in at least float32. Raises ValueError for another name.
    """
    return _gelu(floating(x), approximate=checked("gelu", approximate))


def bias_gelu(x: Any, bias: Any, approximate: str = "none") -> Tensor:
    """Return gelu(x + bias) for x of shape (..., C) and bias of shape (C,).

    The sum is not rounded to the dtype of x, which the result has. Raises ValueError where the
    shapes do not fit or ``approximate`` is neither "none" nor "tanh".
    """
    x = features("bias_gelu", x)
    if bias is None:
        raise TypeError("bias_gelu: bias is None; gelu takes no bias")
    bias = parameter("bias_gelu", "bias", bias, x)
    return _bias_gelu(x, bias, approximate=checked("bias_gelu", approximate))
