"""The same gradient three ways: written out by hand, by modules on a tape, by the engine.

A network with one hidden layer: a = A x, z = sigmoid(a), b = B z, p = softmax(b), J = -y log p.
Procedural: every line of the forward pass has its line of the backward pass, in reverse order.
Modules: each knows its own backward; a tape remembers what ran and is read from its end. Engine:
the tape writes itself. Then the classic bug, on L = c (a + 2b): every sum of gradients starts at 0,
only that of the result at 1.

    python -m gpugrad.examples.three_backwards [--picture FILE.svg]

>>> main([])
                  J               largest difference to procedural in dJ/dA, dJ/dB, dJ/dx
procedural        0.702705576202
modules on a tape 0.702705576202  ...e-1...
engine            0.702705576202  ...e-1...
engine, fused     0.702705576202  ...e-1...
softmax and cross-entropy together: largest difference of dJ/db to p - y: ...
<BLANKLINE>
L = c (a + 2b)             dL/da  dL/db  dL/dc
engine                        -2     -4      5
tape, sums start at 0         -2     -4      5
tape, sums start at 1          0      1      6   the classic bug
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.examples._command import parse_picture

Array = np.ndarray
Result = tuple[float, list[Array]]  # J; dJ/dA, dJ/dB, dJ/dx


def procedural(A: Array, B: Array, x: Array, y: Array) -> Result:
    """Run forward line by line, then the derivative of each line, the last line first."""
    a = A @ x
    z = 1 / (1 + np.exp(-a))
    b = B @ z
    p = np.exp(b) / np.exp(b).sum()
    J = -(y * np.log(p)).sum()

    g_p = -y / p
    g_b = (np.diag(p) - np.outer(p, p)) @ g_p
    g_B = np.outer(g_b, z)
    g_z = B.T @ g_b
    g_a = g_z * z * (1 - z)
    g_A = np.outer(g_a, x)
    g_x = A.T @ g_a
    return float(J), [g_A, g_B, g_x]


class Value:
    """An array and the sum of its gradients."""

    def __init__(self, data: Array, start: float = 0.0) -> None:
        self.data = np.asarray(data, float)
        self.grad = np.full_like(self.data, start)


class Tape:
    """What ran, in order: (backward, output, inputs); sums of gradients begin at ``start``."""

    def __init__(self, start: float = 0.0) -> None:
        self.start = start
        self.entries: list[tuple[Callable, Value, tuple[Value, ...]]] = []

    def run(self, module: Any, *inputs: Value) -> Value:
        """Run a module forward and remember it."""
        out = Value(module.forward(*(v.data for v in inputs)), self.start)
        self.entries.append((module.backward, out, inputs))
        return out

    def backward(self) -> None:
        """Start the last result at 1, and read the tape from its end."""
        self.entries[-1][1].grad[...] = 1.0
        for backward, out, inputs in reversed(self.entries):
            grads = backward(out.grad, out.data, *(v.data for v in inputs))
            for value, g in zip(inputs, grads, strict=True):
                value.grad += g


class Linear:
    """W x."""

    forward = staticmethod(lambda W, x: W @ x)
    backward = staticmethod(lambda g, out, W, x: (np.outer(g, x), W.T @ g))


class Sigmoid:
    """1 / (1 + exp(-a))."""

    forward = staticmethod(lambda a: 1 / (1 + np.exp(-a)))
    backward = staticmethod(lambda g, out, a: (g * out * (1 - out),))


class Softmax:
    """exp(b) / sum exp(b)."""

    forward = staticmethod(lambda b: np.exp(b) / np.exp(b).sum())
    backward = staticmethod(lambda g, out, b: (out * (g - (g * out).sum()),))


class CrossEntropy:
    """-y log p."""

    forward = staticmethod(lambda p, y: -(y * np.log(p)).sum())
    backward = staticmethod(lambda g, out, p, y: (-g * y / p, -g * np.log(p)))


class Multiply:
    """x y."""

    forward = staticmethod(lambda x, y: x * y)
    backward = staticmethod(lambda g, out, x, y: (g * y, g * x))


class Add:
    """x + y."""

    forward = staticmethod(lambda x, y: x + y)
    backward = staticmethod(lambda g, out, x, y: (g, g))


def modules_on_a_tape(*arrays: Array) -> Result:
    """Run modules; backward is the tape's affair."""
    tape = Tape()
    A, B, x, y = map(Value, arrays)
    z = tape.run(Sigmoid, tape.run(Linear, A, x))
    p = tape.run(Softmax, tape.run(Linear, B, z))
    J = tape.run(CrossEntropy, p, y)
    tape.backward()
    return float(J.data), [A.grad, B.grad, x.grad]


def loss(A: gg.Tensor, B: gg.Tensor, x: gg.Tensor, y: Any, fused: bool = False) -> gg.Tensor:
    """Return J; with ``fused`` softmax and cross-entropy are one operation."""
    b = B @ gg.sigmoid(A @ x)
    return F.cross_entropy(b, y) if fused else -(y * gg.log(F.softmax(b, axis=-1))).sum()


def engine(*arrays: Array, fused: bool = False) -> Result:
    """Write the forward pass only; the rest is the engine's affair."""
    A, B, x = (gg.tensor(v, requires_grad=True) for v in arrays[:3])
    J = loss(A, B, x, gg.tensor(arrays[3]), fused)
    J.backward()
    return J.item(), [v.grad.numpy() for v in (A, B, x)]


def product(start: float) -> list[float]:
    """Return the gradients of L = c (a + 2b) on a tape whose sums begin at ``start``."""
    tape = Tape(start)
    a, b, c, two = (Value(np.array(v), start) for v in (3.0, 1.0, -2.0, 2.0))
    e = tape.run(Add, a, tape.run(Multiply, two, b))
    tape.run(Multiply, c, e)
    tape.backward()
    return [float(v.grad) for v in (a, b, c)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the three, and show the bug."""
    picture = parse_picture(__doc__, arguments)
    rng = np.random.default_rng(18)
    A, B, x = rng.standard_normal((4, 5)), rng.standard_normal((3, 4)), rng.standard_normal(5)
    y = np.array([0.0, 1.0, 0.0])

    J, expected = procedural(A, B, x, y)
    print(
        "                  J               largest difference to procedural in dJ/dA, dJ/dB, dJ/dx"
    )
    print(f"procedural        {J:.12f}")
    others = {
        "modules on a tape": modules_on_a_tape(A, B, x, y),
        "engine": engine(A, B, x, y),
        "engine, fused": engine(A, B, x, y, fused=True),
    }
    for name, (value, grads) in others.items():
        error = max(np.abs(g - e).max() for g, e in zip(grads, expected, strict=True))
        print(f"{name:17} {value:.12f}  {error:.0e}")

    b = gg.tensor(rng.standard_normal(3), requires_grad=True)
    F.cross_entropy(b, gg.tensor(y)).backward()
    p = F.softmax(b.detach(), axis=-1).numpy()
    error = np.abs(b.grad.numpy() - (p - y)).max()
    print(f"softmax and cross-entropy together: largest difference of dJ/db to p - y: {error:.0e}")

    print("\nL = c (a + 2b)             dL/da  dL/db  dL/dc")
    a, b, c = (gg.tensor(v, "float64", requires_grad=True) for v in (3.0, 1.0, -2.0))
    (c * (a + 2 * b)).backward()
    rows = {
        "engine": [v.grad.item() for v in (a, b, c)],
        "tape, sums start at 0": product(0.0),
        "tape, sums start at 1": product(1.0),
    }
    for name, row in rows.items():
        bug = "   the classic bug" if row != rows["engine"] else ""
        print(f"{name:24}  {row[0]:5.0f}  {row[1]:5.0f}  {row[2]:5.0f}{bug}")

    if picture is not None:
        names = {
            name: gg.tensor(v, requires_grad=True) for name, v in zip("ABx", (A, B, x), strict=True)
        }
        with gg.graph.keep_values():
            root = loss(names["A"], names["B"], names["x"], y)
        gg.graph.draw(root, picture, names={**names, "J": root})
        print(f"picture: {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
