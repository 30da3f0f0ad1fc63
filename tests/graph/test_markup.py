"""dot and mermaid: every vertex and edge, numbers and names, escaped."""

from __future__ import annotations

import re

import pytest

import gpugrad as gg


def test_dot_of_the_figure(figure) -> None:
    lines = gg.graph.capture(figure.L, vars(figure)).dot().splitlines()
    assert lines[0] == "digraph computation {"
    assert lines[-1] == "}"
    assert '  n4 [label="e = a + d", shape=box];' in lines
    assert '  n6 [label="L = c · e\\n-10\\n∇ 1", shape=box];' in lines
    assert '  n4 -> n6 [label="5\\n∇ -2"];' in lines


def test_mermaid_of_the_figure(figure) -> None:
    lines = gg.graph.capture(figure.L, vars(figure)).mermaid().splitlines()
    assert lines[0] == "flowchart LR"
    assert '  n0(["b"])' in lines
    assert '  n4 -->|"5<br/>∇ -2"| n6' in lines


def test_all_of_any_graph(root) -> None:
    graph = gg.graph.capture(root)
    for text, arrow in ((graph.dot(), r" -> "), (graph.mermaid(), r" -->")):
        assert len(re.findall(arrow, text)) == len(graph.edges)
        assert len(set(re.findall(r"^  (n\d+)[ \[(]", text, re.MULTILINE))) == len(graph.vertices)


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "<b>#1;", "a\nb", "`x`"])
def test_names_are_escaped(figure, name: str) -> None:
    graph = gg.graph.capture(figure.L, {name: figure.a})
    for text in (graph.dot(), graph.mermaid()):
        assert len(text.splitlines()) == len(graph.vertices) + len(graph.edges) + (
            1 if text.startswith("flow") else 4
        )
        for line in text.splitlines():
            assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0
    assert name not in graph.mermaid() or name == "back\\slash"
