"""A general feed-forward network: a directed acyclic multigraph with shared weights, trained.

Not every network is a stack of layers. This one has three weights on seven edges, a unit with two
outputs, and a shortcut: s = softmax(t1 r1, t2 r2), y4 = sigmoid(t1 r1 + t3 r2),
y5 = t2 r1 + t2 s1 + t3 y4, with the loss J = -log s2 + y5^2. What one weight changes flows along
every edge that carries it, so its gradient is the sum over these edges. The network is built from
its specification, checked against finite differences, drawn with weights above and gradients below
the edges, and trained.

    python -m gpugrad.examples.general_network [--picture FILE.svg]

>>> main([])
FeedForwardNetwork(
  inputs=2, units=3, edges=7
  (weights): Module()
)
J = 0.988144380991
dJ/dt1 = -0.601685310019   by differences -0.60168531...
dJ/dt2 = -1.044168212425   by differences -1.04416821...
dJ/dt3 =  0.961747936087   by differences  0.96174793...
step   0   J = 0.988144   t = +0.500 -0.300 +0.800
step  10   J = 0.383498   t = +0.738 +0.109 +0.535
step  20   J = 0.269956   t = +0.882 +0.291 +0.498
step  30   J = 0.238782   t = +0.983 +0.357 +0.525
step  40   J = 0.219784   t = +1.066 +0.382 +0.570
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad.examples._command import parse_picture
from gpugrad.models import FeedForwardNetwork
from gpugrad.optim import SGD

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
WEIGHTS = {"t1": 0.5, "t2": -0.3, "t3": 0.8}
R = gg.tensor([-1.0, 1.0], "float64")


def loss(network: FeedForwardNetwork) -> gg.Tensor:
    """Return J = -log s2 + y5^2."""
    out = network(R)
    return -gg.log(out["s"][1]) + out["y5"] ** 2


def difference(network: FeedForwardNetwork, weight: gg.Tensor, h: float = 1e-5) -> float:
    """Return the central difference of J in one weight."""
    ends = []
    with gg.no_grad():
        for step in (h, -2 * h):
            weight += step
            ends.append(loss(network).item())
        weight += h
    return (ends[0] - ends[1]) / (2 * h)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, check, draw and train the network."""
    picture = parse_picture(__doc__, arguments)
    network = FeedForwardNetwork(["r1", "r2"], UNITS, EDGES, weights=WEIGHTS, dtype="float64")
    print(network)

    J = loss(network)
    J.backward()
    print(f"J = {J.item():.12f}")
    for name, weight in network.weights.named_parameters():
        slope = difference(network, weight)
        assert weight.grad is not None
        print(f"dJ/d{name} = {weight.grad.item():15.12f}   by differences {slope:15.12f}")
    if picture is not None:
        network.graph().save(picture)

    optimizer = SGD(network.parameters(), lr=0.05)
    for step in range(41):
        J = loss(network)
        if step % 10 == 0:
            values = " ".join(f"{weight.item():+.3f}" for weight in network.parameters())
            print(f"step {step:3}   J = {J.item():.6f}   t = {values}")
        optimizer.zero_grad()
        J.backward()
        optimizer.step()
    if picture is not None:
        print(f"picture: {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
