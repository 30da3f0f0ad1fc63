"""The launcher of kernels/gelu.cu: GELU, and bias + GELU with the gradient of the bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import backend, cuda
from ..cuda.column_sums import add_partial
from .base import Cost

SOURCE = cuda.Source(
    "gelu.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2), GELU_TANH=(0, 1)), large=True
)

_THREADS = 256  # as in the kernel: 8 warps of 32
_PACKS = 2
_FORWARD_ROWS = 3
_BACKWARD_ROWS = 2
_BLOCKS = 4096  # of a backward pass: several on every processor, none so long that others wait
_MOST_ROWS = 1024  # of a stripe: 128 additions one after another in float32


def cost(x: Any, *bias: Any, **statics: Any) -> Cost:
    """Return what one call cannot do without; a bias counts for nothing beside x."""
    size = math.prod(x.shape)
    return Cost(2 * size * x.dtype.itemsize, 25 * size, 3 * size * x.dtype.itemsize, 40 * size)


def forward(x: Any, bias: Any, approximate: str) -> tuple[Any, tuple]:
    """Return gelu(x + bias), or gelu(x) for a bias of None; nothing is saved but the arguments."""
    x, out = cuda.contiguous(x), cuda.empty(x.shape, x.dtype, like=x)
    if bias is None:
        _launch("gelu_forward", _blocks(x), x.dtype, approximate, x, out, x.size)
    else:
        rows, columns = _matrix(x)
        height = _THREADS // 32 * _FORWARD_ROWS
        grid = -(-rows // height) * _tiles(x)
        args = (x, cuda.contiguous(bias), out, rows, columns, height)
        _launch("bias_gelu_forward", grid, x.dtype, approximate, *args)
    return out, ()


def backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    approximate: str,
) -> Sequence[Any]:
    """Return the gradients of x and bias, those that are wanted."""
    x, bias = arrays
    dx = cuda.empty(x.shape, x.dtype, like=x) if wanted[0] else None
    g, x = cuda.contiguous(g), cuda.contiguous(x)
    if bias is None:
        _launch("gelu_backward", _blocks(x), x.dtype, approximate, g, x, dx, x.size)
        return dx, None
    rows, columns = _matrix(x)
    height = min(-(-rows * _tiles(x) // _BLOCKS), _MOST_ROWS)
    step = _THREADS // 32 * _BACKWARD_ROWS
    height = -(-height // step) * step
    stripes = -(-rows // height)
    partial = cuda.empty((stripes, columns), backend.float32, like=x) if wanted[1] else None
    args = (g, x, cuda.contiguous(bias), dx, partial, rows, columns, height)
    _launch("bias_gelu_backward", stripes * _tiles(x), x.dtype, approximate, *args)
    return dx, None if partial is None else add_partial(partial, bias.dtype)


def _matrix(x: Any) -> tuple[int, int]:
    return math.prod(x.shape[:-1]), x.shape[-1]


def _tiles(x: Any) -> int:
    """Return how many blocks lie side by side over the columns of a row: 32 packs each."""
    return -(-x.shape[-1] // (32 * (16 // x.dtype.itemsize)))


def _blocks(x: Any) -> int:
    return -(-x.size // (_THREADS * _PACKS * (16 // x.dtype.itemsize)))


def _launch(kernel: str, grid: int, dtype: Any, approximate: str, *args: Any) -> None:
    SOURCE.launch(
        kernel,
        (grid,),
        (_THREADS,),
        args,
        GPUGRAD_DTYPE=cuda.dtype_code(dtype),
        GELU_TANH=int(approximate == "tanh"),
    )
