"""Attention by NumPy, a tile of scores at a time; the formulas are in attention.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import openblas
from ..memory import empty, is_plain, zeros
from ._rows import LONG, largest, lost, ones, reshaped
from ._tiles import (
    SHARED,
    Heads,
    Scores,
    Tile,
    as_mask,
    as_matrices,
    laid_out_like,
    maker,
    readable,
)
from .dropout import rescale


def _restored(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return reshaped(x, (*like.shape[:-1], x.shape[3]), like.dtype)


def forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None,
    **statics: Any,
) -> tuple[np.ndarray, tuple]:
    """Return the result, and (shift, 1 / sum) of every row and its weights if they are few."""
    if query.shape[-2] == 1 and (done := _of_one_query(query, key, value, attn_mask, **statics)):
        return done
    scores, v = Scores(query, key, attn_mask, **statics), as_matrices(value)
    rows, keys = scores.shape[2:]
    make = maker(rows, keys, scores.is_causal, scores.offset)
    out = laid_out_like(scores.query, v.shape[3], make)
    tops, inverse = zeros((2, *out.shape[:3]), out.dtype)
    rescaled = out.dtype.type(rescale(scores.dropout_p))
    weights = empty(scores.count, out.dtype) if scores.kept else None

    def fill(heads: Heads, tiles: Iterator[Tile]) -> None:
        memory = np.empty(scores.largest, out.dtype) if weights is None else weights
        columns = scores.turned(scores.key, heads)
        for tile in tiles:
            some: Any = None
            for limit in (np.minimum, np.fmin):
                e = scores.compute(tile, columns, memory, limit)
                lines = e.reshape(-1, tile.shape[3])
                np.exp(lines, out=lines)
                total = _row_sums(lines)
                some = lost(total) if tile.shape[3] > 1 else True  # one weight is 1, to the bit
                if some is None:
                    break
            if some is not None:  # the other rows keep their bits
                scores.compute(tile, columns, memory)
                top = np.where(some, largest(lines), 0)
                top[top == -math.inf] = 0
                lines -= top[:, None]
                np.exp(lines, out=lines)
                total = _row_sums(lines)
                total[total == 0] = math.inf
                tops[tile.at] = top.reshape(tile.shape[:3])
            np.reciprocal(total, out=total)
            inverse[tile.at] = total.reshape(tile.shape[:3])
            if tile.keep is not None:
                e *= tile.keep
                total *= rescaled
            lines *= total[:, None]
            np.matmul(e, v[tile.seen], out=out[tile.at])

    with np.errstate(all="ignore"):
        scores.for_heads(fill)
    return _restored(out, query), (tops, inverse, weights)


def _of_one_query(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None,
    scale: float,
    is_causal: bool,
    offset: int,
    dropout_p: float,
    draw: Any,
) -> tuple[np.ndarray, tuple] | None:
    """Return what ``forward`` does, with the same bits, for one query a head that sees all keys:
    a token behind those in a cache. None where that, or a single tile, is not the case.
    """
    dtype, keys = query.dtype, key.shape[-2]
    if (
        attn_mask is not None
        or dropout_p
        or (is_causal and offset < keys - 1)
        or query.ndim != 4
        or keys < 2
        or keys > LONG
        or dtype.char not in "fd"
        or not query.size
        or not value.size
        or query.size // query.shape[3] * keys >= SHARED
        or not is_plain()
        or not (readable(query) and readable(key) and readable(value))
    ):
        return None
    with np.errstate(all="ignore"), openblas.serial:
        e = np.matmul(query * dtype.type(scale), key.swapaxes(2, 3))
        np.exp(e, out=e)
        total = np.dot(e.reshape(-1, keys), ones(keys, dtype))
        if lost(total) is not None:
            return None
        np.reciprocal(total, out=total)
        total = total.reshape(query.shape[:3])
        e *= total[..., None]
        return np.matmul(e, value), (zeros(total.shape, dtype), total, e.reshape(-1))


def _row_sums(lines: np.ndarray) -> np.ndarray:
    """Return the sums of lines, several times as fast as ``row_sums``.

    Their bits may depend on which lines stand beside them, which the shapes decide in a tile.
    """
    if lines.shape[1] > LONG:  # in pairs, which BLAS does not
        return np.add.reduce(lines, axis=-1)
    return np.dot(lines, ones(lines.shape[1], lines.dtype))


def backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    **statics: Any,
) -> Sequence[Any]:
    """Return the gradients of query, key and value, and None; what is not wanted may be zeros."""
    rows, keys = arrays[0].shape[-2], arrays[1].shape[-2]
    make = maker(rows, keys, statics["is_causal"], statics["offset"]) if all(wanted[:3]) else zeros
    matrices = [as_matrices(x) for x in arrays[:3]]
    made = [laid_out_like(x, x.shape[3], make) for x in matrices]
    mask = as_mask(arrays[3], arrays[0], keys)
    add_gradients(made, wanted, g, (*matrices, mask), residuals, **statics)
    return *map(_restored, made, arrays[:3]), None


def add_gradients(
    gradients: Sequence[np.ndarray],
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    **statics: Any,
) -> None:
    """Write the gradients of query, key and value, (B, H, rows, D) of at least float32.

    They are memory from what ``maker`` returns, and may be views, of a packed (B, T, 3, H, D) say.
    """
    query, key, value, attn_mask = arrays
    dq, dk, dv = gradients
    tops, inverse, weights = residuals
    scores, v = Scores(query, key, attn_mask, **statics), as_matrices(value)
    g, dtype = as_matrices(g), dq.dtype
    rescaled = dtype.type(rescale(scores.dropout_p))

    def fill(heads: Heads, tiles: Iterator[Tile]) -> None:
        spare, *memory = np.empty((1 if weights is not None else 2, scores.largest), dtype)
        keys = scores.turned(scores.key, heads) if weights is None else None
        values = scores.turned(v, heads) if wanted[0] or wanted[1] else None
        for tile in tiles:
            if keys is not None:
                p = scores.compute(tile, keys, *memory)
                top = tops[tile.at]
                if top.any():
                    p -= top[..., None]
                np.exp(p, out=p)
                p *= inverse[tile.at][..., None]
            else:
                p = tile.part(weights)
            ds = spare[: p.size].reshape(p.shape)
            h = g[tile.at] if tile.keep is None else g[tile.at] * rescaled
            last = tile.at[2].stop == scores.shape[2]
            if wanted[2]:
                dropped = p if tile.keep is None else np.multiply(p, tile.keep, out=ds)
                _add_product(dv[tile.seen], dropped.swapaxes(-1, -2), h, last)
            if values is not None:
                scores.scaled_product(h, values[..., : tile.shape[3]], ds)
                if tile.keep is not None:
                    ds *= tile.keep
                ds -= np.vecdot(p, ds)[..., None]
                ds *= p
                np.matmul(ds, scores.key[tile.seen], out=dq[tile.at])
                _add_product(dk[tile.seen], ds.swapaxes(-1, -2), scores.query[tile.at], last)

    scores.for_heads(fill)


def _add_product(out: np.ndarray, x: np.ndarray, y: np.ndarray, first: bool) -> None:
    """Add x y to out, which is still 0 if this is the first of its tiles."""
    if first:
        np.matmul(x, y, out=out)
    else:
        out += np.matmul(x, y)
