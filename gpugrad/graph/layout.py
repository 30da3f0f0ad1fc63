"""Where the nodes and edge labels of a directed acyclic graph go: layers from left to right.

The method of Sugiyama, Tagawa and Toda (1981): layers by longest path; a long edge gets a bend in
every layer it passes, the first of them as large as its label; the order inside the layers by
barycentres, as few crossings as found; then heights that keep edges straight, by least squares with
minimal distances. Deterministic. Boxes cannot overlap: each layer is a column of its own, and
inside a column all boxes keep their distance.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

COLUMN_GAP = 26.0  # room for edges to change their height
ROW_GAP = 14.0
MARGIN = 14.0
ORDER_SWEEPS = 12
HEIGHT_SWEEPS = 24
BEND = 8.0  # how much straighter an edge should be than its ends


class Link(NamedTuple):
    """An edge to place: from, to, and the size of its label."""

    source: int
    target: int
    width: float = 0.0
    height: float = 0.0


class Box(NamedTuple):
    """A rectangle by its centre and size."""

    x: float
    y: float
    width: float
    height: float


class Route(NamedTuple):
    """The way of an edge, and the box of its label.

    Between its points the edge runs straight across a column, then on to the next, in turn.
    """

    points: tuple[tuple[float, float], ...]
    label: Box


class Layout(NamedTuple):
    """The size of the canvas, a box per node, a route per edge."""

    width: float
    height: float
    boxes: list[Box]
    routes: list[Route]


@dataclass(eq=False, repr=False)
class _Slot:
    """A node, a label or a bend in one layer, with its neighbours in the layers beside it."""

    layer: int
    width: float
    height: float
    is_bend: bool = False
    before: list[_Slot] = field(default_factory=list)
    after: list[_Slot] = field(default_factory=list)
    place: int = 0  # in its layer
    y: float = 0.0


def layout(sizes: Sequence[tuple[float, float]], links: Sequence[Link]) -> Layout:
    """Place nodes of these (width, height) and the links between them.

    Nodes are numbered so that links lead from lower to higher numbers.
    """
    ranks = _ranks(len(sizes), links)
    nodes = [_Slot(2 * r, w, h) for r, (w, h) in zip(ranks, sizes, strict=True)]
    chains = [_chain(nodes[link.source], nodes[link.target], link) for link in links]
    layers = _layers(nodes, chains)
    _order(layers)
    _heights(layers)
    for chain in chains:
        _straighten(chain, layers)
    return _placed(layers, nodes, chains)


def _ranks(count: int, links: Sequence[Link]) -> list[int]:
    """Return the longest path to every node; a source stands just before its first user."""
    ranks = [0] * count
    users: list[list[int]] = [[] for _ in range(count)]
    is_source = [True] * count
    for link in sorted(links, key=lambda link: link.target):
        users[link.source].append(link.target)
        is_source[link.target] = False
        ranks[link.target] = max(ranks[link.target], ranks[link.source] + 1)
    for node in range(count):
        if is_source[node] and users[node]:
            ranks[node] = min(ranks[user] for user in users[node]) - 1
    return ranks


def _chain(source: _Slot, target: _Slot, link: Link) -> list[_Slot]:
    """Return the slots of a link, its ends included, joined to each other."""
    chain = [source, _Slot(source.layer + 1, link.width, link.height, True)]
    chain += [_Slot(layer, 0.0, 0.0, True) for layer in range(source.layer + 2, target.layer)]
    chain.append(target)
    for a, b in pairwise(chain):
        a.after.append(b)
        b.before.append(a)
    return chain


def _layers(nodes: list[_Slot], chains: list[list[_Slot]]) -> list[list[_Slot]]:
    """Return the layers in a first order: depth first from the results, operands in order."""
    depth = max(slot.layer for slot in nodes) + 1
    layers: list[list[_Slot]] = [[] for _ in range(depth)]
    seen: set[int] = set()
    stack = [slot for slot in nodes if not slot.after]
    while stack:
        slot = stack.pop()
        if id(slot) not in seen:
            seen.add(id(slot))
            slot.place = len(layers[slot.layer])
            layers[slot.layer].append(slot)
            stack.extend(reversed(slot.before))
    return layers


def _order(layers: list[list[_Slot]]) -> None:
    """Reorder the layers by barycentres, forth and back, and keep the order that crosses least."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    since = 0
    for sweep in range(ORDER_SWEEPS):
        if not fewest or since == 4:
            break
        forth = sweep % 2 == 0
        for layer in layers if forth else reversed(layers):
            layer.sort(key=lambda slot: _barycentre(_side(slot, forth), slot.place))
            _number(layer)
        found = _crossings(layers)
        since += 1
        if found < fewest:
            best, fewest, since = [list(layer) for layer in layers], found, 0
    for layer, kept in zip(layers, best, strict=True):
        layer[:] = kept
        _number(layer)


def _number(layer: list[_Slot]) -> None:
    for place, slot in enumerate(layer):
        slot.place = place


def _side(slot: _Slot, forth: bool) -> list[_Slot]:
    return slot.before if forth else slot.after


def _barycentre(slots: Sequence[_Slot], otherwise: float) -> float:
    return sum(slot.place for slot in slots) / len(slots) if slots else otherwise


def _crossings(layers: list[list[_Slot]]) -> int:
    """Return how many pairs of segments between neighbouring layers cross."""
    count = 0
    for layer in layers:
        ends: list[int] = []
        for slot in layer:
            places = sorted(s.place for s in slot.after)
            count += sum(len(ends) - bisect_right(ends, place) for place in places)
            for place in places:
                insort(ends, place)
    return count


def _heights(layers: list[list[_Slot]]) -> None:
    """Move every slot towards the mean height of its neighbours, as far as the order allows."""
    for layer in layers:
        _settle(layer, [0.0] * len(layer))
    for sweep in range(HEIGHT_SWEEPS):
        for layer in layers if sweep % 2 else layers[::-1]:
            forth = sweep % 2 == 1
            last = sweep >= HEIGHT_SWEEPS - 4  # the last words are both sides'
            sides = [x.before + x.after if last else _side(x, forth) for x in layer]
            _settle(layer, [_wish(x, side) for x, side in zip(layer, sides, strict=True)])


def _wish(slot: _Slot, side: list[_Slot]) -> float:
    """Return the mean height of a slot's neighbours; bends of one edge hold to each other most."""
    if len(side) < 2:  # most of them, in large graphs
        return side[0].y if side else slot.y
    weights = [BEND if slot.is_bend and s.is_bend else 1.0 for s in side]
    heights = sum(w * s.y for w, s in zip(weights, side, strict=True))
    return heights / sum(weights)


def _straighten(chain: list[_Slot], layers: list[list[_Slot]]) -> None:
    """Give the label and the bends of an edge one height where the slots beside them let it."""
    run: list[_Slot] = []
    low, high = -math.inf, math.inf
    for slot in chain[1:] if chain[-1].height == 0 else chain[1:-1]:  # an arrow's end moves along
        bottom, top = _room(slot, layers[slot.layer])
        if max(low, bottom) > min(high, top):
            _level(run, low, high, chain)
            run, low, high = [], -math.inf, math.inf
        run.append(slot)
        low, high = max(low, bottom), min(high, top)
    _level(run, low, high, chain)


def _room(slot: _Slot, layer: list[_Slot]) -> tuple[float, float]:
    """Return the least and the greatest height that a slot can have between its neighbours."""
    low, high = -math.inf, math.inf
    if slot.place:
        above = layer[slot.place - 1]
        low = above.y + (above.height + slot.height) / 2 + ROW_GAP
    if slot.place + 1 < len(layer):
        below = layer[slot.place + 1]
        high = below.y - (below.height + slot.height) / 2 - ROW_GAP
    return (low, high) if low <= high else (slot.y, slot.y)  # tight, and rounded


def _level(run: list[_Slot], low: float, high: float, chain: list[_Slot]) -> None:
    """Set one height within bounds: that of an end with no other edge there, or the mean."""
    source, target = chain[0], chain[-1]
    height = sum(slot.y for slot in run) / len(run)
    if len(source.after) == 1 and low <= source.y <= high:
        height = source.y
    elif len(target.before) == 1 and low <= target.y <= high:
        height = target.y
    for slot in run:
        slot.y = min(max(height, low), high)


def _settle(layer: list[_Slot], wishes: Sequence[float]) -> None:
    """Set the heights nearest to the wishes in least squares that keep order and distances.

    With the minimal distances subtracted this is isotonic regression: pool adjacent violators
    (Ayer et al. 1955).
    """
    offsets = [0.0]
    for above, below in pairwise(layer):
        offsets.append(offsets[-1] + (above.height + below.height) / 2 + ROW_GAP)
    blocks: list[list[float]] = []  # mean and size
    for wish, offset in zip(wishes, offsets, strict=True):
        blocks.append([wish - offset, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, size = blocks.pop()
            other = blocks[-1]
            other[0] = (other[0] * other[1] + mean * size) / (other[1] + size)
            other[1] += size
    means = [mean for mean, size in blocks for _ in range(int(size))]
    for slot, mean, offset in zip(layer, means, offsets, strict=True):
        slot.y = mean + offset


def _placed(layers: list[list[_Slot]], nodes: list[_Slot], chains: list[list[_Slot]]) -> Layout:
    """Return boxes and routes on a canvas whose corner is (0, 0)."""
    centres, widths, x = [], [], MARGIN
    for layer in layers:
        width = max((slot.width for slot in layer), default=0.0)
        centres.append(x + width / 2)
        widths.append(width)
        x += width + COLUMN_GAP
    slots = [slot for layer in layers for slot in layer]
    top = min(slot.y - slot.height / 2 for slot in slots) - MARGIN
    bottom = max(slot.y + slot.height / 2 for slot in slots) + MARGIN

    def box(slot: _Slot) -> Box:
        return Box(centres[slot.layer], slot.y - top, slot.width, slot.height)

    def port(slot: _Slot, chain: list[_Slot], side: list[_Slot], end: int) -> tuple[float, float]:
        """Return where an edge touches a node: spread over its side in the order of the edges."""
        ordered = sorted(range(len(side)), key=lambda i: (side[i].y, i))
        index = next(i for i, s in enumerate(side) if s is chain[1 if end > 0 else -2])
        share = (ordered.index(index) + 1) / (len(side) + 1) - 0.5
        return (
            centres[slot.layer] + end * slot.width / 2,
            slot.y - top + share * slot.height * 0.8 * (len(side) > 1),
        )

    routes = []
    for chain in chains:
        points = [port(chain[0], chain, chain[0].after, 1)]
        for slot in chain:  # straight across a column, so that no edge meets a box beside it
            half = widths[slot.layer] / 2
            left, right = centres[slot.layer] - half, centres[slot.layer] + half
            if slot is chain[0]:
                points.append((right, points[0][1]))
            elif slot is chain[-1]:
                end = port(slot, chain, slot.before, -1)
                points += [(left, end[1]), end]
            else:
                points += [(left, slot.y - top), (right, slot.y - top)]
        routes.append(Route(tuple(points), box(chain[1])))
    return Layout(x - COLUMN_GAP + MARGIN, bottom - top, [box(slot) for slot in nodes], routes)
