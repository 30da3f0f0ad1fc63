"""Unbranched chains of operations as one vertex each, for graphs too long to look at."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Edge, Graph, Vertex


def collapse(graph: Graph) -> Graph:
    """Return the graph in which every chain of nameless operations is its last operation.

    An operation joins its user if that is the only one, is nameless too, and each has no other
    operand than the chain.
    """
    inputs = Counter(edge.target for edge in graph.edges)
    users = Counter(edge.source for edge in graph.edges)

    def plain(i: int) -> bool:
        v = graph.vertices[i]
        return v.kind == "operation" and not v.name and inputs[i] == 1

    joined = {
        edge.source: edge.target
        for edge in graph.edges
        if plain(edge.source) and plain(edge.target) and users[edge.source] == 1
    }
    chains: dict[int, list[int]] = {}
    for i in range(len(graph.vertices)):
        end = i
        while end in joined:
            end = joined[end]
        chains.setdefault(end, []).append(i)
    kept = sorted(chains)
    number = {i: new for new, end in enumerate(kept) for i in chains[end]}
    vertices = tuple(_merged(graph, chains[end]) for end in kept)
    edges: list[Edge] = []
    moved: dict[int, int] = {}
    for i, edge in enumerate(graph.edges):
        if edge.source not in joined:
            moved[i] = len(edges)
            source, target = number[edge.source], number[edge.target]
            edges.append(edge._replace(source=source, target=target))
    steps = []
    for step in graph.steps:
        changes = tuple((moved[e], total) for e, total in step.changes if e in moved)
        if changes or not step.changes:
            steps.append(step._replace(vertex=number[step.vertex], changes=changes))
    return type(graph)(vertices, tuple(edges), tuple(steps))


def _merged(graph: Graph, chain: list[int]) -> Vertex:
    """Return the last vertex of a chain under the names of all its operations."""
    last = graph.vertices[chain[-1]]
    if len(chain) == 1:
        return last
    runs = [(op, len(list(run))) for op, run in groupby(graph.vertices[i].op for i in chain)]
    text = " \u2192 ".join(op if n == 1 else f"{n} {op}" for op, n in runs)
    return last._replace(text=f"{len(chain)} operations: {text}")
