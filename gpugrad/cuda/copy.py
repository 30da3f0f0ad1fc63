"""Copies between arrays of any layout by a CUDA kernel."""

from __future__ import annotations

from typing import Any

from .kernel import Source, strided, variants

SOURCE = Source("copy.cu", variants(GPUGRAD_BYTES=(1, 2, 4, 8)), large=True)

_THREADS = 256
_AXES = 6
_BLOCKS = 132 * 8 * 4  # four turns' worth of what a Hopper GPU runs at once


def copy_strided(x: Any, out: Any) -> None:
    """Copy the elements of x to out, of the same shape and dtype and any strides.

    Both are on a GPU, recorded or, while the emulator is active, numpy arrays. Raises ValueError
    for more axes than six that cannot be merged.
    """
    if x.shape != out.shape or x.dtype != out.dtype:
        raise ValueError(
            f"copy_strided: x is {x.dtype}{list(x.shape)}, out {out.dtype}{list(out.shape)}"
        )
    axes: list[list[int]] = []  # length and both strides in elements, axes merged where they can be
    for length, near, far in zip(x.shape, x.strides, out.strides, strict=True):
        if length == 1:
            continue
        near, far = near // x.itemsize, far // out.itemsize
        if axes and axes[-1][1] == length * near and axes[-1][2] == length * far:
            axes[-1] = [axes[-1][0] * length, near, far]
        else:
            axes.append([length, near, far])
    if len(axes) > _AXES:
        raise ValueError(f"copy_strided: strides {x.strides} to {out.strides} are too many axes")
    axes = [[1, 0, 0]] * (_AXES - len(axes)) + axes
    lengths, near_strides, far_strides = zip(*axes, strict=True)
    args = (strided(x), strided(out), x.size, *lengths[1:], *near_strides, *far_strides)
    blocks = max(1, min(-(-x.size // _THREADS), _BLOCKS))
    SOURCE.launch("copy_strided", (blocks,), (_THREADS,), args, GPUGRAD_BYTES=x.itemsize)
