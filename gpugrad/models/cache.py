"""Keys and values of the positions a model has already seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..backend import Array, xp_of
from ..tensor import Tensor

Counts = npt.NDArray[np.int64]


class KVCache:
    """Per layer the keys and values so far, (B, heads, T, D) each, T up to ``capacity``.

    The memory of a whole window is taken at once, when the first keys tell its shape. Decoding
    only: what is stored remembers no gradient.

    ``length`` is the number of positions, of the longest row where they differ. Rows that differ
    begin at position 0 all the same, so that each has the keys it would have alone: ``lengths``,
    (B,), then counts them, new keys go behind those of their row, and ``places`` says which keys a
    row may see. Padding behind a row is overwritten by what follows.
    """

    def __init__(self, n_layer: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.lengths: Counts | None = None
        self._expected: Counts | None = None
        self._layers: list[tuple[Array, Array] | None] = [None] * n_layer

    def expect(self, counts: npt.NDArray[np.integer]) -> None:
        """Say how many of the next positions count in each row, (B,); the others are padding."""
        self._expected = counts.astype(np.int64)
        if self.lengths is None:
            self.lengths = np.full(len(counts), self.length)

    def places(self, t: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the positions of the next t, (B, t), and the keys they see, (B, 1, t, S).

        Only where rows differ. A place of padding beyond the last position is named the last.
        """
        assert self.lengths is not None
        places = self.lengths[:, None] + np.arange(t)
        seen = np.arange(self.length + t) <= places[:, None, :, None]
        return np.minimum(places, self.capacity - 1), seen

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values behind those of a layer and return all there are.

        The last layer's call ends the step: ``length`` then counts the new positions.
        """
        if key.requires_grad or value.requires_grad:
            raise RuntimeError("KVCache: stored keys have no gradient; decode under gg.no_grad()")
        batch, heads, t, size = key.shape
        start, stop = self.length, self.length + t
        if stop > self.capacity:
            raise ValueError(
                f"KVCache: {start} positions and {t} new ones exceed the {self.capacity} there is "
                "room for"
            )
        kept = self._layers[layer]
        xp = xp_of(key._data)
        if kept is None:
            shape = (batch, heads, self.capacity, size)
            # zeros: a place not yet written has weight 0 where rows differ, but 0 * NaN is NaN
            kept = self._layers[layer] = xp.zeros(shape, key.dtype), xp.zeros(shape, value.dtype)
        if kept[0].shape[0] != batch:
            raise ValueError(
                f"KVCache: began with a batch of {kept[0].shape[0]}, now given one of {batch}"
            )
        for buffer, new in zip(kept, (key, value), strict=True):
            if self.lengths is None:
                buffer[:, :, start:stop] = new._data
            else:
                rows = xp.arange(batch)[:, None]
                columns = xp.asarray(self.lengths)[:, None] + xp.arange(t)
                buffer[rows, :, columns] = new._data.swapaxes(1, 2)
        if layer == len(self._layers) - 1:
            self._end_step(t)
        return Tensor(kept[0][:, :, :stop]), Tensor(kept[1][:, :, :stop])

    def reorder(self, rows: npt.ArrayLike) -> None:
        """Make row i a copy of what was row ``rows[i]``; there may be more or fewer than before."""
        rows = np.asarray(rows)
        if self.lengths is not None:
            self.lengths = self.lengths[rows]
        for layer, kept in enumerate(self._layers):
            if kept is None or np.array_equal(rows, np.arange(len(kept[0]))):
                continue
            index = xp_of(kept[0]).asarray(rows)
            self._layers[layer] = (self._taken(kept[0], index), self._taken(kept[1], index))

    def _taken(self, buffer: Array, rows: Array) -> Array:
        made = xp_of(buffer).zeros((len(rows), *buffer.shape[1:]), buffer.dtype)
        made[:, :, : self.length] = buffer[rows, :, : self.length]
        return made

    def _end_step(self, t: int) -> None:
        if self.lengths is None:
            self.length += t
            return
        self.lengths = self.lengths + (t if self._expected is None else self._expected)
        self.length, self._expected = int(self.lengths.max()), None
