"""Sequences of different lengths in one batch: truncated, padded, their next tokens as targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = Sequence[Sequence[int] | npt.NDArray[np.integer]]


def pad_truncate(rows: Rows, block: int, pad: int = 0) -> npt.NDArray[np.int64]:
    """Return int64 (len(rows), block): each row's first `block` ids, then `pad` as needed.

    Raises ValueError for a block below 1, TypeError for rows that are not 1-D integers.
    """
    if block < 1:
        raise ValueError(f"pad_truncate: block must be at least 1, got {block}")
    out = np.full((len(rows), block), pad, np.int64)
    for i, row in enumerate(as_rows(rows, "pad_truncate")):
        out[i, : len(row)] = row[:block]
    return out


class PaddedBatch(NamedTuple):
    """What ``pad_batch`` returns, (B, T) each.

    ids: int64. targets: int64, what follows each id. mask: bool, true where a token is.
    """

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]


def pad_batch(rows: Rows, block: int, pad: int = 0, ignore_index: int = -100) -> PaddedBatch:
    """Return the first `block` ids of each row, padded with `pad`, with targets and mask.

    The target of an id is the one that follows it in its row, also where the row was cut behind
    it; `ignore_index`, which the losses leave out, where none follows and in the padding. Causal
    attention needs no mask for padding at the end; for any other there is `nn.padding_mask(mask)`.
    Raises ValueError for a block below 1, TypeError for rows that are not 1-D integers.
    """
    if block < 1:
        raise ValueError(f"pad_batch: block must be at least 1, got {block}")
    arrays = as_rows(rows, "pad_batch")
    ids = pad_truncate(arrays, block, pad)
    targets = pad_truncate([row[1:] for row in arrays], block, ignore_index)
    lengths = np.array([len(row) for row in arrays], np.int64)
    return PaddedBatch(ids, targets, np.arange(block) < lengths[:, None])


def as_rows(rows: Rows, where: str) -> list[npt.NDArray[np.int64]]:
    """Return each row as 1-D int64; an empty list is an empty row."""
    arrays = [np.asarray(row) for row in rows]
    for i, row in enumerate(arrays):
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise TypeError(
                f"{where}: row {i} must be 1-D integer ids, got shape {row.shape} and dtype "
                f"{row.dtype}"
            )
    return [row.astype(np.int64) for row in arrays]
