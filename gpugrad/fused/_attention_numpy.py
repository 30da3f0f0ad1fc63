"""Attention by NumPy, a tile of scores at a time; the formulas are in attention.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._tiles import Scores, as_matrices, zeros_laid_out_like
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
    """Return the result, and (maximum, 1 / sum) of every row and its powers if they are few."""
    with np.errstate(all="ignore"):
        scores, v = Scores(query, key, attn_mask, **statics), as_matrices(value)
        out = zeros_laid_out_like(scores.query, v.shape[3])
        tops, inverse = np.zeros((2, *out.shape[:3]), out.dtype)
        ones = np.ones(v.shape[2], out.dtype)
        memory = np.empty(scores.size, out.dtype)
        for tile in scores.tiles():
            e = scores.compute(tile, memory)
            lines = e.reshape(-1, tile.shape[3])
            top = lines[np.arange(len(lines)), lines.argmax(axis=-1)]  # faster than max
            top[top == -math.inf] = 0
            lines -= top[:, None]
            np.exp(lines, out=lines)
            total = np.vecdot(lines, ones[: lines.shape[1]])
            total[total == 0] = math.inf
            tops[tile.at], inverse[tile.at] = (a.reshape(tile.shape[:3]) for a in (top, 1 / total))
            if tile.keep is not None:
                e *= tile.keep
            np.matmul(e, v[tile.seen], out=out[tile.at])
        out *= (inverse * out.dtype.type(rescale(scores.dropout_p)))[..., None]
        return _restored(out, query), (tops, inverse, memory if scores.kept else None)


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
    h = as_matrices(g) * inverse[..., None]
    if scores.dropout_p:
        h *= h.dtype.type(rescale(scores.dropout_p))
    memory, spare = np.empty((2, scores.largest), h.dtype)
    for tile in scores.tiles():
        if powers is None:
            e = scores.compute(tile, memory)
            e -= tops[tile.at][..., None]
            np.exp(e, out=e)
        else:
            e = tile.part(powers)
        ds = spare[: e.size].reshape(e.shape)
        h_tile = h[tile.at]
        last = tile.at[2].stop == scores.shape[2]
        if wanted[2]:
            dropped = e if tile.keep is None else np.multiply(e, tile.keep, out=ds)
            _add_product(dv[tile.seen], dropped.swapaxes(-1, -2), h_tile, last)
        if wanted[0] or wanted[1]:
            np.matmul(h_tile, v[tile.seen].swapaxes(-1, -2), out=ds)
            if tile.keep is not None:
                ds *= tile.keep
            d = np.vecdot(e, ds)
            d *= inverse[tile.at]
            ds -= d[..., None]
            ds *= e
            np.matmul(ds, scores.key[tile.seen], out=dq[tile.at])
            _add_product(dk[tile.seen], ds.swapaxes(-1, -2), scores.query[tile.at], last)
    dq *= dq.dtype.type(statics["scale"])


def _add_product(out: np.ndarray, x: np.ndarray, y: np.ndarray, first: bool) -> None:
    """Add x y to out, which is still 0 if this is the first of its tiles."""
    if first:
        np.matmul(x, y, out=out)
    else:
        out += np.matmul(x, y)
