"""A computation graph with its values and gradients, as textbooks draw it.

L = c (a + 2b) at a = 3, b = 1, c = -2 in three steps: d = 2b, e = a + d, L = c e. The picture has
the forward value above and the gradient below each edge; the text is the same graph for Graphviz.

    python -m gpugrad.examples.computation_graph [--picture FILE.svg]

>>> main([])
a   value   3   gradient  -2
b   value   1   gradient  -4
c   value  -2   gradient   5
d   value   2   gradient  -2
e   value   5   gradient  -2
L   value -10   gradient   1
<BLANKLINE>
digraph computation {
  rankdir=LR;
  node [style=rounded];
  n0 [label="b", shape=ellipse];
  n1 [label="2", shape=plaintext];
  n2 [label="d = 2 · b", shape=box];
  n3 [label="a", shape=ellipse];
  n4 [label="e = a + d", shape=box];
  n5 [label="c", shape=ellipse];
  n6 [label="L = c · e\\n-10\\n∇ 1", shape=box];
  n1 -> n2 [label="2"];
  n0 -> n2 [label="1\\n∇ -4"];
  n3 -> n4 [label="3\\n∇ -2"];
  n2 -> n4 [label="2\\n∇ -2"];
  n5 -> n6 [label="-2\\n∇ 5"];
  n4 -> n6 [label="5\\n∇ -2"];
}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad.examples._command import parse_picture


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the value and the gradient of every variable, and draw the graph."""
    picture = parse_picture(__doc__, arguments)
    a = gg.tensor(3.0, requires_grad=True)
    b = gg.tensor(1.0, requires_grad=True)
    c = gg.tensor(-2.0, requires_grad=True)
    with gg.graph.keep_values():
        d = 2 * b
        e = a + d
        L = c * e

    graph = gg.graph.capture(L, names={"a": a, "b": b, "c": c, "d": d, "e": e, "L": L})
    variables = sorted((v for v in graph.vertices if v.name), key=lambda v: "abcdeL".index(v.name))
    for v in variables:
        print(f"{v.name}   value {v.value:>3}   gradient {v.gradient:>3}")
    print()
    print(graph.dot(), end="")

    if picture is not None:
        graph.save(picture)
        print(f"picture: {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
