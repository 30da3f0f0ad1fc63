"""Positions: sinusoids that are added, rotations of queries and keys, biases of scores."""

from __future__ import annotations

import math

import numpy as np

from .. import ops
from ..backend import DTypeLike, as_dtype, default_device
from ..fused import rotary
from ..nn import Module, init
from ..nn import functional as F
from ..nn.parameter import empty_parameter
from ..tensor import Tensor
from .config import BUCKETS

BASE = 10000.0


def _angles(length: int, pairs: int) -> np.ndarray:
    """Return position / BASE^(i / pairs), (length, pairs)."""
    return np.arange(length)[:, None] * BASE ** (-np.arange(pairs) / pairs)


class Sinusoidal(Module):
    """(T, C) sinusoids of the positions: sin in even features, cos in odd, T up to ``length``.

    Feature pair i turns with angle position / 10000^(2i/C). Vaswani et al. (2017), section 3.5.
    """

    table: Tensor

    def __init__(
        self, length: int, size: int, device: str | None = None, dtype: DTypeLike = None
    ) -> None:
        super().__init__()
        angles = _angles(length, size // 2)
        table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, size)
        self.register_buffer("table", _buffer(table, device, dtype), persistent=False)

    def forward(self, start: int, stop: int) -> Tensor:
        """Return the vectors of positions start to stop."""
        return self.table[start:stop]


class Rotary(Module):
    """Turns features i and i + D/2 of x (..., T, D) by the angle position / 10000^(2i/D).

    A product of a query and a key so turned depends on the distance of their positions only. Su
    et al., "RoFormer" (2021); pairs of halves rather than neighbours, as GPT-NeoX and Llama have.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, length: int, size: int, device: str | None = None, dtype: DTypeLike = None
    ) -> None:
        super().__init__()
        angles = _angles(length, size // 2)
        self.register_buffer("cos", _buffer(np.cos(angles), device, dtype), persistent=False)
        self.register_buffer("sin", _buffer(np.sin(angles), device, dtype), persistent=False)

    def forward(self, x: Tensor, positions: int | Tensor) -> Tensor:
        """Return x (B, H, T, D) turned: ``positions`` are the first one, or all of them, (B, T)."""
        if isinstance(positions, int):
            return rotary(x, self.cos, self.sin, positions)
        flat = ops.reshape(positions, (-1,))
        rows = ops.swapaxes(x, 0, 1)  # (H, B, T, D)
        turned = rotary(
            ops.reshape(rows, (x.shape[1], -1, x.shape[3])), self.cos[flat], self.sin[flat]
        )
        return ops.swapaxes(ops.reshape(turned, rows.shape), 0, 1)


class DistanceBias(Module):
    """A number for each head that is added to the score of a key, by its distance: see below."""

    def of(self, distance: Tensor) -> Tensor:
        """Return (heads, ...): what is added at each of the distances, integers from 0 on."""
        raise NotImplementedError

    def forward(self, queries: int | Tensor, t: int, keys: int | Tensor) -> Tensor:
        """Return (heads, T, S) or (B, heads, T, S): what is added to the scores.

        ``queries`` are the position of the first of t queries, or of all, (B, T); ``keys`` the
        number of keys, from position 0 on, or their positions, (B, S). Keys behind a query, which
        a causal mask hides, get what a key at the query's own place gets.
        """
        if isinstance(queries, int):
            queries = Tensor(np.arange(queries, queries + t), device=_device(self))
        if isinstance(keys, int):
            keys = Tensor(np.arange(keys), device=_device(self))
        behind = ops.expand_dims(queries, -1) - ops.expand_dims(keys, -2)
        bias = self.of(ops.clip(behind, 0, None))  # (heads, [B,] T, S)
        return bias if bias.ndim == 3 else ops.swapaxes(bias, 0, 1)


class Alibi(DistanceBias):
    """-slope times distance, with a slope for each head and nothing to learn.

    The slopes of n heads are 2^(-8/n), 2^(-16/n), ..., 2^-8; where n is no power of two, those of
    the next lower power followed by every other one of the next higher. Press, Smith, Lewis,
    "Train short, test long" (2022).
    """

    slopes: Tensor

    def __init__(self, heads: int, device: str | None = None, dtype: DTypeLike = None) -> None:
        super().__init__()
        self.register_buffer("slopes", _buffer(slopes(heads), device, dtype), persistent=False)

    def of(self, distance: Tensor) -> Tensor:
        """Return (heads, ...): what is added at each of the distances, integers from 0 on."""
        slopes = ops.reshape(self.slopes, (-1, *(1 for _ in distance.shape)))
        return -slopes * distance.astype(slopes.dtype)


def slopes(heads: int) -> np.ndarray:
    """Return ALiBi's slope of each head, (heads,)."""
    power = 2 ** int(math.log2(heads))
    own = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([own, between[: heads - power]])


class RelativeBias(DistanceBias):
    """A learned number for each head and bucket of distances, the same in every layer.

    Half of the buckets are the distances 0, 1, ...; the others grow in width up to
    ``max_distance``, and the last has all beyond. Raffel et al., "T5" (2020), section 2.1; unlike
    T5, scores are still divided by sqrt(D).
    """

    def __init__(
        self,
        heads: int,
        device: str | None = None,
        dtype: DTypeLike = None,
        max_distance: int = 128,
    ) -> None:
        super().__init__()
        self.weight = empty_parameter(BUCKETS, heads, device=device, dtype=dtype)
        first = Tensor(first_distances(max_distance), device=device or default_device())
        self.register_buffer("first", first, persistent=False)
        self.reset_parameters()

    first: Tensor

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        init.normal_(self.weight, 0.0, 0.02)

    def of(self, distance: Tensor) -> Tensor:
        """Return (heads, ...): what is added at each of the distances, integers from 0 on."""
        reached = (ops.expand_dims(distance, -1) >= self.first).astype("float32")
        bucket = ops.sum(reached, axis=-1).astype("int64") - 1
        return ops.moveaxis(F.embedding(bucket, self.weight), -1, 0)


def first_distances(max_distance: int = 128) -> np.ndarray:
    """Return the smallest distance in each bucket, (BUCKETS,) int64: T5's, one-sided."""
    exact = BUCKETS // 2
    growth = (max_distance / exact) ** (np.arange(BUCKETS - exact) / (BUCKETS - exact))
    return np.concatenate([np.arange(exact), np.ceil(exact * growth - 1e-9).astype(np.int64)])


def _device(module: Module) -> str:
    return next(tensor.device for _, tensor in module.named_buffers())


def _buffer(table: np.ndarray, device: str | None, dtype: DTypeLike) -> Tensor:
    """Return a table where parameters go: without a device to the default one."""
    return Tensor(table.astype(as_dtype(dtype or "float32")), device=device or default_device())
