"""A small batch's gradient is right on average, and noisy.

Twelve examples, a regression, and the gradient of the mean loss: the mean over all 220 batches of
three is exactly it. One batch is off by a distance that shrinks as its size grows, to nothing when
it holds every example. Noisy steps still arrive, with a smaller step towards the end.

    python -m gpugrad.examples.minibatches [--picture FILE.svg]

>>> main([])
full gradient           -4.8546  1.1899
mean of 220 batches     -4.8546  1.1899   largest difference below 1e-14: True
batch size   distance of one batch's gradient from the full one (root mean square)
         1   6.98
         2   4.71
         3   3.65
         6   2.11
        12   0.00
200 steps with batches of 3:  weights 1.563 -0.560
the same, the step shrinking: weights 1.441 -0.487
least squares:                weights 1.488 -0.459
a shrinking step came nearer: True
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save

COUNT = 12


def data() -> tuple[gg.Tensor, gg.Tensor]:
    """Return inputs (12, 2) and targets (12,) of a line with noise."""
    gg.manual_seed(5)
    inputs = gg.random.normal(size=(COUNT, 2), dtype="float64")
    noise = gg.random.normal(scale=0.5, size=(COUNT,), dtype="float64")
    return inputs, inputs @ gg.tensor([1.5, -0.5], dtype="float64") + noise


def gradient(
    weights: gg.Tensor, inputs: gg.Tensor, targets: gg.Tensor, batch: Sequence[int]
) -> np.ndarray:
    """Return the gradient of the mean squared error over a batch of examples."""
    rows = np.array(batch)
    weights = weights.detach().requires_grad_()
    ((inputs[rows] @ weights - targets[rows]) ** 2).mean().backward()
    assert weights.grad is not None
    return weights.grad.numpy()


def train(inputs: gg.Tensor, targets: gg.Tensor, shrink: bool, steps: int = 200) -> np.ndarray:
    """Return the weights after steps with random batches of three."""
    rng = np.random.default_rng(0)
    weights = gg.zeros(2, dtype="float64", requires_grad=True)
    optimizer = gg.optim.SGD([weights], lr=0.1)
    for step in range(steps):
        if shrink:
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        rows = rng.choice(COUNT, size=3, replace=False)
        optimizer.zero_grad()
        ((inputs[rows] @ weights - targets[rows]) ** 2).mean().backward()
        optimizer.step()
    return weights.detach().numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the gradients of all batches against the full one, and two runs of SGD."""
    picture = parse_picture(__doc__, arguments)
    inputs, targets = data()
    weights = gg.zeros(2, dtype="float64")
    full = gradient(weights, inputs, targets, range(COUNT))
    batches = list(itertools.combinations(range(COUNT), 3))
    mean = np.mean([gradient(weights, inputs, targets, batch) for batch in batches], axis=0)
    print("full gradient          ", *(f"{g:7.4f}" for g in full))
    print(f"mean of {len(batches)} batches    ", *(f"{g:7.4f}" for g in mean), end="")
    print(f"   largest difference below 1e-14: {bool(np.abs(mean - full).max() < 1e-14)}")

    print("batch size   distance of one batch's gradient from the full one (root mean square)")
    for size in (1, 2, 3, 6, 12):
        chosen = itertools.combinations(range(COUNT), size)
        squares = [((gradient(weights, inputs, targets, b) - full) ** 2).sum() for b in chosen]
        print(f"{size:10}   {np.sqrt(np.mean(squares)):.2f}")

    best = np.linalg.lstsq(inputs.numpy(), targets.numpy(), rcond=None)[0]
    constant, shrinking = (train(inputs, targets, shrink) for shrink in (False, True))
    print("200 steps with batches of 3:  weights", *(f"{w:.3f}" for w in constant))
    print("the same, the step shrinking: weights", *(f"{w:.3f}" for w in shrinking))
    print("least squares:                weights", *(f"{w:.3f}" for w in best))
    nearer = np.linalg.norm(shrinking - best) < np.linalg.norm(constant - best)
    print(f"a shrinking step came nearer: {bool(nearer)}")

    if picture is not None:
        figure = new_figure(6.5, 5.5)
        axes = figure.subplots()
        for size in (1, 3, 9):
            chosen = itertools.combinations(range(COUNT), size)
            points = np.array([gradient(weights, inputs, targets, batch) for batch in chosen])
            axes.plot(
                *points.T, "o", markersize=9 - size / 2, alpha=0.5, label=f"batches of {size}"
            )
        axes.plot(*full, "k*", markersize=14, label="all examples")
        axes.set(xlabel="dloss/dw1", ylabel="dloss/dw2")
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
