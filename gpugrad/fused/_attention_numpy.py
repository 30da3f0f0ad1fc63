"""Attention by NumPy, a tile of scores at a time; the formulas are in attention.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..memory import empty, zeros
from ._rows import largest, lost, row_sums
from ._tiles import Heads, Scores, Tile, as_matrices, zeros_laid_out_like
from .dropout import rescale


def _restored(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return x.reshape(*like.shape[:-1], x.shape[3]).astype(like.dtype, copy=False)


def forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None,
    **statics: Any,
) -> tuple[np.ndarray, tuple]:
    """Return the result, and (shift, 1 / sum) of every row and its powers if they are few."""
    scores, v = Scores(query, key, attn_mask, **statics), as_matrices(value)
    out = zeros_laid_out_like(scores.query, v.shape[3])
    tops, inverse = zeros((2, *out.shape[:3]), out.dtype)
    rescaled = out.dtype.type(rescale(scores.dropout_p))
    powers = empty(math.prod(scores.shape), out.dtype) if scores.kept else None

    def fill(heads: Heads, tiles: Iterator[Tile]) -> None:
        memory = np.empty(scores.largest, out.dtype) if powers is None else powers
        keys = scores.turned(scores.key, heads)
        for tile in tiles:
            e = scores.compute(tile, keys, memory)
            lines = e.reshape(-1, tile.shape[3])
            np.exp(lines, out=lines)
            total = row_sums(lines)
            some = lost(total) if tile.shape[3] > 1 else True  # a single weight is 1, to the bit
            if some is not None:  # the other rows keep their bits
                scores.compute(tile, keys, memory)
                top = np.where(some, largest(lines), 0)
                top[top == -math.inf] = 0
                lines -= top[:, None]
                np.exp(lines, out=lines)
                total = row_sums(lines)
                total[total == 0] = math.inf
                tops[tile.at] = top.reshape(tile.shape[:3])
            inverse[tile.at] = (1 / total).reshape(tile.shape[:3])
            if tile.keep is not None:
                e *= tile.keep
            part = out[tile.at]
            np.matmul(e, v[tile.seen], out=part)
            part *= (inverse[tile.at] * rescaled)[..., None]

    with np.errstate(all="ignore"):
        scores.for_heads(fill)
    return _restored(out, query), (tops, inverse, powers)


def backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    **statics: Any,
) -> Sequence[Any]:
    """Return the gradients of query, key and value, and None; what is not wanted may be zeros."""
    made = [zeros_laid_out_like(x, x.shape[3]) for x in map(as_matrices, arrays[:3])]
    add_gradients(made, wanted, g, arrays, residuals, **statics)
    return *map(_restored, made, arrays[:3]), None


def add_gradients(
    gradients: Sequence[np.ndarray],
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    **statics: Any,
) -> None:
    """Write the gradients of query, key and value into zeros (B, H, rows, D) of at least float32.

    They may be views, of a packed (B, T, 3, H, D) say.
    """
    query, key, value, attn_mask = arrays
    dq, dk, dv = gradients
    tops, inverse, powers = residuals
    scores, v = Scores(query, key, attn_mask, **statics), as_matrices(value)
    g, dtype = as_matrices(g), dq.dtype
    rescaled = dtype.type(rescale(scores.dropout_p))

    def fill(heads: Heads, tiles: Iterator[Tile]) -> None:
        memory, spare = np.empty((2, scores.largest), dtype)
        keys = scores.turned(scores.key, heads) if powers is None else None
        values = scores.turned(v, heads) if wanted[0] or wanted[1] else None
        for tile in tiles:
            if keys is not None:
                e = scores.compute(tile, keys, memory)
                top = tops[tile.at]
                if top.any():
                    e -= top[..., None]
                np.exp(e, out=e)
            else:
                e = tile.part(powers)
            ds = spare[: e.size].reshape(e.shape)
            h = g[tile.at] * inverse[tile.at][..., None]
            if tile.keep is not None:
                h *= rescaled
            last = tile.at[2].stop == scores.shape[2]
            if wanted[2]:
                dropped = e if tile.keep is None else np.multiply(e, tile.keep, out=ds)
                _add_product(dv[tile.seen], dropped.swapaxes(-1, -2), h, last)
            if values is not None:
                np.matmul(h, values[..., : tile.shape[3]], out=ds)
                if tile.keep is not None:
                    ds *= tile.keep
                d = np.vecdot(e, ds)
                d *= inverse[tile.at]
                ds -= d[..., None]
                ds *= e
                part = dq[tile.at]
                np.matmul(ds, scores.key[tile.seen], out=part)
                part *= scores.scale
                _add_product(dk[tile.seen], ds.swapaxes(-1, -2), scores.queries(tile), last)

    scores.for_heads(fill)


def _add_product(out: np.ndarray, x: np.ndarray, y: np.ndarray, first: bool) -> None:
    """Add x y to out, which is still 0 if this is the first of its tiles."""
    if first:
        np.matmul(x, y, out=out)
    else:
        out += np.matmul(x, y)
