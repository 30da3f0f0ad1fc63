"""The launcher of kernels/attention_forward.cu; _attention_sm90 has that for one GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import backend, cuda
from ..ops.random import Draw
from . import _attention_sm90
from ._attention_layout import as_heads, empty_like, heads_at_once, last_key, steps
from .dropout import rescale

WIDEST = 256  # elements of a head
PER_WORD = 2**32


class Tile(NamedTuple):
    """How the kernel is compiled for a width: queries of a block, keys it takes at a time.

    ``macros`` are the choices as the source knows them, ``shared`` the bytes that a block needs.
    """

    rows: int
    threads: int
    shared: int
    macros: dict[str, Any]


def tile(itemsize: int, width: int, queries: int, dropout: bool) -> Tile:
    """Return the largest tile that leaves no register to memory, in at most 99 KB a block.

    Every GPU since sm_80 has that much, most have it twice.
    """
    if itemsize == 4:
        head_dim = -(-width // 32) * 32
        rows, keys = (64, 64) if head_dim <= 64 else (64, 32) if head_dim <= 128 else (32, 16)
        keys = min(keys, 32) if dropout else keys
        shared = 4 * ((rows + 2 * keys) * (head_dim + 4) + rows * (keys + 4))
        return Tile(rows, 256, shared, {"HEAD_DIM": head_dim, "ROWS": rows, "KEYS": keys})
    head_dim = -(-width // 16) * 16
    if head_dim > 128:
        warps, bands, keys = 4, 1, 32
    elif queries <= 64 or (dropout and head_dim > 64):
        warps, bands, keys = 4, 1, 64
    elif head_dim > 96:
        warps, bands, keys = 8, 1, 64
    else:
        warps, bands, keys = 4, 2, 64 if head_dim <= 64 and not dropout else 32
    rows = 16 * bands * warps
    chunks = head_dim // 8
    shared = 16 * (chunks if chunks % 8 == 0 else chunks | 1) * (rows + 4 * keys)
    macros = {"HEAD_DIM": head_dim, "WARPS": warps, "BANDS": bands, "KEYS": keys}
    return Tile(rows, 32 * warps, shared, macros)


def _variant(dtype: int, width: int, queries: int, dropout: int) -> dict[str, object]:
    macros = tile(2 if dtype else 4, width, queries, bool(dropout)).macros
    return {"GPUGRAD_DTYPE": dtype, "DROPOUT": dropout, **macros}


SOURCE = cuda.Source(
    "attention_forward.cu",
    variants=[
        *(_variant(0, width, 1024, 0) for width in (32, 64, 96, 128, 256)),
        *(_variant(0, width, 1024, 1) for width in (32, 64, 128)),
        *(_variant(1, width, 1024, 0) for width in (32, 64, 80, 96, 128, 256)),
        *(_variant(1, width, 1024, 1) for width in (32, 64, 80, 96, 128)),
        *(_variant(1, width, 1, 0) for width in (32, 64, 80, 128)),
        _variant(1, 64, 1, 1),
        *(_variant(2, width, 1024, 0) for width in (64, 128)),
        _variant(2, 64, 1, 0),
    ],
    large=True,
    since=80,
)


def fits(
    query: Any, key: Any, value: Any, attn_mask: Any, scale: float, dropout_p: float, **statics: Any
) -> bool:
    """Return whether the kernels can compute this; what they cannot is for the spec."""
    return (
        attn_mask is None
        and cuda.fits(query, key, value, since=80)
        and query.shape[-1] == value.shape[-1] <= WIDEST
        and 1e-30 < scale < 1e30
        and drop_threshold(dropout_p) < PER_WORD
    )


def drop_threshold(dropout_p: float) -> int:
    """Return the smallest random word of a weight that is kept."""
    return round(dropout_p * PER_WORD)


def forward(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    scale: float,
    is_causal: bool,
    offset: int,
    dropout_p: float,
    draw: Draw,
) -> tuple[Any, tuple]:
    """Return the result and (it as (B, H, T, D), lse (B, H, T) float32)."""
    q, k, v = as_heads(query), as_heads(key), as_heads(value)
    out = empty_like(q)
    batches, heads, queries, width = q.shape
    keys = k.shape[2]
    lse = cuda.empty((batches, heads, queries), backend.float32, like=q)
    if _attention_sm90.takes((q, k, v, out), dropout_p):
        _attention_sm90.write_forward((q, k, v), out, lse, scale, is_causal, offset)
        return out.reshape(query.shape), (out, lse)
    chosen = tile(q.itemsize, width, queries, dropout_p > 0)
    SOURCE.launch(
        "attention_forward",
        (-(-queries // chosen.rows) * batches * heads,),
        (chosen.threads,),
        [
            *(cuda.strided(x) for x in (q, k, v, out)),
            lse,
            *(step for x in (q, k, v, out) for step in steps(x)),
            *(batches, heads, queries, keys, width),
            last_key(is_causal, offset, queries, keys),
            heads_at_once(batches * heads, keys * width * k.itemsize),
            scale,
            rescale(dropout_p),
            *(*draw, drop_threshold(dropout_p)),
        ],
        chosen.shared,
        GPUGRAD_DTYPE=cuda.dtype_code(q.dtype),
        DROPOUT=int(dropout_p > 0),
        **chosen.macros,
    )
    return out.reshape(query.shape), (out, lse)
