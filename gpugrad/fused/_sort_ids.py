"""The launches of kernels/sort_ids.cu: ids in order, whatever they are, without a look at them."""

from __future__ import annotations

from typing import Any

from .. import backend, cuda

SOURCE = cuda.Source("sort_ids.cu")

MOST = 2**31 - 1  # ids, and rows they name

_THREADS = 256  # THREADS, TILE, BITS and DIGITS in the kernel
_TILE = 16 * _THREADS
_BITS = 8
_DIGITS = 1 << _BITS
_BLOCKS = 64  # that ids of a training step are shared among: more read more counts
_MOST_BLOCKS = 256


def as_ids(ids: Any) -> Any:
    """Return ids of any shape as a contiguous int32 or int64 (N,), which kernels read."""
    if ids.dtype not in (backend.int32, backend.int64):
        ids = ids.astype(backend.int64)
    return cuda.contiguous(ids).reshape(-1)


def is_wide(ids: Any) -> bool:
    """Return what the kernels call ``wide``."""
    return bool(ids.dtype == backend.int64)


def sorted_ids(ids: Any, rows: int, padding: int) -> tuple[Any, Any]:
    """Return the ids (N,) sorted, and where each of them stood: two int32 (N,).

    ids: as ``as_ids`` makes them, N from 1 to MOST; rows: from 1 to MOST. The keys lie in
    [0, rows): that of an id outside is rows - 1. Where it stood is -1, and -1 for the id
    ``padding``, which is -1 for none. Equal keys stay in order.
    """
    count = ids.size
    passes = max(1, -(-(rows - 1).bit_length() // _BITS))
    keys, order = _pair(ids)
    source, sizes = (ids, is_wide(ids)), (count, rows, padding)
    if count <= _TILE:
        _launch("sort_ids_block", 1, *source, keys, order, *sizes, passes)
        return keys, order
    # a tile at most where blocks suffice, and not more blocks than counts can be read from
    share = min(max(-(-count // _BLOCKS), _THREADS), _TILE)
    share = max(share, -(-count // _MOST_BLOCKS))
    share = -(-share // _THREADS) * _THREADS
    blocks = -(-count // share)
    counts = cuda.empty((passes, blocks, _DIGITS), backend.int32, like=ids)
    _launch("sort_ids_count", blocks, *source, counts, *sizes, share, passes)
    before: tuple[Any, Any] = (None, None)
    for k in range(passes):
        following = counts[k + 1] if k + 1 < passes else None
        places = before, (keys, order), (counts[k], following)
        _launch(
            "sort_ids_place",
            blocks,
            *(source if k == 0 else (None, False)),
            *(array for pair in places for array in pair),
            *sizes,
            share,
            k * _BITS,
        )
        if following is not None:
            spare = _pair(ids) if k == 0 else before
            before, (keys, order) = (keys, order), spare
    return keys, order


def _pair(ids: Any) -> tuple[Any, Any]:
    keys, order = (cuda.empty(ids.size, backend.int32, like=ids) for _ in range(2))
    return keys, order


def _launch(kernel: str, blocks: int, *args: Any) -> None:
    SOURCE.launch(kernel, (blocks,), (_THREADS,), args)
