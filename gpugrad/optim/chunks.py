"""Tables for kernels that take many tensors in one launch (kernels/chunks.cuh).

A kernel's block works on one chunk of one tensor: it reads from a table in device memory which,
and from another where that tensor's arrays are. A row of numbers in a third table holds what
changes from step to step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend, cuda
from ..backend import Array

THREADS = 256
# Elements of a chunk: 16 vectors of 4 per thread. 124M parameters are 7600 blocks, many times what
# any GPU runs at once, so the last ones leave little of it idle.
CHUNK = 1 << 14
NUMBERS = 8  # float32 in a row of numbers


class Row(NamedTuple):
    """The arrays of one tensor, all C-contiguous and of one size; ``numbers`` is its row's index.

    ``x``, ``first`` and ``second`` are float32. ``narrow`` is the parameter in half precision of
    which ``x`` is the master copy. ``g`` may be of any dtype that kernels know.
    """

    g: Array
    x: Array | None = None
    narrow: Array | None = None
    first: Array | None = None
    second: Array | None = None
    numbers: int = 0


class Table(NamedTuple):
    """What a launch reads, in device memory; ``arrays`` are those it points to, kept alive."""

    tensors: Array  # (n, 8) uint64: struct Tensor
    chunks: Array  # (blocks, 2) int32: struct Chunk
    arrays: list[Array]

    def launch(self, source: cuda.Source, kernel: str, *args: Any) -> None:
        """Run a kernel with one block per chunk."""
        source.launch(
            kernel,
            (len(self.chunks),),
            (THREADS,),
            [self.tensors, self.chunks, *args, CHUNK],
            reachable=self.arrays if isinstance(self.tensors, np.ndarray) else (),
        )


def takes(array: Array) -> bool:
    """Return whether kernels run where an array is, know its dtype, and see all its elements."""
    return (
        (not isinstance(array, np.ndarray) or cuda.emulated())
        and cuda.fits(array)
        and array.flags.c_contiguous
        and array.size > 0
        and cuda.address(array) % array.itemsize == 0
    )


def table(rows: Sequence[Row]) -> Table:
    """Return the table of some tensors on one device; while their addresses stay, the same one."""
    like = rows[0].g
    # the copy to a GPU is queued on a stream: another stream may not rely on it
    xp = backend.xp_of(like)
    stream = 0 if xp is np else xp.cuda.get_current_stream().ptr
    entries = tuple(_entry(row) for row in rows)
    tensors, chunks = _tables(entries, CHUNK, backend.device_of(like), stream)
    return Table(tensors, chunks, [a for row in rows for a in row[:5] if a is not None])


def _entry(row: Row) -> tuple[int, ...]:
    g_type = cuda.dtype_code(row.g.dtype)
    narrow_type = 0 if row.narrow is None else cuda.dtype_code(row.narrow.dtype)
    arrays = (row.x, row.narrow, row.g, row.first, row.second)
    pointers = (0 if a is None else cuda.address(a) for a in arrays)
    return (*pointers, row.g.size, narrow_type | g_type << 32, row.numbers)


@functools.lru_cache(maxsize=16)
def _tables(
    entries: tuple[tuple[int, ...], ...], chunk: int, device: str, stream: int
) -> tuple[Array, Array]:
    tensors = np.array(entries, np.uint64)
    counts = -(-tensors[:, 5].astype(np.int64) // chunk)
    tensor = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    chunks = np.stack([tensor, np.arange(len(tensor)) - first], axis=1).astype(np.int32)
    return backend.to_device(tensors, device), backend.to_device(chunks, device)


def write_numbers(into: Array | None, rows: Sequence[Sequence[float]], device: str) -> Array:
    """Return rows of at most 8 numbers as an array (n, 8) float32, ``into`` if that has its shape.

    A captured launch reads its settings from the same memory at every step.
    """
    values = np.zeros((len(rows), NUMBERS), np.float32)
    for value, row in zip(values, rows, strict=True):
        value[: len(row)] = row
    array = backend.to_device(values, device)
    if into is None or into.shape != array.shape:
        return array
    into[...] = array
    return into
