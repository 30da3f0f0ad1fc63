"""Of all directions, minus the gradient is the steepest way down.

A surface f(x, y), a point on it, and the slope in 360 directions: it is the gradient times the
direction, largest along the gradient, least against it, zero along the level line. Then gradient
descent goes down, with three step sizes: one that creeps, one that arrives, one that overshoots.

    python -m gpugrad.examples.steepest_descent [--picture FILE.svg]

>>> main([])
at (1.50, -1.00): f = 7.7500, gradient = (4.0000, -9.5000)
slope against the gradient   -10.3078 = -norm of the gradient
least slope of 360 directions -10.3077, at 113 degrees; minus the gradient points at 113
slope along the level line     0.0000
step 0.01: f = 0.0392 after 100 steps
step 0.10: f = 0.0000 after 100 steps
step 0.26: f is above 100 after 13 steps
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save

START = (1.5, -1.0)
FAR = 100.0


def surface(x: gg.Tensor, y: gg.Tensor) -> gg.Tensor:
    """Return a bowl that is narrower in one direction than in the other."""
    return x * x + 4 * y * y - x * y


def slope(point: Sequence[float], direction: Sequence[float]) -> float:
    """Return the derivative of the surface along a direction."""
    at = [gg.tensor(v, dtype="float64") for v in point]
    along = [gg.tensor(v, dtype="float64") for v in direction]
    return float(gg.jvp(surface, at, along)[1])


def descend(step: float, count: int = 100) -> tuple[list[tuple[float, float]], float]:
    """Return the way from the start, at most ``count`` steps, and where it ends."""
    x, y = (gg.tensor(v, dtype="float64", requires_grad=True) for v in START)
    optimizer, way = gg.optim.SGD([x, y], lr=step), [START]
    for _ in range(count):
        height = surface(x, y)
        if height.item() > FAR:
            break
        optimizer.zero_grad()
        height.backward()
        optimizer.step()
        way.append((x.item(), y.item()))
    return way, surface(x, y).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the slopes and the descents; draw the surface from above with the ways."""
    picture = parse_picture(__doc__, arguments)
    x, y = (gg.tensor(v, dtype="float64", requires_grad=True) for v in START)
    height = surface(x, y)
    dx, dy = (float(g) for g in gg.grad(height, [x, y]))
    norm = math.hypot(dx, dy)
    print(f"at ({x:.2f}, {y:.2f}): f = {height:.4f}, gradient = ({dx:.4f}, {dy:.4f})")

    angles = np.radians(np.arange(360))
    slopes = [slope(START, (math.cos(a), math.sin(a))) for a in angles]
    steepest = int(np.argmin(slopes))
    downhill = math.degrees(math.atan2(-dy, -dx))
    print(f"slope against the gradient   {slope(START, (-dx / norm, -dy / norm)):.4f}", end="")
    print(" = -norm of the gradient")
    print(f"least slope of 360 directions {slopes[steepest]:.4f}, at {steepest} degrees; ", end="")
    print(f"minus the gradient points at {downhill:.0f}")
    print(f"slope along the level line     {abs(slope(START, (-dy / norm, dx / norm))):.4f}")

    ways = {}
    for step in (0.01, 0.1, 0.26):
        ways[step], end = descend(step)
        if end > FAR:
            print(f"step {step:.2f}: f is above {FAR:.0f} after {len(ways[step]) - 1} steps")
        else:
            print(f"step {step:.2f}: f = {end:.4f} after {len(ways[step]) - 1} steps")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        xs, ys = np.meshgrid(np.linspace(-2.5, 2.5, 101), np.linspace(-1.6, 1.6, 81))
        heights = surface(gg.tensor(xs), gg.tensor(ys)).numpy()
        axes.contour(xs, ys, heights, levels=np.geomspace(0.05, 20, 12), colors="#bbbbbb")
        arrows = np.s_[4::8, 4::8]
        gx, gy = (g.numpy() for g in _gradients(xs[arrows], ys[arrows]))
        axes.quiver(xs[arrows], ys[arrows], -gx, -gy, color="#8ab4d8", width=0.003)
        for step, way in ways.items():
            axes.plot(*zip(*way, strict=True), "o-", markersize=3, label=f"step {step}")
        axes.set_xlim(-2.5, 2.5)
        axes.set_ylim(-1.6, 1.6)
        axes.set_title("minus the gradient, and three descents along it")
        axes.legend()
        save(figure, picture)


def _gradients(xs: np.ndarray, ys: np.ndarray) -> list[gg.Tensor]:
    x, y = (gg.tensor(v, requires_grad=True) for v in (xs, ys))
    return list(gg.grad(surface(x, y).sum(), [x, y]))


if __name__ == "__main__":
    main(sys.argv[1:])
