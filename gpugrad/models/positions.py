"""Positions without parameters: sinusoids that are added, rotations of queries and keys."""

from __future__ import annotations

import numpy as np

from .. import ops
from ..backend import DTypeLike, as_dtype
from ..fused import rotary
from ..nn import Module
from ..tensor import Tensor

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


def _buffer(table: np.ndarray, device: str | None, dtype: DTypeLike) -> Tensor:
    return Tensor(table.astype(as_dtype(dtype or "float32")), device=device)
