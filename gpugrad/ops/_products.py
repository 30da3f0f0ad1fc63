"""Matrix products of NumPy arrays, in pieces that the threads share.

A piece is some rows or some columns of the result, never a part of the sum, and is multiplied by
one thread of BLAS. How a product is cut depends on its shape alone, and with it every bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import memory, openblas
from ..cuda import recording
from ..prepared import once
from ..threads import for_rows

# Multiplications in a product that OpenBLAS gives to one thread anyway
SINGLE = 1 << 18
# Multiplications in a product that is not worth cutting: about 100 µs
WHOLE = 1 << 22
# Rows of a piece, where there are more than two: BLAS packs the whole other operand for every
# piece, which at 512 rows costs about 6 % of the product, at 128 rows 30 %
PIECE = 384


def matmul(x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return np.matmul(x, y, out): x (..., N, K), y (..., K, M); computed by all threads.

    Views that BLAS can read, transposed or not, are not copied.
    """
    work = x.size * y.shape[-1]
    if work <= SINGLE and out is None:
        return np.matmul(x, y)  # the common case of eager steps, without a detour
    if work <= SINGLE or x.dtype.kind != "f" or x.dtype != y.dtype or not openblas.available():
        return _multiplied(x, y, out)
    batched = x.ndim > 2 and x.shape[:-2] == y.shape[:-2] and len(x) > 1
    if work < WHOLE or not (batched or x.ndim == y.ndim == 2):
        with openblas.serial:
            return _multiplied(x, y, out)
    if out is None:
        out = memory.empty((*x.shape[:-1], y.shape[-1]), x.dtype)
    made = out
    if batched:
        grain = -(-len(x) * WHOLE // (2 * work))
        for_rows(len(x), lambda i, j: np.matmul(x[i:j], y[i:j], out=made[i:j]), grain)
    else:
        run(pieces(x, y, made))
    return made


def _multiplied(x: np.ndarray, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.matmul(x, y)
    once(functools.partial(np.matmul, x, y, out=out))
    return out


def product(x: Any, y: Any) -> Any:
    """Return ``matmul`` of arrays; in a step that is being recorded that is a launch."""
    if x.__class__ is np.ndarray and y.__class__ is np.ndarray:
        return matmul(x, y)
    return recording.as_one(_matmul, x, y)


def _matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``matmul`` in memory that the step has laid out."""
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shape = (*batch, x.shape[-2], y.shape[-1])
    return matmul(x, y, memory.empty(shape, np.result_type(x, y)))


_matmul.prepared = True  # type: ignore[attr-defined]


def affine(x: np.ndarray, y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return x @ y + bias: x (N, K), y (K, M), bias (M); added while a piece is in the cache."""
    work = x.size * y.shape[1]
    if work <= SINGLE and memory.is_plain():  # the common case of eager steps, without a detour
        out = np.matmul(x, y)
        np.add(out, bias, out=out)
    elif x.dtype == y.dtype == bias.dtype and work >= WHOLE and openblas.available():
        out = memory.empty((len(x), y.shape[1]), x.dtype)
        run(pieces(x, y, out, bias))
    else:
        dtype = x.dtype if x.dtype == y.dtype else np.result_type(x, y)
        out = matmul(x, y, memory.empty((len(x), y.shape[1]), dtype))
        once(lambda: np.add(out, bias, out=out))
    return out


def pieces(
    x: np.ndarray, y: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None
) -> list[Callable[[], None]]:
    """Return what writes the product of two matrices, and the sum with bias, to out.

    These are 2, 4, 8, ... calls for different rows or columns, or one for a small product.
    """
    by_rows = len(x) >= y.shape[1]
    length = max(out.shape)

    def fill(start: int, stop: int) -> None:
        some = slice(start, stop)
        part = out[some] if by_rows else out[:, some]
        np.matmul(x[some] if by_rows else x, y if by_rows else y[:, some], out=part)
        if bias is not None:
            part += bias if by_rows else bias[some]

    count = 1
    if x.size * y.shape[1] >= WHOLE:
        count = max(2, 1 << int(math.log2(max(length / PIECE, 1))))
    grain = -(-length // count)
    return [
        functools.partial(fill, start, min(start + grain, length))
        for start in range(0, length, grain)
    ]


def run(calls: Sequence[Callable[[], Any]]) -> None:
    """Make calls that have nothing to do with each other, each by one thread of BLAS."""
    with openblas.serial:  # also a single one
        for_rows(len(calls), lambda i, _: calls[i](), 1)
