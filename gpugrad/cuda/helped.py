"""What a replay on NumPy needs so that other processes can help: memory that they share.

Temporaries lie there, and copies of the arrays from outside that the step reads: those may be
changed by whoever has them, between two runs or by the step's optimiser, and stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import processes
from .recording import REAL, Repeated, Storage, Trace, Whole

RUNS = 2  # after which a step is taken to be one that is run again and again


class Helped:
    """The shared memory of one replay, its copies, and the helpers once there are any.

    ``launches`` are the numbers of those that read copies and write nothing from outside: helpers
    may take a part of them.
    """

    def __init__(self, trace: Trace) -> None:
        self.memory = processes.Memory()
        self.launches: set[int] = set()
        self._copied: dict[Storage, Any] = {}  # the bytes that there are, and their copy
        self._written = {b.storage for launch in trace.launches for b in launch.writes}
        self._team: processes.Team | None = None
        changed = set[int]()  # lists of readers, which overlapping storages have in common
        for number, launch in enumerate(trace.launches):
            real = {b.storage for b in launch.reads if b.storage.kind == REAL}
            changed.update(id(b.storage.readers) for b in launch.writes if b.storage.kind == REAL)
            is_prepared = isinstance(launch.function, Whole) and launch.function.is_prepared
            if is_prepared and all(id(storage.readers) not in changed for storage in real):
                self.launches.add(number)
                self._copied.update(dict.fromkeys(real))

    def copy(self, roots: Mapping[Storage, np.ndarray]) -> dict[Storage, np.ndarray]:
        """Return memory for copies, which ``ready`` fills from these bytes."""
        made = {storage: self.memory.zeros(storage.nbytes) for storage in self._copied}
        self._copied = {storage: (roots[storage], copy) for storage, copy in made.items()}
        self._unused = [roots[s] for s in roots if s.kind == REAL and s in self._written]
        return made

    def begin(self, calls: Sequence[Callable[[], None]]) -> bool:
        """Have helpers for calls that were made before; return whether there are any."""
        works = [c.works for c in calls if isinstance(c, Repeated) and c.works is not None]
        self._team = processes.Team(works, self.memory, self._unused)
        return len(self._team) > 0

    def ready(self) -> None:
        """Copy what there is now, and let helpers know that a run begins."""
        for source, copy in self._copied.values():
            copy[...] = source
        if self._team is not None:
            self._team.wake()
