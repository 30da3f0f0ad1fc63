"""Token and position embedding in one: x[b, t] = tokens[ids[b, t]] + positions[start + t].

The gradient of a row of tokens is that of ``embedding``, the gradient of a position the sum over
the sequences of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, cuda
from ..cuda.column_sums import column_sums
from ..registry import Sample, describe
from ..tensor import Tensor
from ._arguments import floating
from ._sort_ids import as_ids, is_wide
from .base import Cost, Implementation, fused
from .embedding import _embedding, checked_ids, fits, write_gradient

# CUDA

SOURCE = cuda.Source("embed.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)

_THREADS = 256  # THREADS and COPIES in the kernel; 8 warps of 32
_COPIES = 2


def _cuda_forward(ids: Any, tokens: Any, positions: Any, start: int) -> tuple[Any, tuple]:
    (batch, length), (rows, columns) = ids.shape, tokens.shape
    out = cuda.empty((batch, length, columns), tokens.dtype, like=tokens)
    flat, count = as_ids(ids), batch * length
    used = cuda.contiguous(positions[start : start + length])
    args = flat, is_wide(flat), cuda.contiguous(tokens), used, out, count, rows, length, columns
    width = 32 * _COPIES * (16 // tokens.dtype.itemsize)
    grid = -(-count * -(-columns // width) // (_THREADS // 32))
    code = cuda.dtype_code(tokens.dtype)
    SOURCE.launch("embed_forward", (grid,), (_THREADS,), args, GPUGRAD_DTYPE=code)
    return out, ()


def _cuda_backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple, start: int
) -> Sequence[Any]:
    ids, tokens, positions = arrays
    g = cuda.contiguous(g)
    batch, length, columns = g.shape
    dtokens = dpositions = None
    if wanted[1]:
        dtokens = cuda.empty(tokens.shape, tokens.dtype, like=tokens)
        write_gradient(dtokens, ids, g, None)
    if wanted[2]:
        if length == len(positions):
            dpositions = cuda.empty(positions.shape, positions.dtype, like=positions)
        else:
            dpositions = backend.xp_of(positions).zeros(positions.shape, positions.dtype)
        used = dpositions[start : start + length].reshape(length * columns)
        column_sums(g.reshape(batch, length * columns), positions.dtype, used)
    return None, dtokens, dpositions


def _fits(ids: Any, tokens: Any, positions: Any, start: int) -> bool:
    return cuda.fits(tokens, positions) and fits(ids, tokens)


# The definition


def _cost(ids: Any, tokens: Any, positions: Any, start: int) -> Cost:
    """Return what one call cannot do without; rows that are read again come from the caches."""
    length, columns = ids.shape[-1], tokens.shape[1]
    rows, size = math.prod(ids.shape) * columns, tokens.dtype.itemsize
    table = math.prod(tokens.shape)
    forward = rows + min(rows, table) + length * columns
    return Cost(forward * size, rows, (rows + table + length * columns) * size, 2 * rows)


@fused(
    [
        Sample(np.array([[2, 0, 2], [1, 2, 2]]), (4, 3), (3, 3), start=0),
        Sample(np.array([[2, 0], [1, 2], [0, 0]]), (3, 5), (2, 5), start=0),
    ],
    arguments=("ids", "tokens", "positions"),
    differentiable=("tokens", "positions"),
    cuda=Implementation(_cuda_forward, _cuda_backward, _fits),
    cost=_cost,
)
def _embed(ids, tokens, positions, start):
    rows = _embedding(ids, tokens, padding_idx=None)
    return rows + positions[start : start + ids.shape[1]]


def embed(ids: Any, tokens: Any, positions: Any, start: int = 0) -> Tensor:
    """Return the sum of the vectors of tokens and of their positions, (B, T, C).

    ids: (B, T) integers in [0, V); tokens (V, C) and positions (L, C) floating; the first of each
    sequence is at position ``start``. Ids are checked as in ``embedding``. Raises ValueError for
    shapes that do not fit and positions that are not in the table.
    """
    tokens, positions = floating(tokens), floating(positions)
    ids = checked_ids(ids, tokens)
    if ids.ndim != 2 or positions.ndim != 2 or positions.shape[1:] != tokens.shape[1:]:
        raise ValueError(
            f"embed: ids {describe(ids)}, tokens {describe(tokens)} and positions "
            f"{describe(positions)} do not fit: they must be (B, T), (V, C) and (L, C)"
        )
    if not 0 <= start <= len(positions) - ids.shape[1]:
        raise ValueError(
            f"embed: positions {start} to {start + ids.shape[1]} are not in a table of "
            f"{len(positions)}"
        )
    return _embed(ids, tokens, positions, start=start)
