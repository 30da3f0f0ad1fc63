"""Computation graphs to look at: pictures, the reverse sweep step by step, explained gradients.

    with gg.graph.keep_values():
        d = 2 * b
        e = a + d
        L = c * e
    gg.graph.draw(L, "figure.svg", names=locals())   # .svg, .html, .dot or .mmd
    print(gg.graph.explain(L, b, names=locals()))

`capture` turns a recorded result into a `Graph` of texts, without changing, freeing or keeping what
was recorded; everything else is drawn from that.
"""

from __future__ import annotations

import os
from typing import Any

from ..tensor import Tensor
from .capture import capture, keep_values
from .explain import Explanation, Path, explain
from .model import Edge, Graph, Step, Vertex
from .svg import LIMIT

__all__ = [
    "Edge",
    "Explanation",
    "Graph",
    "Path",
    "Step",
    "Vertex",
    "capture",
    "draw",
    "explain",
    "keep_values",
]


def draw(
    root: Tensor,
    path: str | os.PathLike[str],
    names: Any = None,
    *,
    gradient: Any = None,
    gradients: bool = True,
    limit: int = LIMIT,
) -> Graph:
    """Draw the graph that ``root`` was computed by into a file, and return it.

    The suffix decides: .svg is a picture, .html plays the reverse sweep, .dot and .mmd are texts
    for Graphviz and Mermaid. Pictures of more than ``limit`` vertices raise ValueError; other
    arguments and errors are those of `capture`.
    """
    graph = capture(root, names, gradient=gradient, gradients=gradients)
    graph.save(path, limit)
    return graph
