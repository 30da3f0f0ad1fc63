"""Logistic regression: a line between two clouds, found by gradient descent on a convex loss.

First one example by hand: with w = (0.1, -0.2), b = 0.3, x = (1, 2) the score is 0, the probability
1/2, and the gradient (p - y) x = (-0.5, -1) for y = 1. Then 200 points of two classes: the loss has
one minimum, and descent finds it from anywhere.

    python -m gpugrad.examples.logistic_regression [--picture FILE.svg]

>>> main([])
by hand: p = 0.5000, loss = 0.6931 = ln 2, gradient = [-0.5, -1.0]
step    loss   right
   0  0.6931   50.0 %
   1  ...
  10  ...
 100  ...
 300  ...
from w = (5, -5) the same: ...
the line: ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import LogisticRegression, LogisticRegressionConfig
from gpugrad.optim import SGD

STEPS = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the gradient of one example and a descent; draw points and line."""
    picture = parse_picture(__doc__, arguments)
    one = model_with([0.1, -0.2], 0.3)
    loss = one.loss([[1.0, 2.0]], [1])
    (gradient,) = gg.grad(loss, [one.linear.weight])
    p = one.probabilities([[1.0, 2.0]]).item()
    print(
        f"by hand: p = {p:.4f}, loss = {loss.item():.4f} = ln 2, "
        f"gradient = {gradient.numpy()[0].round(12).tolist()}"
    )

    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = rng.normal(size=(200, 2)) + np.where(y[:, None] == 1, [1.0, 0.5], [-1.0, -0.5])
    print("step    loss   right")
    model = model_with([0.0, 0.0], 0.0)
    descend(model, x, y, shown=(0, 1, 10, 100, STEPS))
    other = model_with([5.0, -5.0], 0.0)
    descend(other, x, y)
    print(f"from w = (5, -5) the same: {other.loss(x, y).item():.4f}")
    a, b, c = (float(v) for p in model.parameters() for v in p.detach().numpy().ravel())
    print(f"the line: {a:.2f} x1 + {b:.2f} x2 + {c:.2f} = 0")

    if picture is not None:
        figure = new_figure(6, 5)
        axes = figure.subplots()
        for k, marker in ((0, "o"), (1, "^")):
            axes.plot(*x[y == k].T, marker, label=f"y = {k}")
        ends = np.array([-3.5, 3.5])
        axes.plot(ends, -(a * ends + c) / b, "k-", label="p = 1/2")
        axes.set_ylim(-3.5, 3.5)
        axes.set_xlabel("x1")
        axes.set_ylabel("x2")
        axes.legend()
        save(figure, picture)


def model_with(weight: Sequence[float], bias: float) -> LogisticRegression:
    """Return a model of two features."""
    model = LogisticRegression(LogisticRegressionConfig(2, dtype="float64"))
    model.load_state_dict({"linear.weight": np.array([weight]), "linear.bias": np.array([bias])})
    return model


def descend(
    model: LogisticRegression, x: np.ndarray, y: np.ndarray, shown: Sequence[int] = ()
) -> None:
    """Take STEPS steps of gradient descent, and print where it is at some of them."""
    optimizer = SGD(model.parameters(), lr=0.5)
    for step in range(STEPS + 1):
        loss = model.loss(x, y)
        if step in shown:
            with gg.no_grad():
                right = np.mean(model.predict(x).numpy() == y)
            print(f"{step:4}  {loss.item():.4f}  {right:6.1%}".replace("%", " %"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main(sys.argv[1:])
