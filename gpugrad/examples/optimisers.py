"""SGD, momentum, Adam and AdamW find their way through one curved valley.

Rosenbrock's valley is easy to find and hard to follow: its walls are steep, its floor nearly flat.
SGD bounces or crawls, momentum rolls along the floor, Adam divides by the size of recent gradients
and walks almost as fast on the floor as on the walls. AdamW's decay pulls towards 0, away from the
minimum at (1, 1).

    python -m gpugrad.examples.optimisers [--picture FILE.svg]

>>> main([])
                       after 50   after 300   after 1500 steps
SGD lr=0.002             3.6266      1.5564       0.0235
momentum 0.9 lr=0.001    4.1629      0.0329       0.0000
Adam lr=0.05             5.1302      0.3721       0.0000
AdamW weight_decay=0.1   4.2461      0.2503       0.0383
nearest to (1, 1): Adam lr=0.05
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad import optim
from gpugrad.examples._command import new_figure, parse_picture, save

START = (-1.4, 1.8)
OPTIMISERS: dict[str, Callable[[list[gg.Tensor]], Any]] = {
    "SGD lr=0.002": lambda p: optim.SGD(p, lr=0.002),
    "momentum 0.9 lr=0.001": lambda p: optim.SGD(p, lr=0.001, momentum=0.9),
    "Adam lr=0.05": lambda p: optim.Adam(p, lr=0.05),
    "AdamW weight_decay=0.1": lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


def valley(x: Any, y: Any) -> Any:
    """Return Rosenbrock's function, (1 - x)^2 + 100 (y - x^2)^2."""
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def walk(make: Callable[[list[gg.Tensor]], Any], steps: int) -> np.ndarray:
    """Return the points that an optimiser visits, (steps + 1, 2)."""
    point = gg.tensor(START, dtype="float64", requires_grad=True)
    optimizer, visited = make([point]), [START]
    for _ in range(steps):
        optimizer.zero_grad()
        valley(point[0], point[1]).backward()
        optimizer.step()
        visited.append(tuple(point.detach().tolist()))
    return np.array(visited)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how low each optimiser is after some steps, and draw their ways."""
    picture = parse_picture(__doc__, arguments)
    print(f"{'':22} after 50   after 300   after 1500 steps")
    ways = {name: walk(make, 1500) for name, make in OPTIMISERS.items()}
    for name, way in ways.items():
        heights = [valley(*way[n]) for n in (50, 300, 1500)]
        print(f"{name:22} {heights[0]:8.4f}   {heights[1]:9.4f}   {heights[2]:10.4f}")
    ends = {name: float(np.hypot(*(way[-1] - 1))) for name, way in ways.items()}
    print(f"nearest to (1, 1): {min(ends, key=ends.__getitem__)}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        xs, ys = np.meshgrid(np.linspace(-1.8, 1.8, 181), np.linspace(-0.8, 2.4, 161))
        axes.contour(xs, ys, valley(xs, ys), levels=np.geomspace(0.1, 1000, 14), colors="#cccccc")
        for name, way in ways.items():
            axes.plot(*way.T, linewidth=1, marker=".", markevery=50, label=name)
        axes.plot(1, 1, "*", color="black", markersize=12)
        axes.set_xlim(-1.8, 1.8)
        axes.set_ylim(-0.8, 2.4)
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
