"""Rows in a few parts, one for each thread: layers whose rows stay in the cache on their way.

Each part has gradients of the parameters of its own, which are added up in the end. How rows are
cut depends on their number alone, and with it every bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..threads import for_rows
from ._rows import BLOCK, CHUNK
from .affine import pays as products_pay

# Rows at a time: products are as fast as with more of them, and what comes of them stays near
ROWS = 512
# Parts, of few rows and of many, and the rows of which there are two
FEW, MANY = 2, 4
SPLIT = 96
# Rows for each feature: BLAS packs all of a weight for each part, which for fewer takes too long
FEWEST = 0.5


def part(count: int) -> int:
    """Return how many of the rows are a part: a multiple of what ColumnSums adds up as one."""
    parts = MANY if count >= MANY * ROWS else FEW if count >= SPLIT else 1
    return math.ceil(count / parts / CHUNK) * CHUNK


def pays(x: Any, weight: Any, *others: Any) -> bool:
    """Return whether rows in parts are faster than products in pieces, one after the other."""
    return x.size >= FEWEST * x.shape[-1] ** 2 and products_pay(x, weight, *others)


def add_product(x: np.ndarray, y: np.ndarray, out: np.ndarray, is_first: bool) -> None:
    """Add the product of two matrices to out, or write it there if it is the first."""
    if is_first:
        np.matmul(x, y, out=out)
    else:
        out += np.matmul(x, y)


def total(parts: list[np.ndarray] | None) -> np.ndarray | None:
    """Return the sum, in the first."""
    if parts is None:
        return None
    first, *others = parts

    def add(start: int, stop: int) -> None:
        for other in others:
            first[start:stop] += other[start:stop]

    for_rows(len(first), add, max(1, BLOCK // max(1, first[:1].size)))
    return first
