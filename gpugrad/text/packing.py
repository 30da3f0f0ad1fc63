"""Short documents packed into rows of one length, instead of padded one by one.

    batch = pack(documents, block=256)
    loss = model.loss(
        batch.ids,
        batch.targets,
        attn_mask=nn.document_mask(batch.documents),    # no document sees another
        positions=batch.positions,                      # each begins at position 0
    )

With mask and positions every token has the loss that it has in a row of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpugrad.text.padding import Rows, as_rows


class PackedBatch(NamedTuple):
    """What ``pack`` returns: int64, (rows, block) each.

    ids: the documents' tokens, then padding. targets: what follows each in its document, or
    ignore_index. documents: the number of the document a token belongs to, -1 in the padding.
    positions: places within the document, or within the piece of a cut one; 0 in the padding.
    """

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    @property
    def fill(self) -> float:
        """The share of places that hold a token."""
        return float((self.documents >= 0).mean()) if self.documents.size else 0.0


def pack(documents: Rows, block: int, pad: int = 0, ignore_index: int = -100) -> PackedBatch:
    """Pack documents into rows of `block` tokens.

    A document longer than `block` is cut into pieces of that length and a rest, which do not see
    each other; the last token of a piece still has the next one as its target. The pieces are
    placed the longest first, each where it leaves the least room (best-fit decreasing; Ding et al.,
    "Fewer truncations improve language modeling", 2024). Empty documents take no room. Raises
    ValueError for a block below 1, TypeError for documents that are not 1-D integers.
    """
    if block < 1:
        raise ValueError(f"pack: block must be at least 1, got {block}")
    arrays = as_rows(documents, "pack")
    pieces = [(n, start) for n, ids in enumerate(arrays) for start in range(0, len(ids), block)]
    lengths = [min(block, len(arrays[n]) - start) for n, start in pieces]
    places, count = _best_fit(lengths, block)
    shape = (count, block)
    batch = PackedBatch(
        np.full(shape, pad, np.int64),
        np.full(shape, ignore_index, np.int64),
        np.full(shape, -1, np.int64),
        np.zeros(shape, np.int64),
    )
    for (n, start), length, (row, column) in zip(pieces, lengths, places, strict=True):
        at = slice(column, column + length)
        following = arrays[n][start + 1 : start + length + 1]
        batch.ids[row, at] = arrays[n][start : start + length]
        batch.targets[row, column : column + len(following)] = following
        batch.documents[row, at] = n
        batch.positions[row, at] = np.arange(length)
    return batch


def _best_fit(lengths: list[int], block: int) -> tuple[list[tuple[int, int]], int]:
    """Return where each piece goes, (row, column), and the number of rows."""
    places = [(0, 0)] * len(lengths)
    room: list[tuple[int, int]] = []  # (places left, row), the fullest first
    count = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect_left(room, (lengths[i], -1))
        if found < len(room):
            left, row = room.pop(found)
        else:
            left, row, count = block, count, count + 1
        places[i] = row, block - left
        insort(room, (left - lengths[i], row))
    return places, count
