"""Where the temporaries of a recorded step lie: how long each lives, and which overwrite others."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from . import arena
from .recording import ARENA, Buffer, Storage, Trace


class Layout:
    """Where the temporaries of a trace lie in one arena.

    ``kept`` are Buffers that live outside of the arena, beyond the step; ``outputs`` are those
    that are read after the last launch.
    """

    def __init__(
        self, trace: Trace, outputs: Sequence[Buffer] = (), kept: Sequence[Buffer] = ()
    ) -> None:
        apart = {b.storage for b in kept}
        first: dict[Storage, int] = {}
        last: dict[Storage, int] = {}
        for number, launch in enumerate(trace.launches):
            for buffer in (*launch.reads, *launch.writes):
                first.setdefault(buffer.storage, number)
                last[buffer.storage] = number
        for buffer in outputs:
            first.setdefault(buffer.storage, len(trace.launches))
            last[buffer.storage] = len(trace.launches)
        placed = {s for s in first if s.kind == ARENA and s not in apart}
        self._same = _overwritten(trace, placed, first, last)
        for storage, other in self._same.items():
            last[other] = max(last[other], last[storage])
        self.storages = [s for s in first if s in placed and s not in self._same]
        self.first = [first[s] for s in self.storages]
        self.last = [last[s] for s in self.storages]
        self.others = [s for s in {**first, **dict.fromkeys(apart)} if s not in placed]

    @functools.cached_property
    def plan(self) -> arena.Plan:
        """The arena: searched for when somebody asks for it."""
        return arena.plan([s.nbytes for s in self.storages], self.first, self.last)

    @property
    def offsets(self) -> dict[Storage, int]:
        """Where each storage begins."""
        found = dict(zip(self.storages, self.plan.offsets, strict=True))
        return {**found, **{storage: found[other] for storage, other in self._same.items()}}


def _overwritten(
    trace: Trace, placed: set[Storage], first: dict[Storage, int], last: dict[Storage, int]
) -> dict[Storage, Storage]:
    """Return the storages that may be another one: results that overwrite what they are made of.

    That is what an elementwise function of NumPy can do with an argument which nothing reads any
    more, and whose elements lie as those of the result do.
    """
    same: dict[Storage, Storage] = {}
    for number, launch in enumerate(trace.launches):
        if not isinstance(launch.function, np.ufunc) or launch.function.signature is not None:
            continue
        (out,) = launch.writes
        if out.storage not in placed or first[out.storage] != number:
            continue
        layout = out.shape, out.strides, out.dtype, out.offset, out.storage.nbytes
        for storage in {b.storage for b in launch.reads if b.storage in placed}:
            views = [b for b in launch.reads if b.storage is storage]
            if last[storage] == number and all(
                (b.shape, b.strides, b.dtype, b.offset, storage.nbytes) == layout for b in views
            ):
                same[out.storage] = same.get(storage, storage)
                break
    return same
