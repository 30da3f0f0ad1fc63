"""Tables for kernels that take many tensors in one launch (kernels/chunks.cuh).

A kernel's block works on one chunk of one tensor: it reads from a table in device memory which,
and from another where that tensor's arrays are. A row of settings in a third table holds what the
user may change from step to step. So neither gradients nor parameters have to lie in one flat
buffer for a step of all of them to be three launches: two for the norm, one for the update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend, cuda
from ..backend import Array
from ..cuda import recording, transfer
from .state import zeros

THREADS = 256
# Elements of a chunk: 16 vectors of 4 per thread. 124M parameters are 7600 blocks, many times what
# any GPU runs at once, so the last ones leave little of it idle.
CHUNK = 1 << 14
SETTINGS = 8  # float64 in a row of settings


class Row(NamedTuple):
    """The arrays of one tensor, all C-contiguous and of one size; ``settings`` is its row's index.

    ``x``, ``first`` and ``second`` are float32. ``narrow`` is the parameter in half precision of
    which ``x`` is the master copy. ``g`` may be of any dtype that kernels know. ``step`` holds one
    int32.
    """

    g: Array
    x: Array | None = None
    narrow: Array | None = None
    first: Array | None = None
    second: Array | None = None
    step: Array | None = None
    settings: int = 0


class Table(NamedTuple):
    """What a launch reads in device memory, and the rows it is made of."""

    tensors: Array  # (n, 9) uint64: struct Tensor
    chunks: Array  # (blocks, 2) int32: struct Chunk
    rows: list[Row]

    def launch(
        self,
        source: cuda.Source,
        kernel: str,
        *args: Any,
        reads: Sequence[str] = (),
        writes: Sequence[str] = (),
    ) -> None:
        """Run a kernel with one block per chunk; it touches these fields of the rows."""
        source.launch(
            kernel,
            (len(self.chunks),),
            (THREADS,),
            [self.tensors, self.chunks, *args, CHUNK],
            reachable=self.arrays(*reads),
            written=self.arrays(*writes),
        )

    def arrays(self, *fields: str) -> list[Array]:
        """Return what is reached through the table: on a GPU nobody has to know, as it is slow."""
        if not isinstance(self.tensors, (np.ndarray, backend.Symbolic)):
            return []
        found = (getattr(row, field) for row in self.rows for field in fields)
        return [array for array in found if array is not None]


def takes(array: Array) -> bool:
    """Return whether kernels run where an array is, know its dtype, and see all its elements."""
    return (
        (not isinstance(array, np.ndarray) or cuda.emulated())
        and cuda.fits(array)
        and array.flags.c_contiguous
        and cuda.address(array) % array.itemsize == 0
    )


def table(rows: Sequence[Row]) -> Table:
    """Return the table of some tensors on one device; while their addresses stay, the same one.

    Of a step that is being recorded the addresses are known, and filled in, later.
    """
    trace = recording.current()
    sizes = tuple(row.g.size for row in rows)
    if trace is not None:

        def build(address: Callable[[Array], int]) -> np.ndarray:
            return np.array([_entry(row, address) for row in rows], np.uint64)

        chunks = _chunks(sizes, CHUNK)
        return Table(
            trace.constant(build, (len(rows), len(Row._fields) + 2), backend.uint64),
            trace.constant(lambda address: chunks, chunks.shape, chunks.dtype),
            list(rows),
        )
    device = backend.device_of(rows[0].g)
    # the copy to a GPU is queued on a stream: another stream may not rely on it
    stream = 0 if device == "cpu" else backend.cupy_module().cuda.get_current_stream().ptr
    entries = tuple(_entry(row, cuda.address) for row in rows)
    return Table(*_tables(entries, sizes, CHUNK, device, stream), list(rows))


def _entry(row: Row, address: Callable[[Array], int]) -> tuple[int, ...]:
    g_type = cuda.dtype_code(row.g.dtype)
    narrow_type = 0 if row.narrow is None else cuda.dtype_code(row.narrow.dtype)
    arrays = (row.x, row.narrow, row.g, row.first, row.second, row.step)
    pointers = (0 if a is None else address(a) for a in arrays)
    return (*pointers, row.g.size, narrow_type | g_type << 32, row.settings)


@functools.lru_cache(maxsize=16)
def _tables(
    entries: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    chunk: int,
    device: str,
    stream: int,
) -> tuple[Array, Array]:
    tensors = np.array(entries, np.uint64)
    return backend.to_device(tensors, device), backend.to_device(_chunks(sizes, chunk), device)


def _chunks(sizes: Sequence[int], chunk: int) -> np.ndarray:
    counts = -(-np.array(sizes, np.int64) // chunk)
    tensor = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([tensor, np.arange(len(tensor)) - first], axis=1).astype(np.int32)


class Settings:
    """Rows of at most 8 numbers, ``array`` (n, 8) float64, where ``like`` is.

    What is written is there for all that is launched afterwards; nothing waits for a GPU.
    """

    def __init__(self, rows: int, like: Array) -> None:
        self.array = zeros((rows, SETTINGS), backend.float64, like)
        self._upload: transfer.Upload | None = None

    def write(self, rows: Sequence[Sequence[float]]) -> None:
        """Overwrite all rows; numbers that are not given are 0."""
        values = np.zeros(self.array.shape)
        for value, row in zip(values, rows, strict=True):
            value[: len(row)] = row
        if isinstance(self.array, np.ndarray):
            self.array[...] = values
            return
        if self._upload is None:
            self._upload = transfer.Upload(backend.cupy_module(), self.array)
        self._upload(values)
