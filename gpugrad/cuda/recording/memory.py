"""Which arrays from outside of a step lie on common bytes."""

from __future__ import annotations

import bisect
from typing import Any

from ..kernel import address
from .buffer import REAL, Storage
from .shadow import extent


def storage_of(array: Any) -> Storage:
    """Return a storage of all the bytes between an array's first element and its last."""
    low, high = extent(array.shape, array.strides, array.itemsize)
    return Storage(REAL, high - low, array, start=address(array) + low)


class Regions:
    """Ranges of addresses that do not overlap, and the storages that lie in each.

    Arrays that NumPy does not know as views of each other may share memory: two ``np.frombuffer``
    of one bytearray, an array and what ``from_dlpack`` made of it. So storages are put together by
    address: those of one region have one list of readers.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._storages: list[list[Storage]] = []

    def add(self, storage: Storage) -> None:
        """Have a storage share its readers with those that overlap it."""
        start, stop = storage.start, storage.start + storage.nbytes
        if start == stop:
            return
        found = slice(
            bisect.bisect_right(self._stops, start), bisect.bisect_left(self._starts, stop)
        )
        together = [storage, *(s for region in self._storages[found] for s in region)]
        readers = {id(s.readers): s.readers for s in together}
        joined = [reader for some in readers.values() for reader in some]
        for one in together:
            one.readers = joined
        self._starts[found] = [min([start, *self._starts[found]])]
        self._stops[found] = [max([stop, *self._stops[found]])]
        self._storages[found] = [together]
