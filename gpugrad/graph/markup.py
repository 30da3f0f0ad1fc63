"""Computation graphs as text for other programs: Graphviz's DOT, and Mermaid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Edge, Graph, Vertex

_DOT_SHAPES = {"leaf": "ellipse", "constant": "plaintext", "operation": "box"}
_MERMAID_SHAPES = {"leaf": '(["{}"])', "constant": '["{}"]', "operation": '("{}")'}


def dot(graph: Graph) -> str:
    """Return the graph as a DOT digraph from left to right."""
    used = {edge.source for edge in graph.edges}
    lines = ["digraph computation {", "  rankdir=LR;", "  node [style=rounded];"]
    for i, vertex in enumerate(graph.vertices):
        label = _dot_quoted("\n".join(_lines(vertex, i not in used)))
        lines.append(f"  n{i} [label={label}, shape={_DOT_SHAPES[vertex.kind]}];")
    for edge in graph.edges:
        label = _dot_quoted("\n".join(filter(None, _flow(edge))))
        lines.append(f"  n{edge.source} -> n{edge.target} [label={label}];")
    return "\n".join([*lines, "}", ""])


def mermaid(graph: Graph) -> str:
    """Return the graph as a Mermaid flowchart from left to right."""
    used = {edge.source for edge in graph.edges}
    lines = ["flowchart LR"]
    for i, vertex in enumerate(graph.vertices):
        label = _mermaid_escaped("\n".join(_lines(vertex, i not in used)))
        lines.append(f"  n{i}{_MERMAID_SHAPES[vertex.kind].format(label)}")
    for edge in graph.edges:
        label = _mermaid_escaped("\n".join(filter(None, _flow(edge))))
        arrow = f'-->|"{label}"|' if label else "-->"
        lines.append(f"  n{edge.source} {arrow} n{edge.target}")
    return "\n".join([*lines, ""])


def _lines(vertex: Vertex, is_result: bool) -> list[str]:
    """Return the title of a node; a result's own value and gradient have no edge."""
    return [vertex.title, *filter(None, _flow(vertex))] if is_result else [vertex.title]


def _flow(of: Edge | Vertex) -> tuple[str, str]:
    return of.value, f"\u2207 {of.gradient}" if of.gradient else ""


def _dot_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _mermaid_escaped(text: str) -> str:
    for character, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, code)
    return text.replace("`", "#96;").replace("\n", "<br/>")
