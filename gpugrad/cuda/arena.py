"""One arena for the temporaries of a recorded step: an offset for each, from when it is in use."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALIGNMENT = 256  # bytes; what cudaMalloc guarantees
_TRIES = 200
_MANY = 700  # storages, from where on NumPy places them faster than Python
_COMPARISONS = 4_000_000  # of one storage with another, of all tries but the first two: 0.2 s


class Plan(NamedTuple):
    """Where each storage begins and how long the arena is, in bytes.

    ``lower_bound`` is the largest sum of (aligned) sizes in use at one launch: no arena is smaller.
    """

    offsets: tuple[int, ...]
    size: int
    lower_bound: int


def plan(
    sizes: Sequence[int], first: Sequence[int], last: Sequence[int], alignment: int = ALIGNMENT
) -> Plan:
    """Return offsets at which storages in use at the same launch do not overlap.

    Storage i has ``sizes[i]`` bytes and is in use from launch ``first[i]`` to ``last[i]``, both
    included. Offsets are multiples of the alignment; storages without bytes are at 0. The same
    storages always get the same plan. ValueError for lengths that differ, a negative size, a
    storage that ends before it begins, an alignment below 1.

    The smallest arena is NP-hard to find. Storages are placed one after another, each at the
    lowest offset that is free as long as it is in use (first fit), in several orders: by size, by
    how full the device is while they are in use ("breadth": Pisarchyk and Lee, "Efficient memory
    management for deep neural net inference", 2020) and more. In each order, what came to lie
    beyond the lower bound then moves some way to the front and all are placed anew ("squeaky
    wheel": Joslin and Clements, 1999), until an arena is within a thousandth of the lower bound or
    enough was tried: about 0.2 s.
    """
    some, size, begin, end = _checked("plan", sizes, first, last, alignment)
    if not len(some):
        return Plan((0,) * len(sizes), 0, 0)
    fullest = _fullest(size, begin, end)
    bound = int(fullest.max())
    found, high = _search(size, begin, end, fullest, bound)
    offsets = np.zeros(len(sizes), np.int64)
    offsets[some] = found
    return Plan(tuple(offsets.tolist()), high, bound)


def lower_bound(
    sizes: Sequence[int], first: Sequence[int], last: Sequence[int], alignment: int = ALIGNMENT
) -> int:
    """Return the ``lower_bound`` of a plan without searching for one; arguments as for ``plan``."""
    some, size, begin, end = _checked("lower_bound", sizes, first, last, alignment)
    return int(_in_use(size, begin, end)[1].max()) if len(some) else 0


def _checked(
    function: str, sizes: Sequence[int], first: Sequence[int], last: Sequence[int], alignment: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return which storages have bytes, and of these the aligned sizes, first and last launches."""
    size, begin, end = (np.asarray(given, np.int64).reshape(-1) for given in (sizes, first, last))
    if not len(size) == len(begin) == len(end):
        raise ValueError(
            f"arena.{function}: {len(size)} sizes, {len(begin)} first and {len(end)} last launches"
        )
    if alignment < 1:
        raise ValueError(
            f"arena.{function}: the alignment must be at least 1 byte, not {alignment}"
        )
    for i in np.flatnonzero((size < 0) | (end < begin))[:1]:
        raise ValueError(
            f"arena.{function}: storage {i} has {size[i]} bytes, from launch {begin[i]} to {end[i]}"
        )
    some = np.flatnonzero(size)
    return some, -(-size[some] // alignment) * alignment, begin[some], end[some]


def _in_use(size: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the launches at which storages begin, and the bytes in use at each of them."""
    launches = np.array(sorted(set(first.tolist())))  # only here does what is in use grow
    begun, ended = np.argsort(first), np.argsort(last)
    allocated = np.append(0, np.cumsum(size[begun]))
    freed = np.append(0, np.cumsum(size[ended]))
    return launches, (
        allocated[np.searchsorted(first[begun], launches, "right")]
        - freed[np.searchsorted(last[ended], launches, "left")]
    )


def _fullest(size: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return for each storage the most bytes in use at one launch of its life."""
    launches, in_use = _in_use(size, first, last)
    start, stop = np.searchsorted(launches, first), np.searchsorted(launches, last, "right")
    lives = np.stack([start, stop], axis=1).reshape(-1)
    return np.maximum.reduceat(np.append(in_use, 0), lives)[::2]


def _search(
    size: np.ndarray, first: np.ndarray, last: np.ndarray, fullest: np.ndarray, bound: int
) -> tuple[list[int], int]:
    """Return the offsets and the size of the smallest arena found."""
    orders = _orders(size, first, last, fullest)
    lists = size.tolist(), first.tolist(), last.tolist()
    place = _first_fit if len(size) < _MANY else _first_fit_of_many
    best: list[int] = []
    smallest = 0
    for number in range(min(_TRIES, 2 + _COMPARISONS // len(size) ** 2)):
        order = orders[number % len(orders)]
        offsets, high = place(order, *lists)
        if not best or high < smallest:
            best, smallest = offsets, high
        if smallest - bound <= bound // 1000:
            break
        orders[number % len(orders)] = _promoted(order, offsets, lists[0], bound)
    return best, smallest


def _orders(
    size: np.ndarray, first: np.ndarray, last: np.ndarray, fullest: np.ndarray
) -> list[list[int]]:
    """Return orders to place storages in, those that do best on training steps first."""
    life = last - first + 1
    keys = (
        (first, -life, -size),  # the last one counts most
        (-life, -last, -fullest),
        (-life, first, -fullest),
        (first, -size, -life, -fullest),
        (first, -size * life),
    )
    return [np.lexsort(key).tolist() for key in keys]


def _promoted(order: list[int], offsets: list[int], size: list[int], bound: int) -> list[int]:
    """Return the order with what lies beyond the bound moved towards the front."""
    places = {}
    for place, i in enumerate(order):
        places[i] = place if offsets[i] + size[i] <= bound else 0.85 * place
    return sorted(order, key=places.__getitem__)


def _first_fit(
    order: list[int], size: list[int], first: list[int], last: list[int]
) -> tuple[list[int], int]:
    """Place storages in the order given, each as low as those placed before it leave room."""
    offsets = [0] * len(size)
    placed: list[tuple[int, int, int, int]] = []  # offset, its end, first and last launch
    for i in order:
        room, begin, end = size[i], first[i], last[i]
        offset = 0
        for start, stop, since, until in placed:  # from the lowest up
            if since <= end and until >= begin:
                if start - offset >= room:
                    break
                if stop > offset:
                    offset = stop
        offsets[i] = offset
        bisect.insort(placed, (offset, offset + room, begin, end))
    return offsets, max(stop for _, stop, _, _ in placed)


def _first_fit_of_many(
    order: list[int], size: list[int], first: list[int], last: list[int]
) -> tuple[list[int], int]:
    """Do what ``_first_fit`` does, in time that grows less with the number of storages."""
    offsets = [0] * len(size)
    # of what was placed, from the lowest up: where it begins and ends, its first and last launch
    rows = np.empty((4, len(size)), np.int64)
    for placed, i in enumerate(order):
        room, begin, end = size[i], first[i], last[i]
        starts, stops, since, until = rows[:, :placed]
        meeting = np.flatnonzero((since <= end) & (until >= begin))
        offset = 0
        if len(meeting):
            filled = np.maximum.accumulate(stops[meeting])
            gaps = starts[meeting]  # below each, down to what is filled
            gaps[1:] -= filled[:-1]
            wide = gaps >= room
            place = int(wide.argmax())
            if not wide[place]:
                offset = int(filled[-1])
            elif place:
                offset = int(filled[place - 1])
        offsets[i] = offset
        at = int(starts.searchsorted(offset))
        rows[:, at + 1 : placed + 1] = rows[:, at:placed]
        rows[:, at] = offset, offset + room, begin, end
    return offsets, max(offset + room for offset, room in zip(offsets, size, strict=True))
