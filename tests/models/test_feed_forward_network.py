"""FeedForwardNetwork: any directed acyclic multigraph, refused where it is none."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import FeedForwardNetwork

UNITS = {"s": ("softmax", 2), "y4": ("sigmoid", 1), "y5": ("identity", 1)}
EDGES = [
    ("r1", "s[0]", "t1"),
    ("r2", "s[1]", "t2"),
    ("r1", "y4", "t1"),
    ("r2", "y4", "t3"),
    ("r1", "y5", "t2"),
    ("s[0]", "y5", "t2"),
    ("y4", "y5", "t3"),
]


def network(**given: object) -> FeedForwardNetwork:
    return FeedForwardNetwork(["r1", "r2"], UNITS, EDGES, dtype="float64", **given)


def test_outputs_and_parameters() -> None:
    net = network(weights={"t1": 0.5, "t2": -0.3, "t3": 0.8})
    assert [name for name, _ in net.named_parameters()] == [
        "weights.t1",
        "weights.t2",
        "weights.t3",
    ]
    out = net(gg.tensor([-1.0, 1.0], "float64"))
    s1 = 1 / (1 + np.exp(-0.3 + 0.5))
    y4 = 1 / (1 + np.exp(0.5 - 0.8))
    np.testing.assert_allclose(out["s"].detach(), [s1, 1 - s1], rtol=1e-14)
    assert out["y4"].item() == pytest.approx(y4, rel=1e-14)
    assert out["y5"].item() == pytest.approx(0.3 - 0.3 * s1 + 0.8 * y4, rel=1e-14)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,)], ids=str)
def test_a_batch_is_its_rows(shape: tuple[int, ...]) -> None:
    net = network()
    x = np.random.default_rng(0).standard_normal((*shape, 2))
    out = {name: value.detach().numpy() for name, value in net(gg.tensor(x)).items()}
    assert {name: value.shape for name, value in out.items()} == {
        "s": (*shape, 2),
        "y4": shape,
        "y5": shape,
    }
    for index in np.ndindex(shape):
        one = net(gg.tensor(x[index]))
        for name, value in out.items():
            np.testing.assert_allclose(value[index], one[name].detach(), rtol=1e-13)


def test_parallel_edges_biases_and_functions_of_ones_own() -> None:
    net = FeedForwardNetwork(
        ["x"],
        {"square": (lambda z: z * z, 1), "constant": ("identity", 1)},
        [
            ("x", "square", "a"),
            ("x", "square", "b"),
            ("x", "square", "a"),
            ("1", "square", "c"),
            ("1", "constant", "c"),
        ],
        weights={"a": 2.0, "b": 3.0, "c": 0.5},
        dtype="float64",
    )
    out = net(gg.tensor([[2.0], [0.0]], "float64"))
    assert out["square"].tolist() == [14.5**2, 0.25]
    assert out["constant"].tolist() == [0.5, 0.5]
    out["square"].sum().backward()
    assert net.weights.a.grad.item() == 2 * 14.5 * 2 * 2.0  # two edges, x = 2


def test_units_in_any_order() -> None:
    shuffled = FeedForwardNetwork(
        ["r1", "r2"],
        dict(reversed(UNITS.items())),
        EDGES,
        weights={"t1": 0.5, "t2": -0.3, "t3": 0.8},
        dtype="float64",
    )
    r = gg.tensor([0.3, -0.7], "float64")
    same = network(weights={"t1": 0.5, "t2": -0.3, "t3": 0.8})
    assert shuffled(r)["y5"].item() == same(r)["y5"].item()


def test_gradients() -> None:
    net = network()
    r = gg.tensor([[-1.0, 1.0], [0.3, 2.0]], "float64", requires_grad=True)
    gg.testing.gradcheck(lambda r: net(r)["y5"] + net(r)["s"][..., 1], r)
    (net(r)["y5"] ** 2).sum().backward()
    for p in net.parameters():
        ends = []
        for step in (1e-6, -2e-6):
            with gg.no_grad():
                p += step
            ends.append((net(r)["y5"] ** 2).sum().item())
        with gg.no_grad():
            p += 1e-6
        assert p.grad.item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_training_recovers_the_weights() -> None:
    gg.manual_seed(2)
    teacher = network(weights={"t1": 0.7, "t2": -1.2, "t3": 0.4})
    x = gg.random.normal(size=(64, 2), dtype="float64")
    target = teacher(x)["y5"].detach()
    student = network()
    optimizer = gg.optim.Adam(student.parameters(), lr=0.1)
    for _ in range(200):
        loss = gg.nn.functional.mse_loss(student(x)["y5"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-8
    np.testing.assert_allclose(
        [p.item() for p in student.parameters()], [0.7, -1.2, 0.4], rtol=0, atol=1e-3
    )


def test_the_picture_shows_units_weights_and_gradients() -> None:
    net = network(weights={"t1": 0.5, "t2": -0.3, "t3": 0.8})
    graph = net.graph()
    assert [v.title for v in graph.vertices] == [
        "r1",
        "r2",
        "s = softmax, 2 outputs",
        "y4 = \u03c3",
        "y5 = identity",
    ]
    assert [e.value for e in graph.edges] == [
        "→[0] t1 = 0.5",
        "→[1] t2 = -0.3",
        "t1 = 0.5",
        "t3 = 0.8",
        "t2 = -0.3",
        "[0]→ t2 = -0.3",
        "t3 = 0.8",
    ]
    assert not any(e.gradient for e in graph.edges)
    net(gg.tensor([-1.0, 1.0], "float64"))["y5"].backward()
    t3 = net.weights.t3.grad.item()
    assert net.graph().edges[-1].gradient == f"{t3:.4g}"
    ET.fromstring(graph.svg())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": [*EDGES, ("y5", "y4", "t1")]}, r"make a cycle: y[45] -> y[45] -> y[45]"),
        ({"edges": [*EDGES, ("y4", "y4", "t1")]}, r"make a cycle: y4 -> y4"),
        ({"edges": [*EDGES, ("q", "y4", "t1")]}, r"names 'q'; there are 1, r1, r2, s, y4, y5"),
        ({"edges": [*EDGES, ("s[2]", "y4", "t1")]}, r"'s\[2\]', but 's' has 2 outputs"),
        ({"edges": [*EDGES, ("y4", "r1", "t1")]}, r"leads into the input r1"),
        ({"edges": EDGES[1:]}, r"no edge leads to s\[0\]"),
        ({"edges": [*EDGES, ("r1", "y4", "train")]}, r"cannot have the name 'train'"),
        ({"edges": [*EDGES, ("r1", "y4", "a b")]}, r"cannot have the name 'a b'"),
        ({"weights": {"t9": 1.0}}, r"no edge carries the weight 't9'; those on edges are t1, "),
        ({"edges": [*EDGES, ("r1", "y4")]}, r"is \(source, target, weight\), got \('r1', 'y4'\)"),
        ({"edges": [*EDGES, "abc"]}, r"is \(source, target, weight\), got 'abc'"),
        ({"inputs": ["r1", "r2", "s"]}, r"the name 's' is used twice"),
        ({"inputs": ["r1", "r2", "r1"]}, r"the name 'r1' is used twice"),
        ({"units": {**UNITS, "s": ("sofmax", 2)}}, r"unknown activation 'sofmax'; take .*softmax"),
        ({"units": {**UNITS, "s": ("softmax", 0)}}, r"unit 's' has 0 outputs"),
    ],
)
def test_what_is_no_network_is_refused(change: dict, message: str) -> None:
    given = {"inputs": ["r1", "r2"], "units": UNITS, "edges": EDGES, **change}
    with pytest.raises(ValueError, match=r"^FeedForwardNetwork: .*" + message):
        FeedForwardNetwork(**given)


def test_lists_are_inputs() -> None:
    net = network()
    assert net([-1.0, 1.0])["y5"].item() == net(gg.tensor([-1.0, 1.0]))["y5"].item()


def test_a_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(..., 2\) for r1, r2, got float32\[3\]"):
        network()(gg.ones(3))
