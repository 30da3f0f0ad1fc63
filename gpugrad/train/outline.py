"""What a recorded step comes to: its launches, and when each part of its memory is in use.

The layers of a model repeat each other, so the outline of a deep model follows from a recording of
one with three layers: what the middle layer launches, in each pass forward and backward and where
gradients are added up, is there once for every layer but the first and the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..cuda import arena
from ..cuda.layout import Layout
from ..cuda.recording import ARENA, INPUT, Buffer, Launch, Storage, Trace

RECORDED = 3  # layers: the first, the last, and one for all between them


class Irregular(ValueError):
    """The launches of a step do not repeat with the layers."""


class Entry(NamedTuple):
    """One launch, or ``times`` equal ones."""

    operation: str
    name: str
    flops: int
    nbytes: int
    times: int = 1


class Life(NamedTuple):
    """The bytes of a storage in the arena, and the first and the last launch that touch it."""

    first: int
    last: int
    size: int


@dataclasses.dataclass(frozen=True)
class Outline:
    """A recorded step without its Buffers.

    ``kept`` are bytes outside of the arena. ``backward`` is the launch with which the first
    backward pass begins, ``update`` the first one of the optimiser: how many launches there are
    where there is none.
    """

    entries: list[Entry]
    lives: list[Life]
    kept: int
    backward: int
    update: int

    @property
    def launches(self) -> int:
        """How many there are."""
        return sum(entry.times for entry in self.entries)

    @property
    def activations(self) -> int:
        """The bytes of the arena in use when the first backward pass begins."""
        return sum(life.size for life in self.lives if life.first < self.backward <= life.last)

    def arena(self) -> arena.Plan:
        """Return the plan of the arena; this is what takes time."""
        return arena.plan(*self._columns())

    def lower_bound(self) -> int:
        """Return the most bytes in use at one launch: no arena is smaller."""
        return arena.lower_bound(*self._columns())

    def repeated(self, begin: int, end: int, times: int, kept: int) -> Outline:
        """Return this outline with some launches counted more often, and more bytes kept."""
        entries = [
            entry._replace(times=entry.times * times) if begin <= place < end else entry
            for place, entry in enumerate(self.entries)
        ]
        return dataclasses.replace(self, entries=entries, kept=self.kept + kept)

    def _columns(self) -> tuple[list[int], list[int], list[int]]:
        return (
            [life.size for life in self.lives],
            [life.first for life in self.lives],
            [life.last for life in self.lives],
        )


class Recorded:
    """A trace and its outline; the optimiser's part begins with the launch ``update``."""

    def __init__(
        self, trace: Trace, results: Sequence[Buffer], update: Launch | None = None
    ) -> None:
        self.trace = trace
        layout = Layout(trace, results)
        self.storages = layout.storages
        launches = trace.launches
        entries = [Entry(one.operation, one.name, one.flops, one.nbytes) for one in launches]
        self.outline = Outline(
            entries,
            [
                Life(first, last, storage.nbytes)
                for storage, first, last in zip(
                    layout.storages, layout.first, layout.last, strict=True
                )
            ],
            sum(storage.nbytes for storage in layout.others),
            next(
                (i for i, e in enumerate(entries) if e.operation.endswith("_backward")),
                len(entries),
            ),
            next((i for i, launch in enumerate(launches) if launch is update), len(entries)),
        )

    def touched(self) -> dict[Storage, list[int]]:
        """Return the launches that touch each storage."""
        found: dict[Storage, list[int]] = {}
        for place, launch in enumerate(self.trace.launches):
            for buffer in (*launch.reads, *launch.writes):
                found.setdefault(buffer.storage, []).append(place)
        return found

    def kept_by_update(self) -> int:
        """Return the bytes outside of the arena that the optimiser touches, gradients aside."""
        return sum(
            storage.nbytes
            for storage, places in self.touched().items()
            if storage.kind not in (ARENA, INPUT) and places[-1] >= self.outline.update
        )


class _Run(NamedTuple):
    """The launches of the middle layer in one sweep over the layers."""

    start: int
    stop: int
    ascending: bool

    @property
    def length(self) -> int:
        """How many there are."""
        return self.stop - self.start


def deepened(
    recorded: Recorded, layer_of: Mapping[Storage, int], layers: int, update: Recorded | None = None
) -> Outline:
    """Return the outline of a step of a model with so many layers, from one with three.

    ``layer_of`` says to which layer (0, 1, 2) a parameter belongs. ``update`` is the optimiser's
    part alone, recorded with two layers: what it touches grows with the number of parameters.
    Raises Irregular where the launches do not repeat with the layers.
    """
    small, more = recorded.outline, layers - RECORDED
    owners, homes = _owners(recorded, layer_of)
    runs = _runs(owners)

    count = len(small.entries) + 1  # results are in use behind the last launch
    within: list[_Run | None] = [None] * count
    moved = list(range(count))  # where launches that do not repeat have gone
    for run in runs:
        within[run.start : run.stop] = [run] * run.length
        moved[run.stop :] = [place + more * run.length for place in moved[run.stop :]]

    def placed(launch: int, run: _Run, layer: int) -> int:
        """Return where a launch of the middle layer, or beside it, is for another layer."""
        before = layer - 1 if run.ascending else layers - 2 - layer
        return moved[run.start] + before * run.length + launch - run.start

    def near(launch: int) -> _Run | None:
        """Return the run in whose middle layer, or in whose layers beside it, a launch is."""
        if launch >= small.update or launch >= len(owners) or owners[launch] is None:
            return None
        beside = (r for r in runs if r.start - r.length <= launch < r.stop + r.length)
        return within[launch] or next(beside, None)

    grown = _grown_sizes(recorded, update, more)
    lives = []
    for number, (storage, life) in enumerate(zip(recorded.storages, small.lives, strict=True)):
        here, there = within[life.first], within[life.last]
        if here is not None:
            there = near(life.last)
            step = here.length if here.ascending else -here.length
            begin = placed(life.first, here, 1)
            for layer in range(1, layers - 1):
                end = moved[life.last] if there is None else placed(life.last, there, layer)
                lives.append((begin, number, end, life.size))
                begin += step
            continue
        end = moved[life.last]
        if there is not None:
            home = homes[storage]
            if home not in (0, 2):
                raise Irregular("what no layer made is needed by the middle one last")
            end = placed(life.last, there, 1 if home == 0 else layers - 2)
        lives.append((moved[life.first], number, end, grown[number]))
    lives.sort()
    repeated = {place for place, run in enumerate(within) if run is not None}
    each = sum(
        storage.nbytes
        for storage, places in recorded.touched().items()
        if storage.kind != ARENA and repeated.issuperset(places)  # the middle layer's own
    )
    if update is not None:
        each += recorded.kept_by_update() - update.kept_by_update()
    return Outline(
        _grown_entries(small, update, more, runs),
        [Life(first, last, size) for first, _, last, size in lives],
        small.kept + more * each,
        moved[small.backward],
        moved[small.update],
    )


def _owners(
    recorded: Recorded, layer_of: Mapping[Storage, int]
) -> tuple[list[int | None], dict[Storage, int | None]]:
    """Return the layer of each launch ahead of the optimiser, and the layer that made a storage.

    A launch belongs to the layer whose parameter it touches, or else whose results. Of two layers,
    as one hands over to the other, it belongs to the one that comes later in this sweep, and so do
    all that follow.
    """
    homes: dict[Storage, int | None] = dict(layer_of)
    owners: list[int | None] = []
    left: int | None = None  # the layer before, in this sweep
    latest: int | None = None
    for launch in recorded.trace.launches[: recorded.outline.update]:
        storages = [buffer.storage for buffer in (*launch.reads, *launch.writes)]
        found = {layer_of[s] for s in storages if s in layer_of}
        found = found or {h for s in storages if (h := homes.get(s)) is not None}
        if len(found) == 2:
            found.discard(left if left in found else latest)
        owner = found.pop() if len(found) == 1 else None
        if owner is None:
            left = None
        elif owner == left:
            owner = latest
        elif owner != latest:
            left, latest = latest, owner
        owners.append(owner)
        for storage in storages:
            if storage.kind == ARENA:
                homes.setdefault(storage, owner)
        if owner is None and any(homes.get(storage) == 1 for storage in storages):
            raise Irregular("what all layers made is read at once")
    for storage in recorded.storages:
        homes.setdefault(storage, None)
    return owners, homes


def _runs(owners: Sequence[int | None]) -> list[_Run]:
    """Return where the middle layer is at work: until the next layer begins."""
    owned = [(place, owner) for place, owner in enumerate(owners) if owner is not None]
    changes = [owned[i] for i in range(len(owned)) if not i or owned[i - 1][1] != owned[i][1]]
    runs = []
    for i, (place, owner) in enumerate(changes):
        if owner == 1:
            beside = [layer for _, layer in changes[max(0, i - 1) : i + 2]]
            if beside not in ([0, 1, 2], [2, 1, 0]):
                raise Irregular("the layers do not follow each other")
            runs.append(_Run(place, changes[i + 1][0], beside[0] == 0))
    return runs


def _grown_entries(
    small: Outline, update: Recorded | None, more: int, runs: Sequence[_Run]
) -> list[Entry]:
    """Return the launches, those of the middle layer more often and those of the update larger."""
    entries = list(small.entries)
    for run in runs:
        for place in range(run.start, run.stop):
            entries[place] = entries[place]._replace(times=entries[place].times * (1 + more))
    if update is not None:
        alone = update.outline.entries
        if [e.name for e in alone] != [e.name for e in entries[small.update :]]:
            raise Irregular("the optimiser launches other kernels when it is alone")
        for place, less in enumerate(alone, small.update):
            entry = entries[place]
            entries[place] = entry._replace(
                nbytes=entry.nbytes + more * (entry.nbytes - less.nbytes)
            )
    return entries


def _grown_sizes(recorded: Recorded, update: Recorded | None, more: int) -> list[int]:
    """Return the bytes of each storage, with those of the optimiser's own as they grow."""
    sizes = [life.size for life in recorded.outline.lives]
    own = [
        i for i, life in enumerate(recorded.outline.lives) if life.first >= recorded.outline.update
    ]
    alone = [] if update is None else update.outline.lives
    if len(own) != len(alone):
        raise Irregular("the optimiser has other temporaries when it is alone")
    for place, less in zip(own, alone, strict=True):
        sizes[place] += more * (sizes[place] - less.size)
    return sizes
