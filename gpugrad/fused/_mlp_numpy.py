"""The perceptron of a transformer block by NumPy: see mlp.py.

The hidden layer is cut into shares of its units, each of which goes through both layers on its own:
up, GELU, down, and the same way back, while it is in the cache. Threads take the shares, and some
rows of each at a time. What the shares have in common, the result and the gradient of x, is the sum
of theirs. Only the hidden layer before GELU is kept; what follows from it is computed again.
How all is cut depends on the shapes alone, and with it every bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import openblas
from ..engine import is_grad_enabled
from ..memory import empty
from ..ops._products import WHOLE
from ..threads import for_rows
from ._rows import BLOCK, ColumnSums, as_rows, for_blocks
from .gelu import _evaluate

# Rows that a share goes through at a time: products are as fast as with all of them, and their
# hidden units stay in the cache
ROWS = 512
MOST = 4  # shares: the sums of what they have in common take a pass for each
UNITS = 128  # of a share, at least: of fewer the products are slower


def _shares(units: int, work: int) -> list[slice]:
    """Return the units of each share, for products of so many multiplications."""
    count = max(1, min(MOST, units // UNITS, 2 if work < 16 * WHOLE else MOST))
    bounds = [units * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def _evaluated(h: np.ndarray, out: np.ndarray, change: np.ndarray | None, approximate: str) -> None:
    """Write GELU of h to out and multiply the change, if any, by its derivative: block by block."""
    length = max(1, BLOCK // h.shape[1])
    spare, rest, slope = np.empty((3, min(length, len(h)), h.shape[1]), h.dtype)
    for start in range(0, len(h), length):
        part = slice(start, start + length)
        block = h[part]
        size = len(block)
        if change is None:
            _evaluate(block, out[part], None, spare[:size], approximate)
        else:
            _evaluate(block, out[part], slope[:size], spare[:size], approximate, rest[:size])
            change[part] *= slope[:size]


def _added(parts: Sequence[np.ndarray], bias: np.ndarray | None) -> np.ndarray:
    """Return the sum of matrices and of a row, in the first of them."""
    total = parts[0]

    def work(part: slice) -> None:
        block = total[part]
        for other in parts[1:]:
            block += other[part]
        if bias is not None:
            block += bias

    if len(parts) > 1 or bias is not None:
        for_blocks(total, work)
    return total


def forward(
    x: np.ndarray,
    up: np.ndarray,
    up_bias: np.ndarray | None,
    down: np.ndarray,
    down_bias: np.ndarray | None,
    approximate: str,
) -> tuple[np.ndarray, tuple]:
    """Return the result, and the hidden layer before GELU in its shares if there is a backward."""
    rows, dtype = as_rows(x), x.dtype
    shares = _shares(len(up), x.size * len(up))
    count = len(rows)
    outs = [empty((count, len(down)), dtype) for _ in shares]
    kept = [empty((count, s.stop - s.start), dtype) for s in shares] if is_grad_enabled() else None
    pieces = -(-count // ROWS)

    def work(index: int, _: int) -> None:
        k, piece = index % len(shares), index // len(shares)
        some, units = slice(piece * ROWS, min((piece + 1) * ROWS, count)), shares[k]
        shape = some.stop - some.start, units.stop - units.start
        h = np.empty(shape, dtype) if kept is None else kept[k][some]
        np.matmul(rows[some], up[units].T, out=h)
        if up_bias is not None:
            h += up_bias[units]
        after = np.empty(shape, dtype)
        _evaluated(h, after, None, approximate)
        np.matmul(after, down[:, units].T, out=outs[k][some])

    with np.errstate(all="ignore"), openblas.serial:  # also for a single piece
        for_rows(pieces * len(shares), work, 1)
        out = _added(outs, down_bias)
    return out.reshape(*x.shape[:-1], len(down)), tuple(kept or ())


def backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    approximate: str,
) -> Sequence[Any]:
    """Return the gradients of x and of all parameters."""
    x, up, up_bias, down, _ = arrays
    rows, g_rows, dtype = as_rows(x), as_rows(g), x.dtype
    shares = _shares(len(up), x.size * len(up))
    count = len(rows)
    dxs = [empty(rows.shape, dtype) for _ in shares] if wanted[0] else None
    of_up = empty(up.shape, dtype) if wanted[1] else None
    of_up_bias = [ColumnSums(h, dtype) for h in residuals] if wanted[2] else None
    of_down = empty(down.shape, dtype) if wanted[3] else None
    inner = wanted[0] or wanted[1] or wanted[2]

    def work(k: int, _: int) -> None:
        units, h = shares[k], residuals[k]
        shape = min(count, ROWS), units.stop - units.start
        after, d = np.empty((2, *shape), dtype)
        for start in range(0, count, ROWS):
            some = slice(start, min(start + ROWS, count))
            size, g_some = some.stop - start, g_rows[some]
            y, change = after[:size], d[:size] if inner else None
            if change is not None:
                np.matmul(g_some, down[:, units], out=change)
            _evaluated(h[some], y, change, approximate)
            if of_down is not None:
                _add_product(g_some.T, y, of_down[:, units], not start)
            if change is None:
                continue
            if of_up_bias is not None:
                of_up_bias[k].add(change, some)
            if of_up is not None:
                _add_product(change.T, rows[some], of_up[units], not start)
            if dxs is not None:
                np.matmul(change, up[units], out=dxs[k][some])

    with np.errstate(all="ignore"), openblas.serial:
        for_rows(len(shares), work, 1)
        dx = None if dxs is None else _added(dxs, None).reshape(x.shape)
    of_bias = None
    if of_up_bias is not None:
        of_bias = empty(up_bias.shape, dtype)
        for units, sums in zip(shares, of_up_bias, strict=True):
            of_bias[units] = sums.total(dtype)
    of_down_bias = None
    if wanted[4]:
        columns = ColumnSums(g_rows, dtype)
        columns.add(g_rows, slice(0, count))
        of_down_bias = columns.total(dtype)
    return dx, of_up, of_bias, of_down, of_down_bias


def _add_product(x: np.ndarray, y: np.ndarray, out: np.ndarray, is_first: bool) -> None:
    if is_first:
        np.matmul(x, y, out=out)
    else:
        out += np.matmul(x, y)
