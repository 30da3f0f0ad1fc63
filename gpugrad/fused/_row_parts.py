"""Rows in a few parts, one for each thread: layers whose rows stay in the cache on their way.

Each part has gradients of the parameters of its own, which are added up in the end. How rows are
cut depends on their number alone, and with it every bit.
"""

from __future__ import annotations

import numpy as np

from ..threads import for_rows
from ._rows import BLOCK, CHUNK

# Rows at a time: products are as fast as with more of them, and what comes of them stays near
ROWS = 512
# Parts, of few rows and of many
FEW, MANY = 2, 4


def part(count: int) -> int:
    """Return how many of the rows are a part: a multiple of what ColumnSums adds up as one."""
    length = -(-count // (FEW if count < MANY * ROWS else MANY))
    return -(-length // CHUNK) * CHUNK


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

    for_rows(len(first), add, max(1, -(-len(first) * BLOCK // first.size)))
    return first
