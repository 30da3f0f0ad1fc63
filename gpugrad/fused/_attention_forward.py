"""The launcher of kernels/attention_forward.cu, and what the backward launcher shares with it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import backend, cuda
from .dropout import rescale

WIDEST = 256  # elements of a head
CACHE = 32 << 20  # bytes of keys and values that stay in the second-level cache
PER_WORD = 2**32


class Shape(NamedTuple):
    """Rows of queries and warps of a block, and the tile of keys it works on."""

    warps: int
    bands: int  # of 16 rows in a warp
    keys: int

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return 16 * self.bands * self.warps


SOURCE = cuda.Source(
    "attention_forward.cu",
    variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2), HEAD_DIM=(64, 128), DROPOUT=(0, 1)),
    large=True,
)


def fits(
    query: Any, key: Any, value: Any, attn_mask: Any, scale: float, dropout_p: float, **statics: Any
) -> bool:
    """Return whether the kernels can compute this; what they cannot is for the spec."""
    return (
        attn_mask is None
        and cuda.fits(query, key, value)
        and query.shape[-1] == value.shape[-1] <= WIDEST
        and 1e-30 < scale < 1e30
        and drop_threshold(dropout_p) < PER_WORD
    )


def drop_threshold(dropout_p: float) -> int:
    """Return the smallest random word of a weight that is kept."""
    return round(dropout_p * PER_WORD)


def as_heads(x: Any) -> Any:
    """Return x as (B, H, rows, width) with the elements of a row side by side."""
    if x.ndim != 4:
        *batch, heads, rows, width = (1, 1, *x.shape)
        x = x.reshape(math.prod(batch), heads, rows, width)
    side_by_side = x.strides[3] == x.itemsize or x.shape[3] == 1
    return x if side_by_side else backend.xp_of(x).ascontiguousarray(x)


def steps(x: Any) -> tuple[int, int, int]:
    """Return the strides of (B, H, rows) in elements."""
    size = x.itemsize
    return tuple(stride // size for stride in x.strides[:3])


def empty_like(x: Any) -> Any:
    """Return (B, H, rows, width) memory for a kernel whose axes lie as those of x do."""
    axes = sorted(range(3), key=lambda axis: -x.strides[axis])
    made = cuda.empty([*(x.shape[axis] for axis in axes), x.shape[3]], x.dtype, like=x)
    return made.transpose(*(axes.index(axis) for axis in range(3)), 3)


def last_key(is_causal: bool, offset: int, queries: int, keys: int) -> int:
    """Return the offset a kernel is given: query t sees the keys up to t + offset."""
    return max(-queries, min(offset, keys)) if is_causal else keys


def heads_at_once(heads: int, bytes_of_keys: int) -> int:
    """Return how many heads' keys and values fit the second-level cache together."""
    return max(1, min(heads, CACHE // (2 * bytes_of_keys)))


def _narrow(width: int, queries: int) -> Shape:
    if width > 128:
        return Shape(8, 1, 32)
    if queries <= 64:
        return Shape(4, 1, 64)
    return Shape(4, 2, 64) if width <= 64 else Shape(8, 1, 64)


def forward(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    scale: float,
    is_causal: bool,
    offset: int,
    dropout_p: float,
    seed: int,
    counter: int,
) -> tuple[Any, tuple]:
    """Return the result and (it as (B, H, T, D), lse (B, H, T) float32)."""
    q, k, v = as_heads(query), as_heads(key), as_heads(value)
    out = empty_like(q)
    batches, heads, queries, width = q.shape
    keys = k.shape[2]
    lse = cuda.empty((batches, heads, queries), backend.float32, like=q)
    if q.itemsize == 4:
        head_dim = -(-width // 32) * 32
        tile, threads = Shape(4, 1, 32 if head_dim > 128 else 64), 256
        stride = 4 * (head_dim + 4)
        shared = (tile.rows + 2 * tile.keys) * stride + tile.rows * 4 * (tile.keys + 4)
        defines: dict[str, int] = {}
    else:
        head_dim = -(-width // 16) * 16
        tile = _narrow(head_dim, queries)
        threads = 32 * tile.warps
        stride = 16 * (head_dim // 8 if head_dim % 64 == 0 else head_dim // 8 | 1)
        shared = (tile.rows + 4 * tile.keys) * stride
        defines = {"WARPS": tile.warps, "BANDS": tile.bands, "KEYS": tile.keys}
    SOURCE.launch(
        "attention_forward",
        (-(-queries // tile.rows) * batches * heads,),
        (threads,),
        [
            *(cuda.strided(x) for x in (q, k, v, out)),
            lse,
            *(step for x in (q, k, v, out) for step in steps(x)),
            *(batches, heads, queries, keys, width),
            last_key(is_causal, offset, queries, keys),
            heads_at_once(batches * heads, keys * width * k.itemsize),
            scale,
            rescale(dropout_p),
            *(seed, counter, drop_threshold(dropout_p)),
        ],
        shared,
        GPUGRAD_DTYPE=cuda.dtype_code(q.dtype),
        HEAD_DIM=head_dim,
        DROPOUT=int(dropout_p > 0),
        **defines,
    )
    return out.reshape(query.shape), (out, lse)
