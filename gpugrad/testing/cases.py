"""Inputs that break kernels: awkward lengths, shapes and memory layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import backend

LENGTHS = (0, 1, 2, 3, 17, 64, 127, 1023)  # none, one, small, prime, a power of 2, one less


def shapes(ndim: int = 3, length: int = 1023) -> list[tuple[int, ...]]:
    """Return shapes of up to ndim axes: 0-d, empty, one element, prime, and a long last axis."""
    found: list[tuple[int, ...]] = [()]
    for n in range(1, ndim + 1):
        found += [(1,) * n, (2,) * (n - 1) + (0,), (*(3, 5, 2)[: n - 1], 7)]
        found += [(2,) * (n - 1) + (length,)]
        if n > 1:
            found += [(0,) + (3,) * (n - 1)]
    return found


def layouts(array: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, array) with the same values in memory layouts that kernels get wrong."""
    xp = backend.xp_of(array)
    yield "contiguous", array.copy(order="C")
    if not array.ndim:
        return
    yield "transposed", array.copy(order="F")
    yield "reversed", xp.flip(xp.ascontiguousarray(xp.flip(array)))
    wide = xp.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
    wide[..., 1::2] = array
    yield "strided", wide[..., 1::2]
