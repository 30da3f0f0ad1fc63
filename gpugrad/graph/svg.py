"""The textbook figure of a computation graph, as SVG text and nothing else."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from .layout import Box, Layout, Link, Route, layout

if TYPE_CHECKING:
    from .model import Graph, Vertex

LIMIT = 500  # vertices that still make a picture
TITLE, LABEL = 16, 12  # font sizes
LINE = 15.0  # height of a line of label text
LONGEST = 44  # characters of a text before it is cut
LINE_COLOUR = "#3d3846"
FILL = {"leaf": "#eaf2fb", "constant": "#f6f5f4", "operation": "#fdf6e3"}
STYLE = """\
  text { font-family: Georgia, 'Times New Roman', 'DejaVu Serif', serif; fill: #241f31; }
  .value { fill: #1a5fb4; } .gradient { fill: #c01c28; }
  .wire { fill: none; stroke: #3d3846; stroke-width: 1.2; }
  .now > rect { stroke: #c01c28; stroke-width: 3; }
"""
ARROW = f"""\
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7"
  orient="auto"><path d="M0,0.8 L8,4 L0,7.2 z" fill="{LINE_COLOUR}"/></marker></defs>"""


class Playback(NamedTuple):
    """When things of the reverse sweep appear: step numbers per edge and per vertex."""

    edges: dict[int, int]
    vertices: dict[int, int]


def render(graph: Graph, limit: int = LIMIT) -> str:
    """Return the picture with the whole reverse sweep in it.

    Every element that a step of the sweep brings carries its number in ``data-step``.
    """
    return render_steps(graph, [None], limit)[0]


def render_steps(graph: Graph, steps: Sequence[int | None], limit: int = LIMIT) -> list[str]:
    """Return the picture as it is after each of these steps of the sweep; None means all."""
    count = len(graph.vertices)
    if count > limit:
        raise ValueError(
            f"graph: {count} vertices are more than a picture can show (limit={limit}). Record a "
            "smaller problem (fewer layers or time steps), collapse() chains, raise the limit, or "
            "take dot(), which Graphviz lays out"
        )
    titles = [_cut(v.title) for v in graph.vertices]
    totals = [_total(graph, i) for i in range(count)]
    inputs, outputs = Counter(e.target for e in graph.edges), Counter(e.source for e in graph.edges)
    sizes = [
        _node_size(title, total, max(outputs[i], inputs[i]))
        for i, (title, total) in enumerate(zip(titles, totals, strict=True))
    ]
    links = [Link(e.source, e.target, *_label_size(e.value, e.gradient)) for e in graph.edges]
    results = [i for i in range(count) if not outputs[i]]  # each with an arrow that ends nowhere
    for i, result in enumerate(results):
        v = graph.vertices[result]
        links.append(Link(result, count + i, *_label_size(v.value, v.gradient)))
    sizes += [(0.0, 0.0)] * len(results)
    placed = layout(sizes, links)
    when = schedule(graph)
    vertices = list(zip(graph.vertices, titles, totals, placed.boxes, strict=False))
    flows = [(e.value, e.gradient, when.edges.get(i)) for i, e in enumerate(graph.edges)]
    flows += [(graph.vertices[i].value, graph.vertices[i].gradient, 1) for i in results]
    routes = list(zip(placed.routes, flows, strict=True))
    return [
        _document(
            placed,
            [_node(*vertex, when.vertices.get(i), at) for i, vertex in enumerate(vertices)]
            + [_edge(route, *flow, at) for route, flow in routes],
        )
        for at in steps
    ]


def schedule(graph: Graph) -> Playback:
    """Return when the gradient of each edge appears: step 1 is the root's own, then the sweep."""
    edges: dict[int, int] = {}
    vertices: dict[int, int] = {}
    for number, step in enumerate(graph.steps, start=2):
        vertices[step.vertex] = number
        edges.update((edge, number) for edge, _ in step.changes)
    return Playback(edges, vertices)


def _total(graph: Graph, vertex: int) -> str:
    """Return the sum of the gradients that arrive over several edges, to be shown in the node."""
    v = graph.vertices[vertex]
    uses = sum(e.source == vertex and bool(e.gradient) for e in graph.edges)
    return f"\u2207 = {_cut(_minus(v.gradient))}" if uses > 1 and v.gradient else ""


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is, rather too much than too little."""
    wide = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text)
    return wide * size


def _node_size(title: str, total: str, edges: int) -> tuple[float, float]:
    width = max(text_width(title, TITLE), text_width(total, LABEL)) + 18.0
    return max(width, 38.0), max(52.0 if total else 38.0, 13.0 * edges)


def _label_size(value: str, gradient: str) -> tuple[float, float]:
    lines = [_cut(_minus(text)) for text in (value, gradient)]
    width = max(text_width(line, LABEL) for line in lines)
    return width + 8.0, 2 * LINE if any(lines) else 0.0


def _node(
    vertex: Vertex, title: str, total: str, box: Box, step: int | None, at: int | None
) -> str:
    left, top = box.x - box.width / 2, box.y - box.height / 2
    radius = 6 if vertex.kind == "constant" else min(box.width, box.height) / 2
    if vertex.kind == "operation" and len(title) > 1:
        radius = 10
    classes = "node now" if step is not None and step == at else "node"
    order = "" if step is None else f' data-step="{step}"'
    rect = (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{radius:.1f}" fill="{FILL[vertex.kind]}" stroke="{LINE_COLOUR}"/>'
    )
    height = box.y - 3 if total else box.y + 5
    parts = [
        f'<g class="{classes}"{order}>',
        rect,
        _text(box.x, height, title, TITLE, italic=vertex.kind == "leaf"),
    ]
    if total and at is None:
        parts.append(_text(box.x, box.y + 16, total, LABEL, "gradient total"))
    return "".join([*parts, "</g>"])


def _edge(route: Route, value: str, gradient: str, step: int | None, at: int | None) -> str:
    (x, y), *rest = route.points
    path = [f"M{x:.1f},{y:.1f}"]
    for i, (a, b) in enumerate(rest):
        if i % 2 == 0:  # across a column: straight
            path.append(f"H{a:.1f}")
        else:  # between columns: from horizontal to horizontal
            middle = (x + a) / 2
            path.append(f"C{middle:.1f},{y:.1f} {middle:.1f},{b:.1f} {a:.1f},{b:.1f}")
        x, y = a, b
    label = route.label
    parts = [f'<path class="wire" d="{" ".join(path)}" marker-end="url(#arrow)"/>']
    if value:
        parts.append(_text(label.x, label.y - 4, _cut(_minus(value)), LABEL, "value"))
    if gradient and (at is None or (step is not None and step <= at)):
        order = "" if step is None else f' data-step="{step}"'
        parts.append(
            _text(label.x, label.y + LINE - 3, _cut(_minus(gradient)), LABEL, "gradient", order)
        )
    return f'<g class="edge">{"".join(parts)}</g>'


def _text(
    x: float, y: float, text: str, size: int, kind: str = "", more: str = "", italic: bool = False
) -> str:
    style = ' font-style="italic"' if italic else ""
    name = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="middle"{name}{style}{more}>'
        f"{escape(text, quote=False)}</text>"
    )


def _document(placed: Layout, drawn: list[str]) -> str:
    size = f'width="{placed.width:.0f}" height="{placed.height:.0f}"'
    view = f"0 0 {placed.width:.0f} {placed.height:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" {size}>'
    style = f"<style>\n{STYLE}</style>"
    return "\n".join([head, style, ARROW, f'<rect {size} fill="white"/>', *drawn, "</svg>", ""])


def _cut(text: str) -> str:
    """Return a text without characters XML refuses, and not longer than a label may be."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= LONGEST else clean[: LONGEST - 1] + "\u2026"


def _minus(text: str) -> str:
    """Return numbers with the sign that is as wide as a plus."""
    return text.replace("-", "\u2212")
