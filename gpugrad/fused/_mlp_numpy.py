"""The perceptron of a transformer block by NumPy: see mlp.py.

Threads take parts of the rows, which go through both layers, and the same way back, while they are
in the cache; the norm ahead of them too, where there is one. Only the hidden layer before GELU is
kept; what follows from it, and what the norm makes of its rows, is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import openblas
from ..engine import is_grad_enabled
from ..memory import empty
from ..threads import for_rows
from . import _layer_norm_numpy, _row_parts
from ._row_parts import add_product, part, total
from ._rows import BLOCK, ColumnSums, as_rows
from .gelu import _evaluate


def _evaluated(h: np.ndarray, out: np.ndarray, change: np.ndarray | None, approximate: str) -> None:
    """Write GELU of h to out and multiply the change, if any, by its derivative: block by block."""
    length = max(1, BLOCK // h.shape[1])
    spare, rest, slope = np.empty((3, min(length, len(h)), h.shape[1]), h.dtype)
    for start in range(0, len(h), length):
        some = slice(start, start + length)
        block = h[some]
        size = len(block)
        inclined = None if change is None else slope[:size]
        _evaluate(block, out[some], inclined, spare[:size], rest[:size], approximate)
        if change is not None:
            change[some] *= slope[:size]


def forward(
    x: np.ndarray,
    up: np.ndarray,
    up_bias: np.ndarray | None,
    down: np.ndarray,
    down_bias: np.ndarray | None,
    approximate: str,
    norm: _layer_norm_numpy.Forward | None = None,
) -> tuple[np.ndarray, tuple]:
    """Return the result, and the hidden layer before GELU if there may be a backward.

    With a norm, x is what that normalises.
    """
    rows, dtype = as_rows(x) if norm is None else norm.rows, x.dtype
    count, hidden = len(rows), len(up)
    out = empty((count, len(down)), dtype)
    kept = empty((count, hidden), dtype) if is_grad_enabled() else None

    def work(start: int, stop: int) -> None:
        some = slice(start, stop)
        h = np.empty((stop - start, hidden), dtype) if kept is None else kept[some]
        np.matmul(rows[some] if norm is None else norm.taken(start, stop), up.T, out=h)
        if up_bias is not None:
            h += up_bias
        after = np.empty(h.shape, dtype)
        _evaluated(h, after, None, approximate)
        result = np.matmul(after, down.T, out=out[some])
        if down_bias is not None:
            result += down_bias

    with np.errstate(all="ignore"), openblas.serial:  # also for a single part
        for_rows(count, work, min(part(count), _row_parts.ROWS))
    return out.reshape(*x.shape[:-1], len(down)), () if kept is None else (kept,)


def backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    approximate: str,
    norm: _layer_norm_numpy.Backward | None = None,
) -> Sequence[Any]:
    """Return the gradients of x and of all parameters; with a norm, that of x goes there."""
    x, up, _, down, _ = arrays
    (hidden,) = residuals
    rows, g_rows, dtype = as_rows(x) if norm is None else norm.rows, as_rows(g), x.dtype
    count = len(rows)
    length, most = part(count), _row_parts.ROWS
    parts = range(0, count, length)
    dx = empty(x.shape, dtype) if wanted[0] and norm is None else None
    dx_rows = None if dx is None else as_rows(dx)
    of_up = [empty(up.shape, dtype) for _ in parts] if wanted[1] else None
    of_up_bias = ColumnSums(hidden, dtype) if wanted[2] else None
    of_down = [empty(down.shape, dtype) for _ in parts] if wanted[3] else None
    of_down_bias = ColumnSums(g_rows, dtype) if wanted[4] else None
    inner = wanted[0] or wanted[1] or wanted[2]

    def work(first: int, last: int) -> None:
        mine = first // length
        after, d = np.empty((2, min(last - first, most), hidden.shape[1]), dtype)
        for start in range(first, last, most):
            some = slice(start, min(start + most, last))
            size, g_some = some.stop - start, g_rows[some]
            y, change = after[:size], d[:size] if inner else None
            if change is not None:
                np.matmul(g_some, down, out=change)
            _evaluated(hidden[some], y, change, approximate)
            if of_down is not None:
                add_product(g_some.T, y, of_down[mine], start == first)
            if of_down_bias is not None:
                of_down_bias.add(g_some, some)
            if change is None:
                continue
            if of_up_bias is not None:
                of_up_bias.add(change, some)
            if of_up is not None:
                source = rows[some] if norm is None else norm.taken(start, some.stop)
                add_product(change.T, source, of_up[mine], start == first)
            if dx_rows is not None:
                np.matmul(change, up, out=dx_rows[some])
            elif norm is not None and wanted[0]:
                norm.pull(start, np.matmul(change, up))

    with np.errstate(all="ignore"), openblas.serial:
        for_rows(count, work, length)
        return (
            dx,
            total(of_up),
            None if of_up_bias is None else of_up_bias.total(dtype),
            total(of_down),
            None if of_down_bias is None else of_down_bias.total(dtype),
        )
