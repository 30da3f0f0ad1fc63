"""How the arrays of attention lie, as the launchers of its kernels see them."""

from __future__ import annotations

import math
from typing import Any

from .. import backend, cuda

CACHE = 32 << 20  # bytes of keys and values that stay in the second-level cache


def as_heads(x: Any) -> Any:
    """Return x as (B, H, rows, width) with the elements of a row side by side."""
    if x.ndim != 4:
        shape: tuple[int, ...] = (1, 1, *x.shape)
        *batch, heads, rows, width = shape
        x = x.reshape(math.prod(batch), heads, rows, width)
    side_by_side = x.strides[3] == x.itemsize or x.shape[3] == 1
    return x if side_by_side else backend.xp_of(x).ascontiguousarray(x)


def steps(x: Any) -> tuple[int, int, int]:
    """Return the strides of (B, H, rows) in elements."""
    batch, head, row, _ = x.strides
    return batch // x.itemsize, head // x.itemsize, row // x.itemsize


def empty_like(x: Any) -> Any:
    """Return (B, H, rows, width) memory for a kernel whose axes lie as those of x do."""
    axes = sorted(range(3), key=lambda axis: -abs(x.strides[axis]))
    made = cuda.empty([*(x.shape[axis] for axis in axes), x.shape[3]], x.dtype, like=x)
    return made.transpose(*(axes.index(axis) for axis in range(3)), 3)


def last_key(is_causal: bool, offset: int, queries: int, keys: int) -> int:
    """Return the offset a kernel is given: query t sees the keys up to t + offset."""
    return max(-queries, min(offset, keys)) if is_causal else keys


def heads_at_once(heads: int, bytes_of_keys: int) -> int:
    """Return how many heads' keys and values fit the second-level cache together."""
    return max(1, min(heads, CACHE // (2 * bytes_of_keys)))
