"""A gradient is a sum over paths, each the product of the local derivatives along it.

The chain rule on a graph, spelled out (Bauer 1974): first with numbers, where every factor is one;
then for the first weight of a small residual network, where a path is a chain of vector-Jacobian
products; then where there are more paths than anybody can walk. Backward adds up at every operation
before it goes on, and so does the explanation: paths with a common end are one group.

    python -m gpugrad.examples.explain_gradient [--picture FILE.svg]

>>> main([])
L = u · v + x with u = 3 x and v = u squared
dL/dx = 325: 3 paths
  L → p → v → u → x:  1 · 6 · 12 · 3 = 216
  L → p → u → x:  1 · 36 · 3 = 108
  L → x:  1 = 1
sum of the products: 325
<BLANKLINE>
three tanh layers, each added to what it was given
dloss/dlayers.0.weight = float64[4, 4] ‖1.9‖: 4 paths
  loss → square → add → add → add → tanh → linear → layers.0.weight:  float64[4, 4] ‖1.07‖
  loss → square → add → add → tanh → linear → add → tanh → linear → layers.0.weight:  ...
  ...
largest difference to .grad: ...e-1...
<BLANKLINE>
y = y + y / 100, fifty times
dy/dx = 1.645: 1,125,899,906,842,624 paths in 3 groups
  281,474,976,710,656 paths to add → add → x:  1.612 · 1 · 1 = 1.612
  562,949,953,421,312 paths to add → divide → x:  1.628 · 1 · 0.01 = 0.01628
  281,474,976,710,656 paths to add → divide → add → x:  1.612 · 1 · 0.01 · 1 = 0.01612
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad import nn
from gpugrad.examples._command import parse_picture


class Residual(nn.Module):
    """Three layers x + tanh(W x + b)."""

    def __init__(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(4, 4, dtype="float64") for _ in range(3))

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """Return the output for x of shape (..., 4)."""
        for layer in self.layers:
            x = x + gg.tanh(layer(x))
        return x


def main(arguments: Sequence[str] | None = None) -> None:
    """Explain the three gradients, and draw the graph of the first."""
    picture = parse_picture(__doc__, arguments)

    print("L = u · v + x with u = 3 x and v = u squared")
    x = gg.tensor(2.0, "float64", requires_grad=True)
    with gg.graph.keep_values():
        u = 3 * x
        v = gg.square(u)
        p = u * v
        L = p + x
    found = gg.graph.explain(L, x, names=locals())
    print(found)
    print(f"sum of the products: {sum(path.product.item() for path in found.paths):.0f}")
    graph = gg.graph.capture(L, names=locals())

    print("\nthree tanh layers, each added to what it was given")
    gg.manual_seed(0)
    model = Residual()
    loss = (model(gg.random.normal(size=(8, 4), dtype="float64")) ** 2).mean()
    weight = model.layers[0].weight
    found = gg.graph.explain(loss, weight, names={"loss": loss, "": model})
    print(found)
    loss.backward()
    total = sum((path.product for path in found.paths), gg.zeros_like(weight).detach())
    print(f"largest difference to .grad: {abs(total - weight.grad).max().item():.0e}")

    print("\ny = y + y / 100, fifty times")
    y = x
    for _ in range(50):
        y = y + y / 100
    print(gg.graph.explain(y, x, names={"x": x, "y": y}, limit=3))

    if picture is not None:
        graph.save(picture)
        print(f"picture: {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
