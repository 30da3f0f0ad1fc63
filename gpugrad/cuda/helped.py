"""Launches of a replay on NumPy that other processes help with, and the memory which they share.

Temporaries lie there. Arrays from outside do not: they may be changed by whoever has them, and stay
what they are. What a launch reads of them is copied ahead of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .. import processes
from .recording import REAL, Buffer, Launch, Repeated, Storage, Trace, Whole

KEPT = 1 << 24  # bytes of copies that are kept while a step runs; more are made for each launch
_LINE = 64  # bytes to a multiple of which copies begin


class Helped:
    """The shared memory of one replay, and the helpers that it has once they are asked for."""

    def __init__(self, trace: Trace) -> None:
        self.memory = processes.Memory()
        self._launches = trace.launches
        self._team: processes.Team | None = None
        reads = [_outside(launch.reads) for launch in trace.launches if _may_be_shared(launch)]
        every = list(dict.fromkeys(storage for some in reads for storage in some))
        size = _size(every)
        self._keeps = size <= KEPT
        self._room = self.memory.zeros(size if self._keeps else max(map(_size, reads)))
        self._places = self._laid_out(every) if self._keeps else {}

    def begin(
        self,
        roots: Mapping[Storage, np.ndarray],
        bound: Callable[[int, Mapping[Storage, np.ndarray]], Callable[[], None]],
        calls: list[Callable[[], None]],
    ) -> bool:
        """Have helpers for some of the calls, which are replaced; return whether there are any.

        ``roots`` are the bytes of the storages, ``bound(number, copies)`` makes the call of a
        launch with copies of some of these in their place.
        """
        lists = []
        current: set[Storage] = set()  # those whose copies are as they are
        for number, launch in enumerate(self._launches):
            if _outside(launch.writes):
                current.clear()  # what lies where may have changed
            if not _may_be_shared(launch):
                continue
            storages = _outside(launch.reads)
            copies = self._places or self._laid_out(storages)
            call = bound(number, copies)
            assert isinstance(call, Repeated)
            if processes.shareable([call.works], self.memory):
                pairs = [(roots[s], copies[s]) for s in storages if s not in current]
                if pairs:
                    call.works.insert(0, functools.partial(_copy, pairs))
                if self._keeps:
                    current.update(storages)
                lists.append(call.works)
                calls[number] = call
        self._team = processes.Team(lists, self.memory) if lists else None
        return bool(self._team)

    def wake(self) -> None:
        """Let helpers know that a run begins."""
        if self._team is not None:
            self._team.wake()

    def _laid_out(self, storages: Sequence[Storage]) -> dict[Storage, np.ndarray]:
        """Return a part of the room for each storage."""
        found, start = {}, 0
        for storage in storages:
            found[storage] = self._room[start : start + storage.nbytes]
            start += _size([storage])
        return found


def _may_be_shared(launch: Launch) -> bool:
    """Return whether a launch says what it does with values, changes nothing from outside, and
    reads less from there, which takes a copy, than it touches otherwise.
    """
    function = launch.function
    if not isinstance(function, Whole) or not function.is_prepared or function.copies:
        return False
    reads = _outside(launch.reads)
    inside = {b.storage for b in (*launch.reads, *launch.writes)}.difference(reads)
    return not _outside(launch.writes) and _size(reads) <= _size(inside)


def _outside(buffers: Sequence[Buffer]) -> list[Storage]:
    """Return the storages of arrays from outside."""
    return list(dict.fromkeys(b.storage for b in buffers if b.storage.kind == REAL))


def _size(storages: Collection[Storage]) -> int:
    """Return how many bytes copies take."""
    return sum(-(-storage.nbytes // _LINE) * _LINE for storage in storages)


def _copy(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    for source, copy in pairs:
        copy[...] = source
