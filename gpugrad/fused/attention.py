"""Scaled dot-product attention, softmax(scale * q k^T + mask) v, without the matrix of weights.

(Vaswani et al.: Attention Is All You Need, 2017.) Scores s are computed a tile at a time, small
enough for a core's cache; what is kept of each row is its maximum m and r = 1 / sum(exp(s - m)).
Backward computes e = exp(s - m) again. With h = r * g and d = rowsum(h * out)

    grad v = e^T h,    ds = e * (h v^T - d),    grad q = scale * ds k,    grad k = scale * ds^T q

(Dao et al.: FlashAttention, 2022). A query that sees no key has output 0 and gradient 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend, ops
from ..ops import philox
from ..registry import Sample, describe
from ..tensor import Tensor
from ._arguments import floating
from ._ids import on_device_of
from ._rows import wide_dtype, widened
from .base import Implementation, fused
from .dropout import probability, rescale

KEPT = 1 << 22  # scores of a call whose powers are kept for backward: 16 MB of float32
TILE = 1 << 17  # scores in a tile: 512 KB of float32, for the second-level cache


NAME = "scaled_dot_product_attention"


def _keep(
    xp: Any, seed: int, counter: int, first: int, rows: int, keys: int, dropout_p: float
) -> Any:
    """Return which weights of some rows of the flat (..., T) survive dropout: (rows, keys) bool.

    Every row draws whole blocks of four words, so that any row can be drawn by itself.
    """
    blocks = philox.blocks_used(keys)
    start = counter + first * blocks
    mask = philox.keep_mask(xp, seed, start, rows * blocks * 4, dropout_p)
    return mask.reshape(rows, blocks * 4)[:, :keys]


# NumPy


class _Tile(NamedTuple):
    """The scores of some queries (indexed by ``at``) for the keys they see (``seen``)."""

    at: tuple[slice, slice, slice]
    seen: tuple[slice, slice, slice]
    shape: tuple[int, int, int, int]
    place: int
    keep: np.ndarray | None


class _Scores:
    """The scores of one call, tile by tile, in memory that every tile uses again."""

    def __init__(
        self,
        query: np.ndarray,
        key: np.ndarray,
        mask: np.ndarray | None,
        scale: float,
        is_causal: bool,
        offset: int,
        dropout_p: float,
        seed: int,
        counter: int,
    ) -> None:
        self.query, self.key = _matrices(query), _matrices(key)
        self.query = self.query * self.query.dtype.type(scale)
        self.shape = (*self.query.shape[:3], self.key.shape[2])
        if mask is not None:
            mask = np.broadcast_to(mask, (*query.shape[:-1], key.shape[-2])).reshape(self.shape)
        self.mask = mask
        self.is_causal, self.offset = is_causal, offset
        self.dropout_p, self.seed, self.counter = dropout_p, seed, counter
        rows, keys = self.shape[2:]
        self.height = max(1, min(rows, max(16, TILE // max(keys, 1))))
        if is_causal:  # less height skips more hidden scores, in slower products
            self.height = min(self.height, max(32, min(rows // 4, 128)))
        self.group = max(1, TILE // max(self.height * keys, 1))  # heads in a tile
        below = np.tri(self.height, dtype=bool)
        self.limit = np.where(below, math.inf, -math.inf).astype(self.query.dtype)
        self.cells = min(self.group, self.shape[0] * self.shape[1]) * self.height * keys
        self.keeps = not dropout_p and math.prod(self.shape) <= KEPT

    def tiles(self) -> Iterator[_Tile]:
        """Yield the tiles of the same heads one after another, from the last rows to the first."""
        batch, heads, rows, keys = self.shape
        whole = max(1, self.group // max(heads, 1))
        place = 0
        width = min(heads, self.group) or 1
        for b in range(0, batch, whole):
            for h in range(0, heads, width):
                group = slice(b, min(b + whole, batch)), slice(h, min(h + width, heads))
                count = group[0].stop - b, group[1].stop - h
                keep = self._keep(b * heads + h, count)
                for start in reversed(range(0, rows, self.height)):
                    stop = min(start + self.height, rows)
                    seen = min(max(stop + self.offset, 0), keys) if self.is_causal else keys
                    shape = (*count, stop - start, seen)
                    yield _Tile(
                        (*group, slice(start, stop)),
                        (*group, slice(0, seen)),
                        shape,
                        place,
                        None if keep is None else keep[:, :, start:stop, :seen],
                    )
                    place += math.prod(shape) if self.keeps else 0

    def _keep(self, head: int, count: tuple[int, int]) -> np.ndarray | None:
        if not self.dropout_p:
            return None
        rows, keys = self.shape[2:]
        many = math.prod(count) * rows
        keep = _keep(np, self.seed, self.counter, head * rows, many, keys, self.dropout_p)
        return keep.reshape(*count, rows, keys)

    def of(self, tile: _Tile, memory: np.ndarray) -> np.ndarray:
        """Compute the scores of a tile, -inf where a key is hidden, in its part of the memory."""
        seen = tile.shape[3]
        scores = _part(memory, tile)
        np.matmul(self.query[tile.at], self.key[tile.seen].swapaxes(-1, -2), out=scores)
        if self.mask is not None:
            mask = self.mask[tile.at][..., :seen]
            if mask.dtype.kind == "b":
                np.copyto(scores, -math.inf, where=~mask)
            else:
                scores += mask
        if self.is_causal:
            diagonal = tile.at[2].start + self.offset
            first = min(max(diagonal + 1, 0), seen)  # the first key hidden from the first row
            hidden = scores[..., first:]
            limit = self.limit[: tile.shape[2], first - diagonal : seen - diagonal]
            np.fmin(hidden, limit, out=hidden)  # fmin also hides a NaN
        return scores


def _part(memory: np.ndarray, tile: _Tile) -> np.ndarray:
    """Return the part of a call's memory for scores that is a tile's."""
    return memory[tile.place : tile.place + math.prod(tile.shape)].reshape(tile.shape)


def _matrices(x: np.ndarray) -> np.ndarray:
    """Return x as (B, H, rows, width), at least float32, strided so that BLAS can read it."""
    *batch, heads, rows, width = (1, 1, *x.shape)
    x = widened(x.reshape(math.prod(batch), heads, rows, width))
    readable = x.strides[3] == x.itemsize and x.strides[2] >= width * x.itemsize
    return x if readable else np.ascontiguousarray(x)


def _zeros(like: np.ndarray, width: int) -> np.ndarray:
    """Return zeros with the axes of ``like`` in its order, so that merging heads is no copy."""
    shape = (*like.shape[:3], width)
    zeros = np.zeros_like(like, shape=shape)
    return zeros if zeros.strides[3] == zeros.itemsize else np.zeros(shape, like.dtype)


def _restored(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return x.reshape(*like.shape[:-1], x.shape[3]).astype(like.dtype, copy=False)


def _forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None,
    **statics: Any,
) -> tuple[np.ndarray, tuple]:
    with np.errstate(all="ignore"):
        scores, v = _Scores(query, key, attn_mask, **statics), _matrices(value)
        out = _zeros(scores.query, v.shape[3])
        tops, inverse = np.zeros((2, *out.shape[:3]), out.dtype)
        ones = np.ones(v.shape[2], out.dtype)
        memory = np.empty(math.prod(scores.shape) if scores.keeps else scores.cells, out.dtype)
        for tile in scores.tiles():
            seen = tile.shape[3]
            if not seen:
                continue
            e = scores.of(tile, memory)
            lines = e.reshape(-1, seen)
            top = lines[np.arange(len(lines)), lines.argmax(axis=-1)]  # faster than max
            top[top == -math.inf] = 0
            lines -= top[:, None]
            np.exp(lines, out=lines)
            total = np.vecdot(lines, ones[:seen])
            total[total == 0] = math.inf
            tops[tile.at], inverse[tile.at] = (a.reshape(tile.shape[:3]) for a in (top, 1 / total))
            if tile.keep is not None:
                e *= tile.keep
            np.matmul(e, v[tile.seen], out=out[tile.at])
        out *= (inverse * out.dtype.type(rescale(scores.dropout_p)))[..., None]
        return _restored(out, query), (out, tops, inverse, memory if scores.keeps else None)


def _backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    **statics: Any,
) -> Sequence[Any]:
    query, key, value, attn_mask = arrays
    out, tops, inverse, powers = residuals
    scores, v = _Scores(query, key, attn_mask, **statics), _matrices(value)
    h = _matrices(g) * inverse[..., None]
    d = np.vecdot(h, out)[..., None]
    if scores.dropout_p:
        h *= h.dtype.type(rescale(scores.dropout_p))
    dq, dk, dv = (_zeros(x, x.shape[3]) for x in (scores.query, scores.key, v))
    memory, spare = np.empty((2, scores.cells), out.dtype)
    for tile in scores.tiles():
        if not tile.shape[3]:
            continue
        if powers is None:
            e = scores.of(tile, memory)
            e -= tops[tile.at][..., None]
            np.exp(e, out=e)
        else:
            e = _part(powers, tile)
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
            ds -= d[tile.at]
            ds *= e
            np.matmul(ds, scores.key[tile.seen], out=dq[tile.at])
            _add_product(dk[tile.seen], ds.swapaxes(-1, -2), scores.query[tile.at], last)
    dq *= dq.dtype.type(statics["scale"])
    return _restored(dq, query), _restored(dk, key), _restored(dv, value), None


def _add_product(out: np.ndarray, x: np.ndarray, y: np.ndarray, first: bool) -> None:
    """Add x y to out, which is still 0 if this is the first of its tiles."""
    if first:
        np.matmul(x, y, out=out)
    else:
        out += np.matmul(x, y)


# The definition

_SEEN = np.array([[True, False, True], [False, False, False], [True, True, False]])


def _sample(*arguments: Any, is_causal: bool = False, offset: int = 0, p: float = 0.0) -> Sample:
    drawn = {"dropout_p": p, "seed": 7, "counter": 3}
    return Sample(*arguments, scale=0.7, is_causal=is_causal, offset=offset, **drawn)


@fused(
    [
        _sample((3, 2), (4, 2), (4, 5), None),
        _sample((2, 3, 2), (2, 3, 2), (2, 3, 2), None, is_causal=True),
        _sample((2, 1, 2, 3), (2, 1, 4, 3), (2, 1, 4, 3), None, is_causal=True, offset=2),
        _sample((2, 3, 2), (2, 3, 2), (2, 3, 1), _SEEN),
        _sample((2, 2, 3), (2, 4, 3), (2, 4, 3), np.array([0.5, -1.0, -math.inf, 2.0])),
        _sample((2, 3, 2), (2, 5, 2), (2, 5, 2), None, is_causal=True, p=0.4),
    ],
    arguments=("query", "key", "value", "attn_mask"),
    differentiable=("query", "key", "value"),
    numpy=Implementation(_forward, _backward),
)
@np.errstate(all="ignore")
def _scaled_dot_product_attention(
    query, key, value, attn_mask, scale, is_causal, offset, dropout_p, seed, counter
):
    x = widened(query) * scale
    scores = ops.matmul(x, widened(key).mT)
    *lead, rows, keys = scores.shape
    xp = backend.xp_of(scores._data)
    if attn_mask is not None and attn_mask.dtype == backend.bool_:
        scores = ops.where(attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        visible = xp.arange(keys) <= xp.arange(rows)[:, None] + offset
        scores = ops.where(visible, scores, -math.inf)
    if keys:
        largest = ops.max(scores, axis=-1, keepdims=True).detach()  # any constant will do
        powers = ops.exp(scores - ops.where(largest == -math.inf, 0, largest))
        total = ops.sum(powers, axis=-1, keepdims=True)
        scores = powers / ops.where(total == 0, 1, total)
    if dropout_p:
        keep = _keep(xp, seed, counter, 0, math.prod(lead) * rows, keys, dropout_p)
        keep = keep.reshape(scores.shape)
        scores = ops.where(keep, scores * rescale(dropout_p), 0)
    return ops.matmul(scores, widened(value)).astype(query.dtype)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    offset: int = 0,
) -> Tensor:
    """Return softmax(scale * query @ key.mT + mask) @ value.

    query: (..., T, D), key: (..., S, D), value: (..., S, E), their leading axes (batch, heads)
    broadcast; the result is (..., T, E) in their common dtype, computed in at least float32.
    attn_mask broadcasts to (..., T, S): a boolean one is True where a query may look, a floating
    one is added to the scores. ``is_causal`` lets query t look at keys 0 to t + offset: offset is
    0, also where T and S differ, as in PyTorch; S - T for the last T queries of a sequence whose
    earlier keys were cached. Both masks may be given. A query that sees no key gives 0. scale
    is 1/sqrt(D) by default. Weights are dropped with probability dropout_p, drawn from
    ``gg.random``; the caller decides whether it is training.

    Raises ValueError where shapes or dropout_p do not fit, TypeError for a mask of integers.
    """
    q, k, v = floating(query), floating(key), floating(value)
    dtype = backend.promote(backend.promote(q.dtype, k.dtype), v.dtype)
    q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
    mask = None if attn_mask is None else on_device_of(attn_mask, q)
    lead = _leading_axes(q, k, v, mask)
    if mask is not None and mask.dtype != backend.bool_:
        if not backend.is_float(mask.dtype):
            raise TypeError(
                f"{NAME}: attn_mask must be boolean (True where a query may look) or floating "
                f"(added to the scores), got {describe(mask)}"
            )
        mask = mask.astype(wide_dtype(dtype))
    q, k, v = (
        x if x.shape[:-2] == lead else ops.broadcast_to(x, (*lead, *x.shape[-2:]))
        for x in (q, k, v)
    )
    dropout_p = probability(NAME, "dropout_p", dropout_p)
    seed = counter = 0
    if dropout_p:
        rows, keys = math.prod(q.shape[:-1]), k.shape[-2]
        seed, counter = ops.random.reserve(rows * philox.blocks_used(keys))
    statics = {
        "scale": float(1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale),
        "is_causal": bool(is_causal),
        "offset": operator.index(offset),
        "dropout_p": dropout_p,
        "seed": seed,
        "counter": counter,
    }
    if mask is not None and mask.requires_grad:
        return _scaled_dot_product_attention.spec(q, k, v, mask, **statics)
    return _scaled_dot_product_attention(q, k, v, mask, **statics)


def _leading_axes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    """Return the common (batch, heads) axes; raise ValueError where the shapes do not fit."""
    given = f"query {q.shape}, key {k.shape}, value {v.shape}"
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise ValueError(f"{NAME}: expected (..., T, D), (..., S, D), (..., S, E), got {given}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{NAME}: query and key must agree in their last axis, got {given}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"{NAME}: key and value must agree in their axis -2, got {given}")
    shapes = [x.shape[:-2] for x in (q, k, v)]
    scores = (q.shape[-2], k.shape[-2])
    try:
        lead = np.broadcast_shapes(*shapes)
        if mask is not None:
            fits = np.broadcast_shapes((*lead, *scores), mask.shape)
            if fits[-2:] != scores:
                raise ValueError("it is larger than the scores")
            lead = fits[:-2]
    except ValueError as error:
        masked = "" if mask is None else f", attn_mask {mask.shape} for scores (..., {scores})"
        raise ValueError(f"{NAME}: {given}{masked} do not broadcast: {error}") from error
    return lead
