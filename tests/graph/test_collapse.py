"""collapse: unbranched chains become one vertex; what flows at their ends is kept."""

from __future__ import annotations

import gpugrad as gg


def test_a_chain_becomes_one_vertex() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = x
    for _ in range(3):
        y = gg.tanh(y)
    out = gg.exp(y).sum()
    graph = gg.graph.capture(out, {"x": x})
    short = graph.collapse()
    assert [v.title for v in short.vertices] == ["x", "5 operations: 3 tanh → exp → sum"]
    assert [e.gradient for e in short.edges] == [graph.edges[0].gradient]
    assert short.vertices[-1].value == graph.vertices[-1].value
    assert [step.vertex for step in short.steps] == [1]
    assert len(short.frames()) == 3


def test_names_branches_and_operands_end_a_chain() -> None:
    x = gg.tensor(1.0, requires_grad=True)
    named = gg.exp(gg.sin(x))
    branch = gg.log(named)
    out = gg.tanh(gg.cos(branch)) + gg.sqrt(gg.square(branch))
    short = gg.graph.capture(out, {"x": x, "named": named}).collapse()
    assert [v.title for v in short.vertices] == [
        "x",
        "sin",
        "named = exp(…)",
        "log",
        "2 operations: cos → tanh",
        "2 operations: square → sqrt",
        "+",
    ]
    assert [(e.source, e.target) for e in short.edges] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (3, 5),
        (4, 6),
        (5, 6),
    ]


def test_any_graph_stays_one(root) -> None:
    graph = gg.graph.capture(root)
    short = graph.collapse()
    assert short.collapse() == short
    assert short.vertices[-1].gradient == graph.vertices[-1].gradient
    assert {v.name for v in short.vertices} == {v.name for v in graph.vertices}
    assert all(e.source < e.target for e in short.edges)
    assert [v for v in short.vertices if v.kind != "operation"] == [
        v for v in graph.vertices if v.kind != "operation"
    ]
    short.svg()
    short.frames()


def test_a_chain_too_long_for_a_picture_is_drawn() -> None:
    y = gg.tensor(1.0, requires_grad=True)
    for _ in range(2_000):
        y = gg.sin(y)
    assert "2000 operations: 2000 sin" in gg.graph.capture(y).collapse().svg()
