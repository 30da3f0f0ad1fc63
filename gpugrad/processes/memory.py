"""Memory that a process and its helpers share."""

from __future__ import annotations

import bisect
import mmap
import weakref

import numpy as np

_everyone: weakref.WeakSet[Memory] = weakref.WeakSet()


class Memory:
    """Memory that helpers share: what is taken of it, and what lies in it.

    A process that the user forks finds the same memory, and so has to leave it alone.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        _everyone.add(self)

    def zeros(self, size: int) -> np.ndarray:
        """Return so many bytes, at the beginning of a page; MemoryError if there are none."""
        try:
            room = mmap.mmap(-1, max(1, size))
        except OSError as error:
            raise MemoryError(f"no {size:,} bytes of shared memory: {error}") from error
        found = np.frombuffer(room, np.uint8)[:size]
        start = found.ctypes.data
        place = bisect.bisect(self._starts, start)
        self._starts.insert(place, start)
        self._stops.insert(place, start + size)
        return found

    def covers(self, array: np.ndarray) -> bool:
        """Return whether all elements of an array lie there."""
        low, high = np.lib.array_utils.byte_bounds(array)
        place = bisect.bisect(self._starts, low) - 1
        return place >= 0 and high <= self._stops[place]

    def others(self) -> list[tuple[int, int]]:
        """Return where the memory of all others begins and ends."""
        return [
            place
            for other in list(_everyone)
            if other is not self
            for place in zip(other._starts, other._stops, strict=True)
        ]
