"""capture: names, values and gradients of any recorded graph; nothing else is touched."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.engine import reachable
from gpugrad.graph.summary import summary
from gpugrad.graph.sweep import sweep


def by_name(graph: gg.graph.Graph) -> dict[str, Any]:
    return {vertex.name: vertex for vertex in graph.vertices}


def test_the_textbook_figure(figure) -> None:
    graph = gg.graph.capture(figure.L, vars(figure))
    found = {v.name: (v.title, v.value, v.gradient) for v in graph.vertices if v.name}
    assert found == {
        "a": ("a", "3", "-2"),
        "b": ("b", "1", "-4"),
        "c": ("c", "-2", "5"),
        "d": ("d = 2 · b", "2", "-2"),
        "e": ("e = a + d", "5", "-2"),
        "L": ("L = c · e", "-10", "1"),
    }
    flows = [
        (graph.vertices[e.source].title[0], graph.vertices[e.target].title[0], e.value, e.gradient)
        for e in graph.edges
    ]
    assert sorted(flows) == [
        ("2", "d", "2", ""),
        ("a", "e", "3", "-2"),
        ("b", "d", "1", "-4"),
        ("c", "L", "-2", "5"),
        ("d", "e", "2", "-2"),
        ("e", "L", "5", "-2"),
    ]


def test_values_by_names_alone() -> None:
    b = gg.tensor(1.0, requires_grad=True)
    d = b + 1.0
    e = d + 2.0
    known = by_name(gg.graph.capture(e, {"d": d}))
    assert known["d"].value == "2"
    assert [v.value for v in gg.graph.capture(e + 1.0).vertices] == ["1", "", "", "5"]


def test_every_part_of_a_shared_value(figure) -> None:
    graph = gg.graph.capture(figure.c * figure.c + figure.c, {"c": figure.c})
    (c,) = (i for i, v in enumerate(graph.vertices) if v.name == "c")
    assert [e.gradient for e in graph.edges if e.source == c] == ["-2", "-2", "1"]
    assert [e.operand for e in graph.edges if e.source == c] == ["x", "y", "y"]
    assert graph.vertices[c].gradient == "-3"


def test_sums_have_the_bits_of_grad(root) -> None:
    leaves = [n for n in all_parents(root) if isinstance(n, gg.Tensor)]
    swept = sweep(root, None, "test")
    root.backward()
    assert leaves
    for x in leaves:
        np.testing.assert_array_equal(swept.gradients[x], x.grad.numpy())


def all_parents(root: gg.Tensor) -> list[Any]:
    found = [p for node in reachable([root._node]) for p in node.parents]
    return list(dict.fromkeys(found))


def test_nothing_changes(root) -> None:
    nodes = reachable([root._node])
    before = [(n, n.saved, n.parents, n.hooks) for n in nodes]
    graph = gg.graph.capture(root)
    assert [(n, n.saved, n.parents, n.hooks) for n in reachable([root._node])] == before
    assert all(x.grad is None for x in all_parents(root) if isinstance(x, gg.Tensor))
    operations = [v for v in graph.vertices if v.kind == "operation"]
    assert len(operations) == len(nodes)
    assert sum(len(n.parents) for n in nodes) == len(
        [e for e in graph.edges if graph.vertices[e.source].kind != "constant"]
    )
    assert all(
        graph.edges[i].gradient for step in graph.steps for i, total in step.changes if total
    )
    root.backward()


def test_hooks_are_not_called() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = x * 2.0
    called = []
    y.register_hook(called.append)
    y.retain_grad()
    gg.graph.capture(y.sum())
    assert not called
    assert y.grad is None


def test_nothing_is_kept_alive() -> None:
    with gg.graph.keep_values():
        x = gg.tensor(np.ones(100), requires_grad=True)
        y = gg.exp(x).sum()
    graph = gg.graph.capture(y, {"x": x})
    node, data = weakref.ref(y._node), weakref.ref(x)
    gc.disable()
    try:
        del x, y
        assert node() is None
        assert data() is None
    finally:
        gc.enable()
    assert "x" in by_name(graph)


def test_module_names() -> None:
    model = gg.nn.Sequential(gg.nn.Linear(3, 2), gg.nn.Tanh())
    out = model(gg.ones((4, 3)))
    for names, prefix in ((model, ""), ({"model": model, "other": 3}, "model.")):
        graph = gg.graph.capture(out, names, gradient=gg.ones((4, 2)))
        leaves = {v.name for v in graph.vertices if v.kind == "leaf"}
        assert leaves == {f"{prefix}0.weight", f"{prefix}0.bias"}


def test_constants_are_drawn_once_and_named() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    data = gg.tensor([3.0, 4.0])
    graph = gg.graph.capture((x * data * data).sum(), {"data": data})
    constants = [v for v in graph.vertices if v.kind == "constant"]
    assert [(v.name, v.value) for v in constants] == [("data", "[3, 4]")]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32(-0.0), "0"),
        (np.array(1234567.0), "1.235e+06"),
        (np.array(7), "7"),
        (np.array([1.0, np.nan, -np.inf]), "[1, nan, -inf]"),
        (np.full((2, 3), 2.0), "float64[2, 3] ‖4.9‖"),
        (np.full((5,), 3e38, "float32"), "float32[5] ‖6.71e+38‖"),
        (np.zeros((0, 3), "float32"), "float32[0, 3]"),
        (np.zeros((9,), "int64"), "int64[9]"),
        (np.full((3, 3), 2.0).astype(gg.bfloat16), "bfloat16[3, 3] ‖6‖"),
        ({0: np.array(2.0)}, "2"),
        ({0: np.array(2.0), 1: np.array(3.0)}, ""),
        (2, "2"),
        (True, "True"),
    ],
    ids=repr,
)
def test_summaries(array: Any, text: str) -> None:
    assert summary(array) == text


def test_refusals(figure) -> None:
    with pytest.raises(TypeError, match=r"graph: the root must be a tensor, got float"):
        gg.graph.capture(1.0)
    with pytest.raises(ValueError, match="not computed by recorded operations"):
        gg.graph.capture(figure.a)
    with pytest.raises(TypeError, match=r"names must be a module or a mapping .* got list"):
        gg.graph.capture(figure.L, [figure.a])
    with pytest.raises(RuntimeError, match=r"graph: only an output of one element .*\(2,\)"):
        gg.graph.capture(figure.L * gg.ones(2, dtype="float64"))
    figure.L.backward()
    with pytest.raises(RuntimeError, match=r"multiply saved was freed .* retain_graph=True"):
        gg.graph.capture(figure.L)
    graph = gg.graph.capture(figure.L, vars(figure), gradients=False)
    assert by_name(graph)["e"].value == "5"
    assert not any(e.gradient for e in graph.edges)


def test_a_changed_array_is_refused() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = gg.exp(x)
    with gg.no_grad():
        y += 1.0
    with pytest.raises(RuntimeError, match="changed that array in place"):
        gg.graph.capture(y.sum())


def test_depth_is_limited_by_memory_only() -> None:
    x = y = gg.tensor(1.0, requires_grad=True)
    for _ in range(5_000):
        y = y + x
    graph = gg.graph.capture(y, {"x": x})
    assert by_name(graph)["x"].gradient == "5001"
    with pytest.raises(ValueError, match=r"5001 vertices are more than .* collapse\(\) .* dot\(\)"):
        graph.svg()
    assert graph.dot().count("->") == 10_000


def test_values_are_kept_inside_the_context_only() -> None:
    x = gg.tensor(1.0, requires_grad=True)
    y = x + 1.0
    with gg.graph.keep_values():
        z = gg.sin(gg.cos(y))
        with gg.no_grad():
            assert not (x + 1.0).requires_grad
    w = (z + 3.0) + 4.0
    values = [(v.op, v.value != "") for v in gg.graph.capture(w).vertices if v.op]
    assert values == [("add", True), ("cos", True), ("sin", True), ("add", False), ("add", True)]


def test_values_outlive_a_backward_pass() -> None:
    x, weight = (gg.tensor([0.5, 2.0, 1.0], requires_grad=True) for _ in range(2))
    with gg.graph.keep_values():
        low, high = gg.split(gg.nn.functional.layer_norm(x * 2.0, (3,), weight), [1])
        loss = low.sum() + gg.exp(high).sum()
    loss.backward()
    graph = gg.graph.capture(loss, gradients=False)
    assert {v.op: v.value for v in graph.vertices}["multiply"] == "[1, 4, 2]"
    outputs = [i for i, v in enumerate(graph.vertices) if v.op in ("[0]", "[1]")]
    for i in outputs:
        (edge,) = (e for e in graph.edges if e.target == i)
        assert edge.value == graph.vertices[i].value != ""


def test_the_library_does_not_load_it() -> None:
    program = "import sys, gpugrad as gg; assert 'gpugrad.graph' not in sys.modules; gg.graph.draw"
    subprocess.run([sys.executable, "-c", program], check=True)
