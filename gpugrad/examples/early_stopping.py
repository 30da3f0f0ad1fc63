"""Stop when the validation loss stops falling, and keep the parameters of its best moment.

A network with many more parameters than the 24 examples it trains on: the training loss falls for
ever, the validation loss falls and then rises. With patience, training stops some evaluations
after the best one, whose parameters are taken back.

    python -m gpugrad.examples.early_stopping [--picture FILE.svg]

>>> main([])
step   training   validation
   0      0.52...     0.60...
 100      ...
 200      ...
 300      ...
 400      ...
 500      ...
 600      ...
 700      ...
 800      ...
stopped after step ..., 8 evaluations after the best, at step ...
with the parameters of the best: validation 0.2...
without early stopping, after step 1200: training 0.0..., validation 0...
early stopping was better: True
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.train import Patience

LAST, EVERY = 1200, 50


def sample(count: int) -> tuple[gg.Tensor, gg.Tensor]:
    """Return inputs (count, 1) and noisy targets."""
    inputs = gg.random.uniform(-2, 2, size=(count, 1))
    return inputs, gg.sin(2 * inputs) + gg.random.normal(scale=0.4, size=(count, 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train to the end, note where early stopping would have stopped, and compare."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(1)
    training, validation = sample(24), sample(200)
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    model.append(nn.Linear(64, 1))
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    patience, stopped, kept = Patience(8), None, model.state_dict()
    curves: list[tuple[int, float, float]] = []

    def loss(data: tuple[gg.Tensor, gg.Tensor]) -> gg.Tensor:
        return nn.functional.mse_loss(model(data[0]), data[1])

    print("step   training   validation")
    for step in range(LAST + 1):
        if step % EVERY == 0:
            with gg.no_grad():
                curves.append((step, float(loss(training)), float(loss(validation))))
            if step <= 800 and step % 100 == 0:
                print(f"{step:4}   {curves[-1][1]:8.3f}   {curves[-1][2]:10.3f}")
            if stopped is None:
                if patience.update(curves[-1][2], step):
                    kept = {name: tensor.copy() for name, tensor in model.state_dict().items()}
                if patience.exhausted:
                    stopped = step
        optimizer.zero_grad()
        loss(training).backward()
        optimizer.step()
    best = f"{patience.waited} evaluations after the best, at step {patience.best_step}"
    print(f"stopped after step {stopped}, {best}")
    end = curves[-1]
    model.load_state_dict(kept)
    early = float(loss(validation))
    print(f"with the parameters of the best: validation {early:.3f}")
    print(f"without early stopping, after step {LAST}: ", end="")
    print(f"training {end[1]:.3f}, validation {end[2]:.3f}")
    print(f"early stopping was better: {early < end[2]}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        steps, train, dev = zip(*curves, strict=True)
        axes.semilogy(steps, train, label="training")
        axes.semilogy(steps, dev, label="validation")
        axes.axvline(patience.best_step, color="gray", linestyle="--", label="best")
        axes.axvline(stopped or LAST, color="black", linestyle=":", label="stopped")
        axes.set_xlabel("step")
        axes.set_ylabel("mean squared error")
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
