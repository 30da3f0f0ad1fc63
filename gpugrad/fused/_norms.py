"""The launches of layer_norm.cu and rms_norm.cu, which differ in the mean and the bias alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import backend, cuda
from ..cuda.column_sums import add_partial, power_of_two, tiling
from .base import Cost

WARP = 32
VALUES = 24  # columns that a thread keeps in registers, as in norm.cuh
LARGEST = 384  # threads of the largest block that keeps a row
SMALL = 128  # threads of a block in which a team is at most a warp
BLOCKS = 132  # of LARGEST threads that run at once: the processors of a Hopper GPU
ANY = 512  # threads of a block that reads its row again
TILE = 256  # threads of a block that takes a tile of columns


def fits(*arrays: Any, **statics: Any) -> bool:
    """Return whether the kernels take these arrays."""
    return cuda.fits(*arrays)


def cost(x: Any, residual: Any, forward: int, backward: int) -> Cost:
    """Return what one call cannot do without, for so many floating operations per element.

    With a residual the sum is written too, and its gradient read; the parameters count for nothing.
    """
    size = math.prod(x.shape)
    arrays, in_backward = (2, 3) if residual is None else (4, 4)
    of_one = size * x.dtype.itemsize
    return Cost(arrays * of_one, forward * size, in_backward * of_one, backward * size)


def _rows(x: Any) -> Any:
    """Return an array (..., C) as a C-contiguous matrix (N, C); None stays None."""
    return x if x is None else cuda.contiguous(x).reshape(-1, x.shape[-1])


def _kept(columns: int, *arrays: Any) -> bool:
    """Return whether a block can keep a row, and all rows begin at multiples of 16 bytes."""
    size = next(a.itemsize for a in arrays if a is not None)
    if columns > VALUES * LARGEST or columns * size % 16:
        return False
    return not any(cuda.address(a) % 16 for a in arrays if a is not None)


def _teams(columns: int, kept: bool) -> tuple[int, int]:
    """Return the threads of a team, which takes a row, and of a block."""
    if columns <= VALUES * WARP:
        return min(WARP, power_of_two(-(-columns // VALUES) if kept else columns)), SMALL
    threads = -(-columns // (VALUES * WARP)) * WARP if kept else ANY
    return threads, threads


class Norm:
    """The kernels of one normalisation, with mean and bias if ``centred``."""

    def __init__(self, name: str, centred: bool) -> None:
        self.name, self.centred = name, centred
        variants = cuda.variants(GPUGRAD_DTYPE=(0, 1, 2))
        self.source = cuda.Source(f"{name}.cu", variants, large=True)

    def _launch(
        self, kernel: str, grid: tuple[int, ...], threads: int, args: Sequence[Any], like: Any
    ) -> None:
        code = cuda.dtype_code(like.dtype)
        self.source.launch(f"{self.name}_{kernel}", grid, (threads,), args, GPUGRAD_DTYPE=code)

    def forward(
        self, x: Any, weight: Any, bias: Any, residual: Any, eps: float
    ) -> tuple[Any, tuple]:
        """Return out, or out and x + residual, and what backward needs."""
        x_rows, added = _rows(x), _rows(residual)
        weight, bias = cuda.contiguous(weight), cuda.contiguous(bias)
        rows, columns = x_rows.shape
        out = cuda.empty(x.shape, x.dtype, like=x)
        total = None if added is None else cuda.empty(x.shape, x.dtype, like=x)
        rstd = cuda.empty(rows, backend.float32, like=x)
        mean = cuda.empty(rows, backend.float32, like=x) if self.centred else None
        arrays = [x_rows, added, weight, bias, total, out, mean, rstd]
        kept = _kept(columns, *arrays[:6])
        team, threads = _teams(columns, kept)
        if not self.centred:
            arrays = [x_rows, added, weight, total, out, rstd]
        blocks = -(-rows // (threads // team))
        args = (*arrays, rows, columns, team, eps)
        self._launch("forward" if kept else "forward_any", (blocks,), threads, args, x)
        h_rows = x_rows if total is None else total.reshape(rows, columns)
        return (out if total is None else (out, total)), (h_rows, mean, rstd)

    def backward(
        self, wanted: tuple[bool, bool, bool], g: Any, g_h: Any, weight: Any, residuals: tuple
    ) -> tuple[Any, Any, Any]:
        """Return the gradients of h (N, C), weight and bias, or None where it is not wanted."""
        h, mean, rstd = residuals
        rows, columns = h.shape
        g, g_h, weight = _rows(g), _rows(g_h), cuda.contiguous(weight)
        dh = cuda.empty(h.shape, h.dtype, like=h) if wanted[0] else None
        kinds = wanted[1] + wanted[2]
        statistics, kinds_wanted = ((mean, rstd), wanted[1:]) if self.centred else ((rstd,), ())
        kept = _kept(columns, h, g, g_h, weight, dh)
        team, threads = _teams(columns, kept)
        partial = None
        if kept:
            blocks = min(-(-rows // (threads // team)), BLOCKS * (LARGEST // threads))
            if kinds:
                partial = cuda.empty((blocks, kinds * columns), backend.float32, like=h)
            args = (g, h, g_h, weight, *statistics, dh, partial, *kinds_wanted, rows, columns, team)
            self._launch("backward", (blocks,), threads, args, h)
        else:
            if dh is not None:
                args = (g, h, g_h, weight, *statistics, dh, rows, columns, team)
                blocks = -(-rows // (threads // team))
                self._launch("backward_any", (blocks,), threads, args, h)
            if kinds:
                team, tiles, stripes = tiling(rows, columns, h.itemsize)
                partial = cuda.empty((stripes, kinds * columns), backend.float32, like=h)
                args = (g, h, *statistics, partial, *kinds_wanted, rows, columns, team)
                self._launch("parameters_any", (tiles, stripes), TILE, args, h)
        if partial is None:
            return dh, None, None
        sums = add_partial(partial, h.dtype)
        return dh, sums[:columns] if wanted[1] else None, sums[-columns:] if wanted[2] else None
