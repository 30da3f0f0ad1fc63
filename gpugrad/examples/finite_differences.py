"""Differences approach a derivative only as far as rounding lets them.

The slope of tanh at 0.5 by forward and by central differences, against what the engine gives. The
first is wrong by O(h), the second by O(h^2), and both by O(eps / h) from rounding: the best step is
neither large nor tiny, and no step reaches the engine's last digit.

    python -m gpugrad.examples.finite_differences [--picture FILE.svg]

>>> main([])
d tanh / dx at 0.5 = 0.786447732966 (engine), 0.786447732966 (1 - tanh^2)
step    forward   central
1e-01   3.7e-02   9.4e-04
1e-02   3.6e-03   9.4e-06
1e-03   3.6e-04   9.4e-08
1e-04   3.6e-05   9.4e-10
1e-05   3.6e-06   ...e-11
1e-06   3.6e-07   ...
1e-08   ...
1e-10   ...
1e-12   ...
best step of central differences: 1e-05
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save

X = 0.5
STEPS = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the errors of both differences for each step, and draw them."""
    picture = parse_picture(__doc__, arguments)
    x = gg.tensor(X, dtype="float64", requires_grad=True)
    gg.tanh(x).backward()
    slope = float(x.grad)
    print(f"d tanh / dx at {X} = {slope:.12f} (engine), {1 - math.tanh(X) ** 2:.12f} (1 - tanh^2)")

    print("step    forward   central")
    forward = [abs((math.tanh(X + h) - math.tanh(X)) / h - slope) for h in STEPS]
    central = [abs((math.tanh(X + h) - math.tanh(X - h)) / (2 * h) - slope) for h in STEPS]
    for h, error, better in zip(STEPS, forward, central, strict=True):
        print(f"{h:.0e}   {error:.1e}   {better:.1e}")
    print(f"best step of central differences: {STEPS[central.index(min(central))]:.0e}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        axes.loglog(STEPS, forward, "o-", label="forward differences")
        axes.loglog(STEPS, central, "s-", label="central differences")
        axes.set_xlabel("step h")
        axes.set_ylabel("error of the slope")
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
