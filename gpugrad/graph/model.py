"""A computation graph as plain texts: what every picture of it is drawn from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..text import atomic_write
from . import collapse, markup, playback
from .summary import SYMBOLS
from .svg import LIMIT, render


class Vertex(NamedTuple):
    """A leaf, a constant or an operation.

    ``text`` is its formula where the operands have names (``c · e``), ``value`` and ``gradient``
    summarise the forward value and the whole gradient; "" where there is none.
    """

    kind: str  # "leaf", "constant" or "operation"
    op: str = ""
    name: str = ""
    text: str = ""
    value: str = ""
    gradient: str = ""

    @property
    def title(self) -> str:
        """What stands in the node: ``d = 2 · b``, ``+``, ``exp``, or the name of a leaf."""
        if self.kind == "constant":
            return self.name or self.value
        if self.kind == "leaf":
            return self.name or "leaf"
        formula = self.text or SYMBOLS.get(self.op, self.op)
        return f"{self.name} = {formula}" if self.name else formula


class Edge(NamedTuple):
    """An operand: from the vertex that made it to the operation that took it.

    ``value`` is what flowed forward, ``gradient`` what this edge alone passed back.
    """

    source: int
    target: int
    operand: str = ""
    value: str = ""
    gradient: str = ""


class Step(NamedTuple):
    """One operation of the reverse sweep: (edge, sum at its source afterwards) for every parent."""

    vertex: int
    changes: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Graph:
    """A computation graph to look at: vertices oldest first, edges, steps of the reverse sweep.

    In a notebook it shows itself.
    """

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    steps: tuple[Step, ...] = ()

    def svg(self, limit: int = LIMIT) -> str:
        """Return the picture: forward value above, gradient below each edge.

        Raises ValueError if there are more vertices than ``limit``.
        """
        return render(self, limit=limit)

    def narrate(self) -> list[str]:
        """Return what happens in each step of the reverse sweep, one text per frame."""
        return playback.narrate(self)

    def frames(self, limit: int = LIMIT) -> list[str]:
        """Return the reverse sweep as pictures, the first without gradients, then one per step."""
        return playback.frames(self, limit)

    def html(self, title: str = "Reverse sweep", limit: int = LIMIT) -> str:
        """Return a page of its own that plays the reverse sweep step by step in a browser."""
        return playback.page(self, title, limit)

    def dot(self) -> str:
        """Return the graph in Graphviz's language, of any size."""
        return markup.dot(self)

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart, as Markdown pages show it."""
        return markup.mermaid(self)

    def collapse(self) -> Graph:
        """Return the graph with every unbranched chain of nameless operations as one vertex."""
        return collapse.collapse(self)

    def save(self, path: str | os.PathLike[str], limit: int = LIMIT) -> None:
        """Write the graph in the format of the suffix: .svg, .html, .dot or .mmd."""
        writers: dict[str, Callable[[], str]] = {
            ".svg": lambda: self.svg(limit),
            ".html": lambda: self.html(limit=limit),
            ".dot": self.dot,
            ".mmd": self.mermaid,
        }
        suffix = Path(path).suffix
        if suffix not in writers:
            raise ValueError(f"graph: {path} has to end in {', '.join(writers)}")
        content = writers[suffix]()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content.encode())

    def _repr_svg_(self) -> str:
        return self.svg()
