"""Learning-rate schedules: the same training with four ways to spend its steps.

A small network, noisy batches of 8; every run has the same start, batches and highest rate. The
noise of the last steps decides where a run ends: a rate that comes down ends lower than one that
stays. The loss is that of the whole data, the mean of three runs.

    python -m gpugrad.examples.schedules [--picture FILE.svg]

>>> main([])
rate at step    0     30    150    299   loss at the end
constant     0.0500 0.0500 0.0500 0.0500   0...
linear       0.0024 0.0482 0.0268 0.0002   0...
cosine       0.0024 0.0498 0.0278 0.0000   0...
exponential  0.0024 0.0452 0.0135 0.0030   0...
ends highest: constant
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

import gpugrad as gg
from gpugrad import nn
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.optim import SGD, LRScheduler
from gpugrad.optim.schedule import constant, cosine, exponential, linear

STEPS, WARMUP, RATE = 300, 20, 0.05
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": constant(RATE),
    "linear": linear(RATE, STEPS, WARMUP),
    "cosine": cosine(RATE, STEPS, WARMUP),
    "exponential": exponential(RATE, 0.99, WARMUP),
}


def run(schedule: Callable[[int], float], seed: int) -> float:
    """Return the loss of the whole data after training with a schedule."""
    gg.manual_seed(seed)
    inputs = gg.random.uniform(-2, 2, size=(256, 1))
    targets = gg.sin(2 * inputs) + gg.random.normal(scale=0.3, size=(256, 1))
    model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9)
    scheduler = LRScheduler(optimizer, schedule)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        rows = rng.integers(256, size=8)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        scheduler.step()
    return float(nn.functional.mse_loss(model(inputs), targets))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print each schedule's rates and where it ends; draw the rates."""
    picture = parse_picture(__doc__, arguments)
    print("rate at step    0     30    150    299   loss at the end")
    ends = {}
    for name, schedule in SCHEDULES.items():
        ends[name] = float(np.mean([run(schedule, seed) for seed in range(3)]))
        rates = " ".join(f"{schedule(step):.4f}" for step in (0, 30, 150, 299))
        print(f"{name:12} {rates}   {ends[name]:.3f}")
    print(f"ends highest: {max(ends, key=ends.__getitem__)}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        for name, schedule in SCHEDULES.items():
            axes.plot([schedule(step) for step in range(STEPS)], label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate")
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
