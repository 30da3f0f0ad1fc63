"""The launcher of kernels/attention_backward.cu; _attention_sm90 has those for one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import backend, cuda
from ..ops.random import Draw
from . import _attention_sm90
from ._attention_forward import drop_threshold
from ._attention_layout import as_heads, empty_like, heads_at_once, last_key, steps
from .dropout import rescale

DK, DV = 1, 2  # what a block of keys computes: the macro WANTED
ROW_THREADS = 256


class Tiles(NamedTuple):
    """How the kernels are compiled for a width, and what a block needs.

    A block owns ``keys`` keys or ``queries`` queries and goes through the other rows ``others`` at
    a time. Shared memory holds rows of ``stride`` bytes.
    """

    head_dim: int
    keys: int
    queries: int
    others: int
    threads: int
    stride: int

    @property
    def both(self) -> bool:
        """Whether registers hold the gradients of a key and its value at once."""
        return self.threads == 256 or self.head_dim <= 128

    @property
    def macros(self) -> dict[str, Any]:
        """The choices as the source knows them."""
        return {
            "HEAD_DIM": self.head_dim,
            "OWN_KEYS": self.keys,
            "OWN_QUERIES": self.queries,
            "OTHERS": self.others,
        }

    def shared(self, own: int) -> int:
        """Return the bytes of shared memory of a block with so many rows of its own."""
        weights = 4 * own * (self.others + 4) if self.threads == 256 else 0
        return (2 * own + 4 * self.others) * self.stride + 16 * self.others + weights


def tiles(itemsize: int, width: int, queries: int, keys: int) -> Tiles:
    """Return the largest tiles that leave no register to memory, in at most 99 KB a block.

    Every GPU since sm_80 has that much, most have it twice.
    """
    if itemsize == 4:
        head_dim = -(-width // 32) * 32
        own, others = (64, 32) if head_dim <= 64 else (32, 16) if head_dim <= 128 else (16, 16)
        return Tiles(head_dim, own, own, others, 256, 4 * (head_dim + 4))
    head_dim = -(-width // 16) * 16
    chunks = head_dim // 8
    stride = 16 * (chunks if chunks % 8 == 0 else chunks | 1)
    if head_dim > 64:
        return Tiles(head_dim, 64, 64, 32 if head_dim <= 128 else 16, 128, stride)
    # of few rows every warp gets some
    own_keys, own_queries = (64 if rows <= 64 else 128 for rows in (keys, queries))
    return Tiles(head_dim, own_keys, own_queries, 64, 128, stride)


def _variant(
    dtype: int, width: int, dropout: int, wanted: int = DK | DV, rows: int = 1024
) -> dict[str, object]:
    macros = tiles(2 if dtype else 4, width, rows, rows).macros
    return {"GPUGRAD_DTYPE": dtype, "DROPOUT": dropout, "WANTED": wanted, **macros}


SOURCE = cuda.Source(
    "attention_backward.cu",
    variants=[
        *(_variant(0, width, 0) for width in (32, 64, 96, 128, 256)),
        *(_variant(0, width, 1) for width in (64, 128)),
        *(_variant(1, width, 0) for width in (32, 64, 80, 96, 128)),
        *(_variant(1, width, 1) for width in (32, 64, 80, 128)),
        *(_variant(1, 64, dropout, rows=64) for dropout in (0, 1)),
        *(_variant(1, 256, 0, wanted) for wanted in (DK, DV)),
        *(_variant(2, width, 0) for width in (64, 128)),
    ],
    large=True,
    since=80,
)


def backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    **statics: Any,
) -> Sequence[Any]:
    """Return the gradients of query, key and value, None for those not wanted, and None."""
    inputs = arrays[:3]
    made = [empty_like(as_heads(x)) if w else None for x, w in zip(inputs, wanted, strict=False)]
    write(made, g, inputs, residuals, **statics)
    shaped = (None if d is None else d.reshape(x.shape) for d, x in zip(made, inputs, strict=True))
    return *shaped, None


def write(
    gradients: Sequence[Any],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    scale: float,
    is_causal: bool,
    offset: int,
    dropout_p: float,
    draw: Draw,
) -> None:
    """Write the gradients of query, key and value into arrays (B, H, rows, D), None aside.

    They may be views, of a packed (B, T, 3, H, D) say, as may query, key, value and g.
    ``residuals`` are out (B, H, T, D) and lse (B, H, T) float32.
    """
    q, k, v, g = (as_heads(x) for x in (*arrays, g))
    out, lse = residuals
    dq, dk, dv = gradients
    batches, heads, queries, width = q.shape
    keys, all_heads = k.shape[2], batches * heads
    chosen = tiles(q.itemsize, width, queries, keys)
    dtype = cuda.dtype_code(q.dtype)
    padded = -(-queries // chosen.others) * chosen.others
    stats = cuda.empty((all_heads, 2, padded), backend.float32, like=q)
    SOURCE.launch(
        "attention_backward_rows",
        (-(-all_heads * padded // (ROW_THREADS // _lanes(chosen.head_dim, q.itemsize))),),
        (ROW_THREADS,),
        [
            *(cuda.strided(out), cuda.strided(g), lse, stats, *steps(out), *steps(g)),
            *(all_heads, heads, queries, padded, width),
        ],
        GPUGRAD_DTYPE=dtype,
        **chosen.macros,
    )
    arrays = (q, k, v, g, *(x for x in gradients if x is not None))
    if _attention_sm90.takes(arrays, dropout_p):
        _attention_sm90.write_backward(gradients, (q, k, v, g), stats, scale, is_causal, offset)
        return

    def launch(
        kernel: str, made: Sequence[Any], own: int, rows: int, others: int, **wanted: Any
    ) -> None:
        inputs = q, k, v, g
        SOURCE.launch(
            f"attention_backward_{kernel}",
            (-(-rows // own) * all_heads,),
            (chosen.threads,),
            [
                *(cuda.strided(x) for x in inputs),
                stats,
                *(None if x is None else cuda.strided(x) for x in made),
                *(step for x in inputs for step in steps(x)),
                *(step for x in made for step in ((0, 0, 0) if x is None else steps(x))),
                *(all_heads, heads, queries, keys, padded, width),
                last_key(is_causal, offset, queries, keys),
                heads_at_once(all_heads, others * width * q.itemsize),
                *(scale, rescale(dropout_p), *draw, drop_threshold(dropout_p)),
            ],
            chosen.shared(own),
            GPUGRAD_DTYPE=dtype,
            DROPOUT=int(dropout_p > 0),
            **chosen.macros,
            **wanted,
        )

    for made in [(dk, dv)] if chosen.both else [(dk, None), (None, dv)]:
        wanted = DK * (made[0] is not None) + DV * (made[1] is not None)
        if wanted:
            launch("keys", made, chosen.keys, keys, queries, WANTED=wanted)
    if dq is not None:
        launch("queries", [dq], chosen.queries, queries, keys)


def _lanes(head_dim: int, itemsize: int) -> int:
    """Return how many lanes of a warp add up one row."""
    packs = head_dim * itemsize // 16
    return min(32, 1 << (packs - 1).bit_length())
