"""The reverse sweep step by step: who receives which gradient, and what it passes on.

One neuron, o = tanh(w1 x1 + w2 x2 + b), whose output is used twice: L = o * o + o. Backward visits
each operation once, newest first, so that all parts of a gradient have arrived before it is passed
on. A page (FILE.html) plays the steps in a browser; FILE.svg is the last of them.

    python -m gpugrad.examples.backward_playback [--picture FILE.svg or FILE.html]

>>> main([])
0: the forward pass has run; every sum of gradients starts at 0
1: the gradient of L = q + o with respect to itself is 1
2: L = q + o receives 1
   q += 1; o += 1
3: q = o · o receives 1
   o += 0.3023, now 1.302; o += 0.3023, now 1.605
4: o = tanh(n) receives 1.605
   n += 1.458
5: n = s + b receives 1.458
   s += 1.458; b += 1.458
6: s = p1 + p2 receives 1.458
   p1 += 1.458; p2 += 1.458
7: p2 = w2 · x2 receives 1.458
   w2 += 0.729
8: p1 = w1 · x1 receives 1.458
   w1 += 2.916
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad.examples._command import parse_picture


def neuron() -> gg.graph.Graph:
    """Return the graph of L = o * o + o, o = tanh(w1 x1 + w2 x2 + b)."""
    x1, x2 = gg.tensor(2.0, "float64"), gg.tensor(0.5, "float64")
    w1, w2, b = (gg.tensor(v, "float64", requires_grad=True) for v in (-0.3, 0.6, 0.612))
    with gg.graph.keep_values():
        p1 = w1 * x1
        p2 = w2 * x2
        s = p1 + p2
        n = s + b
        o = gg.tanh(n)
        q = o * o
        L = q + o
    return gg.graph.capture(L, names=locals())


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell the steps of the sweep, and draw them."""
    picture = parse_picture(__doc__, arguments, suffix="svg html")
    graph = neuron()
    for number, step in enumerate(graph.narrate()):
        print(f"{number}: {step}".replace("\n", "\n   "))
    if picture is not None:
        graph.save(picture)
        print(f"picture: {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
