"""Keys and values of the positions a model has already seen."""

from __future__ import annotations

from ..backend import Array, xp_of
from ..tensor import Tensor


class KVCache:
    """Per layer the keys and values so far, (B, heads, T, D) each, T up to ``capacity``.

    The memory of a whole window is taken at once, when the first keys tell its shape. Decoding
    only: what is stored remembers no gradient.
    """

    def __init__(self, n_layer: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers: list[tuple[Array, Array] | None] = [None] * n_layer

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
        if kept is None:
            xp = xp_of(key._data)
            shape = (batch, heads, self.capacity, size)
            kept = self._layers[layer] = xp.empty(shape, key.dtype), xp.empty(shape, value.dtype)
        if kept[0].shape[0] != batch:
            raise ValueError(
                f"KVCache: began with a batch of {kept[0].shape[0]}, now given one of {batch}"
            )
        for buffer, new in zip(kept, (key, value), strict=True):
            buffer[:, :, start:stop] = new._data
        if layer == len(self._layers) - 1:
            self.length = stop
        return Tensor(kept[0][:, :, :stop]), Tensor(kept[1][:, :, :stop])
