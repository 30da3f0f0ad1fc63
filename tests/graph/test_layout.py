"""layout: no boxes overlap, nothing leaves the canvas, edges meet only their own ends."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from gpugrad.graph.layout import Box, Layout, Link, layout

SIZE = (40.0, 30.0)


def random_graph(seed: int, count: int, more: int) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    sizes = [tuple(rng.uniform(20, 120, 2)) for _ in range(count)]
    ends = [(int(rng.integers(0, t)), t) for t in range(1, count)]
    ends += [tuple(sorted(rng.choice(count, 2, replace=False).tolist())) for _ in range(more)]
    return sizes, [Link(s, t, *rng.uniform(0, 80, 2)) for s, t in ends]


def overlap(a: Box, b: Box) -> bool:
    slack = 1e-6
    return (
        abs(a.x - b.x) < (a.width + b.width) / 2 - slack
        and abs(a.y - b.y) < (a.height + b.height) / 2 - slack
    )


def inside(placed: Layout, box: Box) -> bool:
    return (
        box.x - box.width / 2 >= 0
        and box.x + box.width / 2 <= placed.width
        and box.y - box.height / 2 >= 0
        and box.y + box.height / 2 <= placed.height
    )


def crosses(box: Box, start: tuple[float, float], end: tuple[float, float]) -> bool:
    """Return whether the rectangle around a segment meets a box."""
    (x, y), (a, b) = start, end
    return overlap(box, Box((x + a) / 2, (y + b) / 2, abs(a - x), abs(b - y) + 1e-3))


@pytest.mark.parametrize(("seed", "count", "more"), [(s, 5 * s + 2, 4 * s) for s in range(8)])
def test_random_multigraphs(seed: int, count: int, more: int) -> None:
    sizes, links = random_graph(seed, count, more)
    placed = layout(sizes, links)
    assert [(b.width, b.height) for b in placed.boxes] == sizes
    everything = [*placed.boxes, *(r.label for r in placed.routes)]
    assert not [pair for pair in combinations(everything, 2) if overlap(*pair)]
    assert all(inside(placed, box) for box in everything)
    for link, route in zip(links, placed.routes, strict=True):
        assert placed.boxes[link.source].x < placed.boxes[link.target].x
        (x, y), (a, b) = route.points[0], route.points[-1]
        for (px, py), box, side in (((x, y), link.source, 1), ((a, b), link.target, -1)):
            end = placed.boxes[box]
            assert px == pytest.approx(end.x + side * end.width / 2)
            assert abs(py - end.y) <= end.height / 2
        for segment in zip(route.points, route.points[1:], strict=False):
            for i, box in enumerate(placed.boxes):
                if i not in (link.source, link.target):
                    assert not crosses(box, *segment), "an edge runs through a node"
    assert layout(sizes, links) == placed


def test_a_chain_is_straight() -> None:
    placed = layout([SIZE] * 6, [Link(i, i + 1, 30.0, 30.0) for i in range(5)])
    assert len({round(box.y, 6) for box in placed.boxes}) == 1
    assert all(len({round(y, 6) for _, y in r.points}) == 1 for r in placed.routes)


def test_crossings_are_removed() -> None:
    """Two chains whose nodes alternate do not need to cross."""
    links = [Link(0, 3), Link(1, 2), Link(2, 5), Link(3, 4), Link(4, 6), Link(5, 6)]
    placed = layout([SIZE] * 7, links)
    first = placed.boxes[0].y < placed.boxes[1].y
    assert (placed.boxes[3].y < placed.boxes[2].y) == first
    assert (placed.boxes[4].y < placed.boxes[5].y) == first


def test_a_leaf_stands_before_its_first_user() -> None:
    placed = layout([SIZE] * 5, [Link(0, 1), Link(1, 2), Link(2, 4), Link(3, 4)])
    assert placed.boxes[3].x == placed.boxes[2].x


def test_one_node() -> None:
    placed = layout([SIZE], [])
    assert inside(placed, placed.boxes[0])
