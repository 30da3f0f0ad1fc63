"""Tensor maps: arrays described in 128 bytes, passed to a kernel by value.

A kernel declares ``const __grid_constant__ TensorMap x`` (kernels/ptx.cuh) and is given
``strided(array)``, which it reads itself, or ``strided(array, box)`` for copies of boxes of the
array by Hopper's copy engine (cp.async.bulk.tensor). For those the driver writes the map in a
format of its own; in the emulator both are in the open.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend

NAME = "TensorMap"
AXES = 5
LINE = 128  # bytes of a box along the contiguous axis; also the reach of the swizzle
BOX = 256  # the most elements of a box along any axis
SWIZZLE_128B = 3
PROMOTE_TO_128 = 2  # bytes that the second-level cache fetches together
# of cuTensorMapEncodeTiled: the map, dtype, axes, address, four lists, four choices
_ARGUMENTS = (
    *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32),
    *(ctypes.c_void_p,) * 5,
    *(ctypes.c_uint32,) * 4,
)
_MARK = 0x67706D31
# Mirrored in kernels/ptx.cuh and emulator/mbarrier.cpp; axes from the contiguous one outwards.
LAYOUT = np.dtype(
    [
        ("start", "u8"),
        ("strides", "i8", AXES),
        ("lengths", "u4", AXES),
        ("box", "u4", AXES),
        ("axes", "u4"),
        ("itemsize", "u4"),
        ("dtype", "u4"),
        ("swizzle", "u4"),
        ("fill", "u4"),
        ("mark", "u4"),
        ("unused", "V16"),
    ]
)
# CUtensorMapDataType
_DTYPES = {
    backend.uint8: 0,
    backend.uint16: 1,
    backend.uint32: 2,
    backend.int32: 3,
    backend.uint64: 4,
    backend.int64: 5,
    backend.float16: 6,
    backend.float32: 7,
    backend.float64: 8,
    backend.bfloat16: 9,
}


def refusal(array: Any, box: Sequence[int]) -> str | None:
    """Return what keeps the copy engine from taking boxes of an array, None if nothing does.

    ``box`` are the lengths of a box, one per axis of the array. Sources: cuTensorMapEncodeTiled in
    the CUDA driver API, and what the layout of wgmma needs: lines of 128 bytes.
    """
    itemsize, shape = array.itemsize, array.shape
    if len(box) != len(shape) or not 1 <= len(shape) <= AXES:
        return f"a box of {len(box)} axes, an array of {len(shape)}; 1 to {AXES} are possible"
    if array.dtype not in _DTYPES:
        return f"elements of {array.dtype}"
    if not all(1 <= n <= BOX for n in box) or box[-1] * itemsize != LINE:
        return f"a box of {tuple(box)}: its lines have {LINE} bytes, its axes 1 to {BOX} elements"
    if not all(1 <= n < 2**31 for n in shape):
        return f"an array of shape {tuple(shape)}"
    if shape[-1] > 1 and array.strides[-1] != itemsize:
        return f"elements of a row that are {array.strides[-1]} bytes apart"
    for stride in _strides(shape, array.strides, itemsize)[:-1]:
        if stride % 16 or not 0 < stride < 2**40:
            return f"a stride of {stride} bytes; multiples of 16 below 2**40 are possible"
    return None


def _strides(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> list[int]:
    """Return strides in bytes, those of axes of one element as in a contiguous array."""
    row = -(-shape[-1] * itemsize // 16) * 16
    return [s if n > 1 else row for n, s in zip(shape[:-1], strides, strict=False)] + [itemsize]


def in_the_open(array: Any, box: Sequence[int] | None, address: int) -> np.ndarray:
    """Return the map of an array at an address, as one element of LAYOUT, at a multiple of 64."""
    axes = array.ndim
    if axes > AXES:
        raise ValueError(f"a {NAME} has {AXES} axes at most, the array has {axes}")
    made = _memory()
    made["start"] = address
    made["strides"][:axes] = array.strides[::-1]
    made["lengths"][:axes] = array.shape[::-1]
    made["axes"], made["itemsize"], made["mark"] = axes, array.itemsize, _MARK
    made["dtype"] = _DTYPES.get(array.dtype, 0)
    if box is not None:
        made["box"][:axes] = box[::-1]
        made["swizzle"] = SWIZZLE_128B
    return made


def by_driver(array: Any, box: Sequence[int], address: int) -> np.ndarray:
    """Return the map that the CUDA driver makes, as one element of 128 bytes.

    Raises RuntimeError where the driver has no such function or refuses the array.
    """
    strides = _strides(array.shape, array.strides, array.itemsize)
    return _encoded(address, array.shape, tuple(strides), array.dtype, tuple(box))


@functools.lru_cache(maxsize=4096)
def _encoded(
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype,
    box: tuple[int, ...],
) -> np.ndarray:
    axes = len(shape)
    made = _memory()
    status = _encoder()(
        made.ctypes.data,
        _DTYPES[dtype],
        axes,
        address,
        (ctypes.c_uint64 * axes)(*shape[::-1]),
        (ctypes.c_uint64 * axes)(*strides[-2::-1]),  # not that of the contiguous axis
        (ctypes.c_uint32 * axes)(*box[::-1]),
        (ctypes.c_uint32 * axes)(*[1] * axes),  # every element, none skipped
        0,  # not interleaved
        SWIZZLE_128B,
        PROMOTE_TO_128,
        0,  # what does not exist is zero
    )
    if status:
        raise RuntimeError(
            f"cuTensorMapEncodeTiled returns {status} for an array of {dtype}{list(shape)}, "
            f"strides {strides} bytes, at {address:#x}, boxes of {box}; "
            "GPUGRAD_ATTENTION=wgmma takes kernels that need no tensor map"
        )
    return made


@functools.cache
def _encoder() -> Any:
    """Return cuTensorMapEncodeTiled of the driver that CuPy uses; RuntimeError where it is not."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        function = ctypes.CDLL(name).cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise RuntimeError(
            f"tensor maps are made by the CUDA driver, version 12.0 or newer ({error}); "
            "GPUGRAD_ATTENTION=wgmma takes kernels that need none"
        ) from error
    function.argtypes = _ARGUMENTS
    function.restype = ctypes.c_int
    return function


def _memory() -> np.ndarray:
    """Return 128 zero bytes at a multiple of 64, where a map has to lie."""
    memory = np.zeros(LAYOUT.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + LAYOUT.itemsize].view(LAYOUT)[0:1].reshape(())
