"""Gradient descent finds the valley it starts in: several starts find more valleys.

A wave on a bowl has many local minima. From one start, descent ends in the nearest; of ten random
starts, the best end is the lowest of those found, and the more starts, the lower on average.

    python -m gpugrad.examples.random_restarts [--picture FILE.svg]

>>> main([])
start    ends at   f
 2.11      2.70    0.23
 4.57      4.24    3.49
 0.89      1.16   -1.59
-4.81     -5.01    5.67
 3.76      4.24    3.49
 0.00     -0.39   -1.95
-1.25     -1.93   -0.86
-4.53     -5.01    5.67
-1.01     -0.39   -1.95
-1.12     -0.39   -1.95
best of 10: f(-0.39) = -1.95
the minimum: f(-0.39) = -1.95
starts   mean of the best over 200 repetitions
     1     0.35
     3    -1.27
    10    -1.89
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save


def wave(x: gg.Tensor) -> gg.Tensor:
    """Return a bowl with waves."""
    return 0.3 * x * x + 2 * gg.sin(4 * x)


def descend(starts: gg.Tensor) -> gg.Tensor:
    """Return where gradient descent ends from each start: all at once, one element each."""
    x = starts.detach().copy().requires_grad_()
    optimizer = gg.optim.SGD([x], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        wave(x).sum().backward()
        optimizer.step()
    return x.detach()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print ten descents, their best, and how the best falls with the number of starts."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(4)
    starts = gg.random.uniform(-5, 5, size=(10,), dtype="float64")
    ends = descend(starts)
    heights = wave(ends)
    print("start    ends at   f")
    for start, end, height in zip(starts, ends, heights, strict=True):
        print(f"{start:5.2f}     {end:5.2f}   {height:5.2f}")
    best = ends[int(gg.argmin(heights))]
    print(f"best of 10: f({best:.2f}) = {wave(best):.2f}")
    grid = gg.linspace(-5, 5, 100_001, dtype="float64")
    lowest = grid[int(gg.argmin(wave(grid)))]
    print(f"the minimum: f({lowest:.2f}) = {wave(lowest):.2f}")

    print("starts   mean of the best over 200 repetitions")
    many = wave(descend(gg.random.uniform(-5, 5, size=(200, 10), dtype="float64"))).numpy()
    for count in (1, 3, 10):
        print(f"{count:6}   {many[:, :count].min(axis=1).mean():6.2f}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        axes.plot(grid.numpy(), wave(grid).numpy(), color="#888888")
        axes.plot(starts.numpy(), wave(starts).numpy(), "o", label="starts")
        axes.plot(ends.numpy(), heights.numpy(), "v", label="ends")
        axes.plot(float(best), float(wave(best)), "*", markersize=15, label="best")
        axes.legend()
        axes.set_xlabel("x")
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
