"""Scaled dot-product attention, softmax(scale * q k^T + mask) v, without the matrix of weights.

(Vaswani et al.: Attention Is All You Need, 2017.) Scores s are computed a tile at a time, small
enough for a core's cache; what is kept of each row is its maximum m and r = 1 / sum(exp(s - m)).
Backward (Dao et al.: FlashAttention, 2022) has the weights w = r * exp(s - m) again, and with
p = g v^T

    grad v = w^T g,   ds = w * (p - rowsum(w * p)) * scale,   grad q = ds k,   grad k = ds^T q

Taking the row sum of that very p, and not the equal rowsum(g * out), lets rounding errors cancel.
A query that sees no key has output and gradient 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backend, cuda, ops
from ..ops import philox
from ..ops.random import Draw
from ..registry import Sample, describe
from ..tensor import Tensor
from . import _attention_backward, _attention_forward, _attention_numpy
from ._arguments import floating
from ._ids import on_device_of
from ._rows import wide_dtype, widened
from ._tiles import dropout_mask
from .base import Cost, Implementation, fused
from .dropout import probability, rescale
from .softmax import softmax

HIDDEN = -1e30  # a score that no sum of finite ones reaches, and that exp turns into 0
NAME = "scaled_dot_product_attention"

# The definition


def cost(query: Any, key: Any, value: Any, attn_mask: Any = None, **statics: Any) -> Cost:
    """Return what one call cannot do without: the products of the keys that a query sees.

    Two forward, five backward: the scores are computed again (the kernels, which compute the
    gradient of the queries on its own, make that seven). ``attn_mask`` counts for nothing. A key
    that no query sees counts as read.
    """
    *lead, rows, width = query.shape
    keys, out_width = value.shape[-2:]
    seen = rows * keys
    if statics["is_causal"]:
        seen = int(np.clip(np.arange(1, rows + 1) + statics["offset"], 0, keys).sum())
    heads = math.prod(lead)
    read = sum(math.prod(x.shape) * x.dtype.itemsize for x in (query, key, value))
    moved = read + heads * rows * out_width * query.dtype.itemsize
    pairs = 2 * heads * seen
    return Cost(  # backward reads all four and g, and writes three gradients
        moved, pairs * (width + out_width), 2 * moved, pairs * (3 * width + 2 * out_width)
    )


_SEEN = np.array([[True, False, True], [False, False, False], [True, True, False]])


def _sample(*arguments: Any, is_causal: bool = False, offset: int = 0, p: float = 0.0) -> Sample:
    statics: dict[str, Any] = {"dropout_p": p, "draw": Draw(7, 3)}
    return Sample(*arguments, scale=0.7, is_causal=is_causal, offset=offset, **statics)


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
    cost=cost,
    numpy=Implementation(_attention_numpy.forward, _attention_numpy.backward, prepared=True),
    cuda=Implementation(
        _attention_forward.forward, _attention_backward.backward, _attention_forward.fits
    ),
)
@np.errstate(all="ignore")
def _scaled_dot_product_attention(
    query, key, value, attn_mask, scale, is_causal, offset, dropout_p, draw
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
        keep = dropout_mask(xp, draw, 0, math.prod(lead) * rows, keys, dropout_p)
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
    *,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(scale * query @ key.mT + mask) @ value.

    query: (..., T, D), key: (..., S, D), value: (..., S, E), their leading axes (batch, heads)
    broadcast; the result is (..., T, E) in their common dtype, computed in at least float32.
    attn_mask broadcasts to (..., T, S): a boolean one is True where a query may look, a floating
    one is added to the scores. ``is_causal`` lets query t look at keys 0 to t + offset: offset is
    0, also where T and S differ, as in PyTorch; S - T for the last T queries of a sequence whose
    earlier keys were cached. Both masks may be given. A query that sees no key gives 0. scale
    is 1/sqrt(D) by default. Weights are dropped with probability dropout_p, drawn from
    ``gg.random``; the caller decides whether it is training. With enable_gqa the heads, axis -3,
    of key and value may be fewer, a divisor of query's: each serves a group of neighbouring heads
    of query (Ainslie et al., "GQA", 2023).

    Raises ValueError where shapes, scale or dropout_p do not fit, TypeError for a mask of integers
    or an offset that is none.
    """
    q, k, v = floating(query), floating(key), floating(value)
    dtype = q.dtype
    if not dtype == k.dtype == v.dtype:
        dtype = backend.promote(backend.promote(dtype, k.dtype), v.dtype)
        q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
    if enable_gqa:
        k, v = _repeated(k, q), _repeated(v, q)
    mask = None if attn_mask is None else on_device_of(attn_mask, q)
    lead = _leading_axes(q, k, v, mask)
    if mask is not None and mask.dtype != backend.bool_:
        if not backend.is_float(mask.dtype):
            raise TypeError(
                f"{NAME}: attn_mask must be boolean (True where a query may look) or floating "
                f"(added to the scores), got {describe(mask)}"
            )
        mask = mask.astype(wide_dtype(dtype))
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2] == lead:
        q, k, v = (
            x if x.shape[:-2] == lead else ops.broadcast_to(x, (*lead, *x.shape[-2:]))
            for x in (q, k, v)
        )
    statics = drawn(NAME, q.shape, k.shape, dropout_p, is_causal, scale, offset)
    if mask is not None and (mask.requires_grad or _by_kernels(q)):
        return _with_mask(q, k, v, mask, **statics)
    return _scaled_dot_product_attention(q, k, v, mask, **statics)


def _repeated(x: Tensor, query: Tensor) -> Tensor:
    """Return x (..., heads, S, D), each head as often as makes query's heads, neighbours equal."""
    if min(x.ndim, query.ndim) < 3 or not x.shape[-3] or query.shape[-3] % x.shape[-3]:
        raise ValueError(
            f"{NAME}: with enable_gqa the heads (axis -3) of key and value must be a divisor of "
            f"query's, got {x.shape} for query {query.shape}"
        )
    *batch, heads, s, size = x.shape
    shape = (*batch, heads, query.shape[-3] // heads, s, size)
    wide = ops.broadcast_to(ops.expand_dims(x, -3), shape=shape)
    return ops.reshape(wide, (*batch, query.shape[-3], s, size))


def _by_kernels(x: Tensor) -> bool:
    return cuda.emulated() or not backend.is_numpy(x._data)


def _with_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    is_causal: bool,
    offset: int,
    dropout_p: float,
    draw: Draw,
) -> Tensor:
    """Return the same from products and a softmax: the kernels of attention know no masks.

    What is hidden has a weight of zero twice: scores of -inf become HIDDEN, so that a row that
    sees nothing does not divide by zero, and its weights are then replaced by zeros.
    """
    scores = ops.matmul(widened(query) * scale, widened(key).mT)
    rows, keys = scores.shape[-2:]
    hides = mask.dtype == backend.bool_
    scores = ops.where(mask, scores, -math.inf) if hides else scores + mask
    if is_causal:
        visible = np.arange(keys) <= np.arange(rows)[:, None] + offset
        scores = ops.where(Tensor(visible, device=query.device), scores, -math.inf)
    weights = softmax(ops.maximum(scores, HIDDEN), axis=-1)
    weights = ops.where(scores == -math.inf, 0, weights)
    if dropout_p:
        lead, xp = math.prod(scores.shape[:-2]), backend.xp_of(scores._data)
        keep = dropout_mask(xp, draw, 0, lead * rows, keys, dropout_p).reshape(scores.shape)
        weights = ops.where(keep, weights * rescale(dropout_p), 0)
    return ops.matmul(weights, widened(value)).astype(query.dtype)


def drawn(
    name: str,
    query: tuple[int, ...],
    key: tuple[int, ...],
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    offset: int,
) -> dict[str, Any]:
    """Return the numbers that go with a call, those of ``gg.random`` drawn; raise if they are bad.

    ``query`` and ``key`` are shapes: (..., T, D), (..., S, D).
    """
    if not isinstance(offset, (int, np.integer)):
        raise TypeError(f"{name}: offset must be an integer, got {offset!r}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{name}: scale must be finite, got {scale}")
    dropout_p = probability(name, "dropout_p", dropout_p)
    blocks = math.prod(query[:-1]) * philox.blocks_used(key[-2]) if dropout_p else 0
    return {
        "scale": float(1 / math.sqrt(max(query[-1], 1)) if scale is None else scale),
        "is_causal": bool(is_causal),
        "offset": int(offset),
        "dropout_p": dropout_p,
        "draw": ops.random.reserve(blocks) if blocks else Draw(0, 0),
    }


def _leading_axes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    """Return the common (batch, heads) axes; raise ValueError where the shapes do not fit."""
    of_q, of_k, of_v = q.shape, k.shape, v.shape
    alike = of_q[:-2] == of_k[:-2] and of_q[-1] == of_k[-1] and of_k[:-1] == of_v[:-1]
    if alike and len(of_q) > 2 and mask is None:  # the common case
        return of_q[:-2]
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
