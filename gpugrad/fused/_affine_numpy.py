"""A linear layer behind a norm by NumPy: see layer_norm_affine.py.

Threads take parts of the rows through the norm and the layer, and the same way back, while they are
in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import openblas
from ..memory import empty
from ..threads import for_rows
from . import _row_parts
from ._layer_norm_numpy import Backward, Forward
from ._row_parts import add_product, part, total
from ._rows import ColumnSums, as_rows


def forward(norm: Forward, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return the result, (..., out)."""
    count = len(norm.rows)
    out = empty((count, len(weight)), norm.rows.dtype)

    def work(start: int, stop: int) -> None:
        result = np.matmul(norm.taken(start, stop), weight.T, out=out[start:stop])
        if bias is not None:
            result += bias

    with np.errstate(all="ignore"), openblas.serial:  # also for a single part
        for_rows(count, work, min(part(count), _row_parts.ROWS))
    return out.reshape(*norm.h.shape[:-1], len(weight))


def backward(
    wanted: tuple[bool, ...], norm: Backward, g: np.ndarray, weight: np.ndarray
) -> Sequence[Any]:
    """Return the gradients of weight and bias, and hand that of the rows to the norm.

    ``wanted`` says whether it, weight and bias want one.
    """
    g_rows, dtype = as_rows(g), weight.dtype
    count = len(g_rows)
    length, most = part(count), _row_parts.ROWS
    of_weight = None
    if wanted[1]:
        of_weight = [empty(weight.shape, dtype) for _ in range(0, count, length)]
    of_bias = ColumnSums(g_rows, dtype) if wanted[2] else None

    def work(first: int, last: int) -> None:
        for start in range(first, last, most):
            some = slice(start, min(start + most, last))
            g_some = g_rows[some]
            if of_weight is not None:
                taken = norm.taken(start, some.stop)
                add_product(g_some.T, taken, of_weight[first // length], start == first)
            if of_bias is not None:
                of_bias.add(g_some, some)
            if wanted[0]:
                norm.pull(start, np.matmul(g_some, weight))

    with np.errstate(all="ignore"), openblas.serial:
        for_rows(count, work, length)
        return total(of_weight), None if of_bias is None else of_bias.total(dtype)
