"""The error function, erf(x) = 2 / sqrt(pi) * integral of exp(-u**2) from 0 to x, for NumPy arrays.

NumPy has none. The coefficients are minimax: Remez's exchange algorithm in 60-digit arithmetic,
started from linearised least squares, minimised the largest relative error of erf in exact
arithmetic, and the result was rounded to float64. With t = x * x, lowest degree first:

    float32 and narrower, |x| <= 4:  x * P(t) / Q(t), degrees 5 and 6, error 2**-28.5
    float64, |x| < 1:                x + x * R(t), degree 11, error 2**-56.9
    float64, 1 <= |x| <= 6:          1 - exp(-t) * N(|x|) / D(|x|), degrees 5 and 6, error 2**-59.4

Beyond 4 (float32) and 6 (float64) erf is 1 to the last bit. Narrow types are evaluated in float64,
by additions, multiplications and one division only: what rounding adds is far below their last
place, and the result is the same on every CPU.
"""

from __future__ import annotations

import importlib
import threading
from types import ModuleType
from typing import Any

import numpy as np

from .. import memory
from ..backend import FLOATS, Symbolic, is_numpy
from ..cuda import recording

__all__ = ["erf"]

P = (
    1.1283791699746537,
    0.19287878309799703,
    0.05574957895669877,
    0.004226494637492163,
    0.0004112793704505583,
    6.791415824705789e-06,
)
Q = (
    1.0,
    0.5042678048084033,
    0.11749539749754852,
    0.016295154651979397,
    0.00142120988957222,
    7.256427798484759e-05,
    2.6048835914822743e-07,
)
R = (
    0.12837916709551256,
    -0.3761263890318352,
    0.11283791670944185,
    -0.02686617064311147,
    0.005223977606118474,
    -0.0008548325929314527,
    0.00012055293576901725,
    -1.4924712302031065e-05,
    1.6447131571540974e-06,
    -1.620631376049791e-07,
    1.3710980406676969e-08,
    -7.779468505035504e-10,
)
N = (
    0.9999998869872339,
    1.3905901052662868,
    0.9495361603715984,
    0.3736082569585267,
    0.08435167997933987,
    0.008930719341058255,
)
D = (
    1.0,
    2.5189680817960745,
    2.79189324745273,
    1.7571879838573872,
    0.6701775543099829,
    0.14950555482842323,
    0.01582941034741619,
)

# Elements at a time: the five float64 buffers stay in a second-level cache of 1 MiB.
BLOCK = 16384


def erf(x: Any, xp: ModuleType = np, out: Any = None) -> Any:
    """Return the error function of each element of x, in x's shape and dtype.

    float16, bfloat16, float32: within 0.6 of a unit in the last place; float64: within 1.5.
    nan gives nan, -0.0 gives -0.0, infinities give -1 and 1; nothing but a signalling nan warns.
    out: a C-contiguous array of x's shape and dtype for the result; it may be x itself.
    With xp cupy the values are those of cupyx.scipy.special.erf.

    Raises TypeError where x is not floating, ValueError where out does not match x.
    """
    x = x if isinstance(x, Symbolic) else xp.asarray(x)
    if x.dtype not in FLOATS:
        raise TypeError(f"erf: x must be {', '.join(d.name for d in FLOATS)}, got {x.dtype}")
    if isinstance(x, Symbolic):
        return recording.as_one(erf, x) if is_numpy(x) else x.namespace.erf(x)
    if out is None:
        out = memory.empty(x.shape, x.dtype) if xp is np else xp.empty(x.shape, dtype=x.dtype)
    elif out.shape != x.shape or out.dtype != x.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"erf: out must be C-contiguous with shape {x.shape} and dtype {x.dtype} as x, "
            f"got shape {out.shape}, dtype {out.dtype}, strides {out.strides}"
        )
    if xp is not np:
        wide = x.astype(xp.float32) if x.dtype.itemsize == 2 else x
        out[...] = importlib.import_module("cupyx.scipy.special").erf(wide)
        return out
    evaluate = _float64 if x.dtype == np.float64 else _float32
    source, target = x.reshape(-1), out.reshape(-1)
    for start in range(0, x.size, BLOCK):
        part = slice(start, start + BLOCK)
        target[part] = evaluate(source[part], *_kept.buffers[:, : len(source[part])])
    return out


class _Kept(threading.local):
    """The temporaries, one set per thread: fresh pages can cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.buffers = np.empty((5, BLOCK))


_kept = _Kept()


def _float32(x: Any, y: Any, t: Any, p: Any, q: Any, _: Any) -> Any:
    y[...] = x
    np.clip(y, -4, 4, out=y)
    np.multiply(y, y, out=t)
    p = _polynomial(P, t, p)
    p /= _polynomial(Q, t, q)
    p *= y
    return p


def _float64(x: Any, y: Any, t: Any, a: Any, n: Any, d: Any) -> Any:
    np.clip(x, -6, 6, out=y)
    np.multiply(y, y, out=t)
    np.abs(y, out=a)
    n = _polynomial(N, a, n)
    n /= _polynomial(D, a, d)
    np.negative(t, out=d)
    n *= np.exp(d, out=d)
    np.subtract(1, n, out=n)
    np.copysign(n, y, out=n)
    r = _polynomial(R, t, d)
    r *= y
    r += y
    np.copyto(n, r, where=a < 1)
    return n


def _polynomial(coefficients: tuple[float, ...], x: Any, out: Any) -> Any:
    """Horner's scheme, in place."""
    *rest, constant_last, last = coefficients
    np.multiply(x, last, out=out)
    out += constant_last
    for coefficient in reversed(rest):
        out *= x
        out += coefficient
    return out
