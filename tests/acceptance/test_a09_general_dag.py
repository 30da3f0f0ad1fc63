"""A9: a multigraph with shared weights.

z = (t1 r1, t2 r2), s = softmax(z), y4 = sigmoid(t1 r1 + t3 r2), y5 = t2 r1 + t2 s1 + t3 y4,
J = -log s2 + y5**2, with r1 = -1, r2 = 1. A weight stands on several edges, and s feeds both the
loss and y5.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import FeedForwardNetwork

R = (-1.0, 1.0)


def loss(theta: gg.Tensor, r: gg.Tensor) -> gg.Tensor:
    t1, t2, t3 = theta
    r1, r2 = r
    z = gg.stack([t1 * r1, t2 * r2])
    s = gg.exp(z - gg.logsumexp(z))
    y4 = gg.sigmoid(t1 * r1 + t3 * r2)
    y5 = t2 * r1 + t2 * s[0] + t3 * y4
    return -gg.log(s[1]) + y5**2


def at(theta: tuple[float, ...]) -> tuple[float, np.ndarray, np.ndarray]:
    """Return J, its gradient in theta and in r."""
    t = gg.tensor(theta, "float64", requires_grad=True)
    r = gg.tensor(R, "float64", requires_grad=True)
    value = loss(t, r)
    value.backward()
    return value.item(), t.grad.numpy(), r.grad.numpy()


@pytest.mark.parametrize(
    ("theta", "value", "gradient", "inputs", "digits"),
    [
        (
            (0.5, -0.3, 0.8),
            0.988144380990533,
            (-0.601685310019377, -1.044168212425046, 0.961747936086712),
            (-0.073859872576154, 0.302637789379),
            1e-12,
        ),
        (
            (1.0, 2.0, 3.0),
            0.592114563558825,
            (-0.6450852771, -1.585207750625, 1.763157628481),
            (3.594057198255, 1.032002960222),
            1e-10,
        ),
        ((0.0, 0.0, 0.0), math.log(2.0), (-0.5, -0.5, 0.0), (0.0, 0.0), 1e-12),
    ],
    ids=str,
)
def test_values(
    theta: tuple[float, ...],
    value: float,
    gradient: tuple[float, ...],
    inputs: tuple[float, ...],
    digits: float,
) -> None:
    j, in_theta, in_r = at(theta)
    np.testing.assert_allclose(j, value, rtol=0, atol=1e-12)
    np.testing.assert_allclose(in_theta, gradient, rtol=0, atol=digits)
    np.testing.assert_allclose(in_r, inputs, rtol=0, atol=digits)


def network(theta: tuple[float, ...]) -> FeedForwardNetwork:
    """Return the multigraph from its specification."""
    return FeedForwardNetwork(
        inputs=["r1", "r2"],
        units={"s": ("softmax", 2), "y4": ("sigmoid", 1), "y5": ("identity", 1)},
        edges=[
            ("r1", "s[0]", "t1"),
            ("r2", "s[1]", "t2"),
            ("r1", "y4", "t1"),
            ("r2", "y4", "t3"),
            ("r1", "y5", "t2"),
            ("s[0]", "y5", "t2"),
            ("y4", "y5", "t3"),
        ],
        weights=dict(zip(("t1", "t2", "t3"), theta, strict=True)),
        dtype="float64",
    )


def loss_of(net: FeedForwardNetwork, r: gg.Tensor) -> gg.Tensor:
    out = net(r)
    return -gg.log(out["s"][1]) + out["y5"] ** 2


@pytest.mark.parametrize("theta", [(0.5, -0.3, 0.8), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0)], ids=str)
def test_from_its_specification(theta: tuple[float, ...]) -> None:
    net, r = network(theta), gg.tensor(R, "float64", requires_grad=True)
    j = loss_of(net, r)
    paths = gg.graph.explain(j, net.weights.t2).paths
    assert len(paths) == 4  # J holds s2; y5 holds t2 r1, s1 (through z2) and t2 s1
    j.backward()
    value, in_theta, in_r = at(theta)
    np.testing.assert_allclose(j.item(), value, rtol=0, atol=1e-14)
    found = [p.grad.item() for p in net.parameters()]
    np.testing.assert_allclose(found, in_theta, rtol=0, atol=1e-14)
    np.testing.assert_allclose(r.grad.numpy(), in_r, rtol=0, atol=1e-14)
    assert sum(p.product.item() for p in paths) == pytest.approx(in_theta[1], abs=1e-14)


def test_drawn_with_weights_and_gradients() -> None:
    net = network((0.5, -0.3, 0.8))
    loss_of(net, gg.tensor(R, "float64")).backward()
    picture = net.graph().svg()
    assert picture.count('class="edge"') == 7 + 1  # and the arrow out of y5
    for text in ("t3 = 0.8", "0.9617", "s = softmax, 2 outputs"):
        assert text in picture


def test_trained() -> None:
    net, r = network((0.5, -0.3, 0.8)), gg.tensor(R, "float64")
    optimizer = gg.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        losses.append(loss_of(net, r))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    values = [j.item() for j in losses]
    assert values[0] == pytest.approx(0.988144380990533, abs=1e-12)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1


@pytest.mark.parametrize("theta", [(0.5, -0.3, 0.8), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0)], ids=str)
def test_gradient_equals_finite_differences(theta: tuple[float, ...]) -> None:
    t = gg.tensor(theta, "float64", requires_grad=True)
    r = gg.tensor(R, "float64", requires_grad=True)
    gg.testing.gradcheck(loss, [t, r])
    gg.testing.gradgradcheck(loss, [t, r])


def by_hand(theta: tuple[float, ...], factor: float) -> float:
    """dJ/dt1 by hand; the way y5 -> s1 -> z1 carries the weight t2 as a factor."""
    t1, t2, t3 = theta
    r1, r2 = R
    e1, e2 = math.exp(t1 * r1), math.exp(t2 * r2)
    s1 = e1 / (e1 + e2)
    y4 = 1 / (1 + math.exp(-(t1 * r1 + t3 * r2)))
    y5 = t2 * r1 + t2 * s1 + t3 * y4
    through_softmax = s1 + 2 * y5 * factor * s1 * (1 - s1)
    return r1 * (through_softmax + 2 * y5 * t3 * y4 * (1 - y4))


@pytest.mark.parametrize("theta", [(0.5, -0.3, 0.8), (1.0, 2.0, 3.0), (0.7, 1.0, -0.4)], ids=str)
def test_a_formula_without_the_factor_is_right_only_where_it_is_one(
    theta: tuple[float, ...],
) -> None:
    eps = 1e-6
    up, down = (at((theta[0] + step, *theta[1:]))[0] for step in (eps, -eps))
    difference = (up - down) / (2 * eps)
    assert by_hand(theta, theta[1]) == pytest.approx(difference, abs=1e-8)
    agrees = by_hand(theta, 1.0) == pytest.approx(difference, abs=1e-3)
    assert agrees == (theta[1] == 1.0)
