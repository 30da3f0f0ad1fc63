"""The scores of attention, computed a tile at a time in memory that stays in a core's cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import openblas
from ..memory import empty, zeros
from ..ops import philox
from ..ops.random import Draw
from ..threads import for_rows
from ._rows import copied, reshaped, wide_dtype

TILE = 1 << 17  # scores in a tile: 512 KB of float32, for the second-level cache
KEPT = 1 << 19  # scores of a call whose weights are kept for backward: 2 MB of float32
COPIED = 16  # rows of a tile for which it pays to copy the keys
SHARED = 1 << 15  # scores of a call that threads share: 100 µs and more


def dropout_mask(xp: Any, draw: Draw, first: int, rows: int, keys: int, dropout_p: float) -> Any:
    """Return which weights of some rows of the flat (..., T) survive dropout: (rows, keys) bool.

    Every row draws whole blocks of four words, so that any row can be drawn by itself.
    """
    blocks = philox.blocks_used(keys)
    start = draw.offset + first * blocks
    mask = philox.keep_mask(xp, draw.seed, start, rows * blocks * 4, dropout_p, draw.state)
    return mask.reshape(rows, blocks * 4)[:, :keys]


def as_matrices(x: np.ndarray) -> np.ndarray:
    """Return x as (B, H, rows, width), at least float32, strided so that BLAS can read it."""
    *batch, heads, rows, width = (1, 1, *x.shape)
    shape = math.prod(batch), heads, rows, width
    x = reshaped(x, shape, wide_dtype(x.dtype))
    return x if readable(x) else copied(x, shape, x.dtype)


def readable(x: np.ndarray) -> bool:
    """Return whether BLAS can read the matrices of x, (B, H, rows, width), as they lie."""
    _, _, row, element = x.strides
    return element == x.itemsize and row >= x.shape[3] * element


def as_mask(mask: np.ndarray | None, query: np.ndarray, keys: int) -> np.ndarray | None:
    """Return a mask, which broadcasts to (..., T, S), as (B, H, T, S)."""
    if mask is None:
        return None
    *batch, heads, rows = (1, 1, *query.shape[:-1])
    shape = math.prod(batch), heads, rows, keys
    return reshaped(np.broadcast_to(mask, (*query.shape[:-1], keys)), shape)


def laid_out_like(x: np.ndarray, width: int, make: Callable[..., np.ndarray]) -> np.ndarray:
    """Return a new (B, H, rows, width), made by ``make``, whose axes lie in memory as those of x.

    Where x is the view of a (B, rows, H * width) array, merging the heads again is no copy then.
    """
    shape = (*x.shape[:3], width)
    order = sorted(range(4), key=lambda axis: -abs(x.strides[axis]))
    if order[3] != 3:
        return make(shape, x.dtype)
    made = make(tuple([shape[axis] for axis in order]), x.dtype)
    return made.transpose([order.index(axis) for axis in range(4)])


def maker(rows: int, keys: int, is_causal: bool, offset: int) -> Callable[..., np.ndarray]:
    """Return what makes memory for results: ``empty``, but ``zeros`` if a part is not written.

    That is a query that sees no key, or a key that no query sees.
    """
    complete = rows and keys and (not is_causal or (offset >= 0 and keys <= rows + offset))
    return empty if complete else zeros


@functools.lru_cache(maxsize=16)
def _limit(height: int, dtype: np.dtype) -> np.ndarray:
    """Return what scores on a diagonal are limited to: (height, height), inf on and below it."""
    found = np.where(np.tri(height, dtype=bool), math.inf, -math.inf).astype(dtype)
    found.flags.writeable = False
    return found


Heads: TypeAlias = tuple[slice, slice]  # of the batch and of the heads


class Tile(NamedTuple):
    """The scores of some queries, indexed by ``at``, for the first keys, indexed by ``seen``.

    ``shape`` is (batch, heads, rows, keys), ``keep`` a dropout mask of that shape.
    """

    at: tuple[slice, slice, slice]
    seen: tuple[slice, slice, slice]
    shape: tuple[int, int, int, int]
    place: int
    keep: np.ndarray | None

    def part(self, memory: np.ndarray) -> np.ndarray:
        """Return the part of a call's memory that belongs to this tile."""
        return memory[self.place : self.place + math.prod(self.shape)].reshape(self.shape)


class Scores:
    """The scores of one call: how they are cut into tiles, and what a tile holds.

    ``query`` is (B, H, T, D), ``key`` (B, H, S, D), ``shape`` (B, H, T, S). A tile's place in
    memory is among all ``count`` scores where they are few enough to be kept for backward
    (``kept``), else 0 in memory of the length ``largest``.
    """

    def __init__(
        self,
        query: np.ndarray,
        key: np.ndarray,
        mask: np.ndarray | None,
        scale: float,
        is_causal: bool,
        offset: int,
        dropout_p: float,
        draw: Draw,
    ) -> None:
        self.query, self.key = as_matrices(query), as_matrices(key)
        self.scale = self.query.dtype.type(scale)
        *_, rows, _ = self.query.shape
        keys = self.key.shape[2]
        self.shape = (*self.query.shape[:3], keys)
        self.mask = as_mask(mask, query, keys)
        self.is_causal, self.offset = is_causal, offset
        self.dropout_p, self.draw = dropout_p, draw
        self.height = max(1, min(rows, max(COPIED, TILE // max(keys, 1))))
        if is_causal:  # a lower tile skips more of what is hidden, in slower products
            self.height = min(self.height, max(64, min(rows // 4, 128)))
        heads = math.prod(self.shape[:2])
        self.group = max(1, TILE // max(self.height * keys, 1))  # heads in a tile
        if math.prod(self.shape) >= SHARED:  # so that there are two groups
            self.group = min(self.group, -(-heads // 2))
        self.largest = min(self.group, heads) * self.height * keys
        self.of_head = sum((stop - start) * seen for start, stop, seen in self._strips())
        self.count = heads * self.of_head
        self.kept = not dropout_p and math.prod(self.shape) <= KEPT
        self.limit = _limit(self.height, self.query.dtype)

    def for_heads(self, work: Callable[[Heads, Iterator[Tile]], None]) -> None:
        """Call work(heads, tiles) for groups of heads, side by side, where a key is seen.

        The tiles of a group are of the same heads, the last rows first.
        """
        batch, heads, _, _ = self.shape
        width = min(heads, self.group) or 1
        depth = max(1, self.group // width)
        groups = [
            (slice(b, min(b + depth, batch)), slice(h, min(h + width, heads)))
            for b in range(0, batch, depth)
            for h in range(0, heads, width)
        ]
        with openblas.serial:  # also for a single group
            for_rows(len(groups), lambda i, _: work(groups[i], self._tiles(*groups[i])), 1)

    def _tiles(self, batch: slice, heads: slice) -> Iterator[Tile]:
        all_heads = self.shape[1]
        count = batch.stop - batch.start, heads.stop - heads.start
        first = batch.start * all_heads + heads.start  # the heads of a group follow each other
        keep = self._keep(first, *count) if self.dropout_p else None
        place = first * self.of_head if self.kept else 0
        for start, stop, seen in self._strips():
            shape = (*count, stop - start, seen)
            mask = None if keep is None else keep[:, :, start:stop, :seen]
            at, to = (batch, heads, slice(start, stop)), (batch, heads, slice(0, seen))
            yield Tile(at, to, shape, place, mask)
            place += math.prod(shape) if self.kept else 0

    def _strips(self) -> Iterator[tuple[int, int, int]]:
        """Yield the first row and the end of every tile, and how many keys its last row sees."""
        rows, keys = self.shape[2:]
        for start in reversed(range(0, rows, self.height)):
            stop = min(start + self.height, rows)
            seen = min(max(stop + self.offset, 0), keys) if self.is_causal else keys
            if not seen:
                break
            yield start, stop, seen

    def _keep(self, head: int, batch: int, heads: int) -> np.ndarray:
        rows, keys = self.shape[2:]
        place = head * rows, batch * heads * rows, keys
        mask = dropout_mask(np, self.draw, *place, self.dropout_p)
        return mask.reshape(batch, heads, rows, keys)

    def turned(self, x: np.ndarray, heads: Heads) -> np.ndarray:
        """Return the rows of some heads as columns, for ``scaled_product``.

        BLAS is faster with a copy of what is small, and the copy is scaled on the way.
        """
        columns = x[heads].swapaxes(-1, -2)
        return columns if self.height < COPIED else np.multiply(columns, self.scale, order="C")

    def scaled_product(self, x: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
        """Write x times columns, which are ``turned``, times scale to out."""
        np.matmul(x * self.scale if self.height < COPIED else x, columns, out=out)

    def compute(
        self, tile: Tile, keys: np.ndarray, memory: np.ndarray, limit: np.ufunc = np.fmin
    ) -> np.ndarray:
        """Return the scores of a tile, in its part of the memory, -inf where a key is hidden.

        ``keys`` are those of its heads, ``turned``. ``limit=np.minimum`` is faster, and does not
        hide NaN.
        """
        scores, seen = tile.part(memory), tile.shape[3]
        self.scaled_product(self.query[tile.at], keys[..., :seen], scores)
        if self.mask is not None:
            mask = self.mask[tile.at][..., :seen]
            if mask.dtype.kind == "b":
                np.copyto(scores, -math.inf, where=~mask)
            else:
                scores += mask
        diagonal = tile.at[2].start + self.offset  # the last key that the first row sees
        first = max(diagonal, 0)
        if self.is_causal and first < seen:
            hidden = scores[..., first:]
            limits = self.limit[: tile.shape[2], first - diagonal : seen - diagonal]
            limit(hidden, limits, out=hidden)
        return scores
