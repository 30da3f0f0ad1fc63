"""Dropout: elements set to 0 with probability p, the others divided by 1 - p.

(Srivastava et al.: Dropout, JMLR 2014.) Which ones is a pure function of (seed, offset, element in
C order), see ``ops.philox``: the same on every device, and nothing but these integers is kept. The
gradient is dropout itself with the same integers, and so is the gradient of that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ops import asarray, random
from ..ops.philox import blocks_used, keep_mask
from ..registry import Sample, primitive
from ..tensor import Tensor
from ._rows import wide_dtype


def _dropped(xp: Any, x: Any, p: float, seed: int, offset: int) -> Any:
    keep = keep_mask(xp, seed, offset, x.size, p).reshape(x.shape)
    wide = wide_dtype(x.dtype)
    if xp is not np:  # the launcher of kernels/dropout.cu, which stores no mask, belongs here
        return xp.where(keep, x.astype(wide) * rescale(p), 0).astype(x.dtype)
    out = keep.astype(wide)  # NumPy's where is ten times slower than these products
    out *= rescale(p)
    with np.errstate(invalid="ignore"):
        out *= x
    if not np.isfinite(out).all():  # 0 times NaN or infinity
        out[~keep] = 0
    return out.astype(x.dtype, copy=False)


def rescale(p: float) -> float:
    """Return what the elements that stay are multiplied by."""
    return 1 / (1 - p) if p < 1 else 0.0


def probability(op: str, name: str, p: float) -> float:
    """Return p as a float; raise ValueError if it is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: {name} is a probability, expected 0 <= {name} <= 1, got {p}")
    return float(p)


@primitive(
    [
        Sample((3, 4), p=0.5, seed=1, offset=0),
        Sample((2, 3, 5), p=0.2, seed=2**40, offset=7),
        Sample((), p=0.9, seed=3, offset=1),
    ],
    name="dropout",
    method=False,
    floats_only=True,
    x=lambda g, p, seed, offset, xp: (
        _dropout(g, p=p, seed=seed, offset=offset)
        if isinstance(g, Tensor)
        else _dropped(xp, g, p, seed, offset)
    ),
)
def _dropout(xp, x, p=0.5, seed=0, offset=0):
    """Return x with the elements that (seed, offset) drop set to 0 and the others rescaled."""
    return _dropped(xp, x, p, seed, offset)


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
    seed, offset = random.reserve(blocks_used(math.prod(x.shape)))
    return _dropout(x, p=p, seed=seed, offset=offset)
