"""Dropout: elements set to 0 with probability p, the others divided by 1 - p.

(Srivastava et al.: Dropout, JMLR 2014.) Which ones is a pure function of (seed, offset, element in
C order), see ``ops.philox``: the same on every device, and nothing but these integers is kept, as
a ``random.Draw``. The gradient is dropout itself with the same draw, and so is the gradient of
that. Hence these are rows of the registry and no fused operations, which would keep x for a second
derivative.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import cuda, memory
from ..cuda import recording
from ..ops import asarray, random
from ..ops._random import THREADS, active, grid
from ..ops.philox import blocks_used, keep_mask
from ..ops.random import Draw
from ..registry import Sample, primitive
from ..tensor import Tensor
from ._arguments import floating, with_residual
from ._rows import wide_dtype

SOURCE = cuda.Source("dropout.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)
PER_THREAD = 4  # packs of 16 bytes
_FIRST = Draw(0, 0)


def _dropped(xp: Any, x: Any, p: float, draw: Draw, residual: Any = None) -> Any:
    """Return dropout of x, added to the residual if there is one."""
    if x.size and active(xp) and cuda.fits(x):
        return _launched(xp, x, p, draw, residual)
    return _computed(xp, x, p, draw, residual)


@recording.whole
def _computed(xp: Any, x: Any, p: float, draw: Draw, residual: Any) -> Any:
    """Return the same by the array library."""
    keep = keep_mask(xp, draw.seed, draw.offset, x.size, p, draw.state).reshape(x.shape)
    wide = wide_dtype(x.dtype)
    if xp is np:
        out = memory.empty(x.shape, wide)
        out[...] = keep  # NumPy's where is ten times slower than these products
        out *= rescale(p)
        with np.errstate(invalid="ignore"):
            out *= x
        if not np.isfinite(out).all():  # 0 times NaN or infinity
            out[~keep] = 0
    else:
        out = xp.where(keep, x.astype(wide) * rescale(p), 0)
    out = out.astype(x.dtype, copy=False)
    if residual is not None:
        out += residual
    return out


def _launched(xp: Any, x: Any, p: float, draw: Draw, residual: Any) -> Any:
    """Return the same by a kernel."""
    out = cuda.empty(x.shape, x.dtype, like=x)
    arrays = [xp.ascontiguousarray(a) for a in (x, residual) if a is not None]
    SOURCE.launch(
        "dropout" if residual is None else "dropout_add",
        grid(-(-x.size * x.itemsize // 16), PER_THREAD),
        (THREADS,),
        (*arrays, out, x.size, *draw, round(p * 2**32), rescale(p)),
        GPUGRAD_DTYPE=cuda.dtype_code(x.dtype),
    )
    return out


def rescale(p: float) -> float:
    """Return what the elements that stay are multiplied by."""
    return 1 / (1 - p) if p < 1 else 0.0


def probability(op: str, name: str, p: float) -> float:
    """Return p as a float; raise ValueError if it is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: {name} is a probability, expected 0 <= {name} <= 1, got {p}")
    return float(p)


def _pull_x(g: Any, p: float, draw: Draw, xp: Any) -> Any:
    if isinstance(g, Tensor):
        return _dropout(g, p=p, draw=draw)
    return _dropped(xp, g, p, draw)


@primitive(
    [
        Sample((3, 4), p=0.5, draw=Draw(1, 0)),
        Sample((2, 3, 5), p=0.2, draw=Draw(2**40, 7)),
        Sample((), p=0.9, draw=Draw(3, 1)),
    ],
    name="dropout",
    method=False,
    floats_only=True,
    x=_pull_x,
)
def _dropout(xp, x, p=0.5, draw=_FIRST):
    """Return x with the elements that the draw drops set to 0 and the others rescaled."""
    return _dropped(xp, x, p, draw)


@primitive(
    [
        Sample((3, 4), (3, 4), p=0.5, draw=Draw(1, 0)),
        Sample((2, 3, 5), (2, 3, 5), p=0.2, draw=Draw(2**40, 7)),
    ],
    name="dropout_add",
    method=False,
    floats_only=True,
    x=_pull_x,
    residual=lambda g: g,
)
def _dropout_add(xp, x, residual, p=0.5, draw=_FIRST):
    """Return residual + dropout(x)."""
    return _dropped(xp, x, p, draw, residual)


def _statics(x: Tensor, p: float) -> dict[str, Any]:
    return {"p": p, "draw": random.reserve(blocks_used(math.prod(x.shape)))}


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Tensor:
    """Return x with each element set to 0 with probability p and divided by 1 - p otherwise.

    Any shape and floating dtype. Returns x itself when not training or p is 0. A dropped element is
    0 even if it was NaN or infinite. Draws from ``gg.random``. Raises ValueError for p outside
    [0, 1].
    """
    p = probability("dropout", "p", p)
    x = asarray(x)
    if not training or p == 0:
        return x
    return _dropout(x, **_statics(x, p))


def dropout_add(x: Any, residual: Any, p: float = 0.5, training: bool = True) -> Tensor:
    """Return residual + dropout(x, p, training), with the same bits, in one pass.

    The residual has the shape of x; the result has their common floating dtype. Keeps no array for
    backward. Raises ValueError for p outside [0, 1] and for other shapes.
    """
    p = probability("dropout_add", "p", p)
    x, residual = with_residual("dropout_add", floating(x), floating(residual))
    if not training or p == 0:
        return residual + x
    return _dropout_add(x, residual, **_statics(x, p))
