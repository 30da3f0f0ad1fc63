"""Layer by layer first: pre-training brings a deep autoencoder where training from scratch stalls.

Points in 20 dimensions that two hidden numbers decide, and a sigmoid autoencoder that has to find
two such numbers through 20 - 16 - 8 - 2 - 8 - 16 - 20. From scratch, gradients vanish in the
sigmoids and the reproduction stays near the mean of the data. Pre-trained one layer at a time, each
on what the layers below make of the data, and then fine-tuned as a whole, it gets further in
equally many steps.

    python -m gpugrad.examples.autoencoder_pretraining [--picture FILE.svg]

>>> main([])
variance of the data: 0...
pre-training, layer 1: error 0...
pre-training, layer 2: error 0...
pre-training, layer 3: error 0...
fine-tuned:            error 0.0...
from scratch:          error 0...
pre-training wins by a factor of ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import Autoencoder, AutoencoderConfig
from gpugrad.optim import SGD

CONFIG = AutoencoderConfig(sizes=(20, 16, 8, 2))
STEPS = 250  # of each layer, and of fine-tuning


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both ways with equally many steps, print the errors, draw them over steps."""
    picture = parse_picture(__doc__, arguments)
    rng = np.random.default_rng(0)
    hidden = rng.uniform(-2, 2, (200, 2))
    x = np.tanh(hidden @ rng.normal(size=(2, 20)) + rng.normal(size=20)).astype("float32")
    print(f"variance of the data: {x.var(axis=0).mean():.4f}")

    gg.manual_seed(0)
    model = Autoencoder(CONFIG)
    for k, (layer, given) in enumerate(model.layerwise(x), start=1):
        errors = fit(layer, given, STEPS)
        print(f"pre-training, layer {k}: error {errors[-1]:.4f}")
    tuned = fit(model, x, STEPS)
    print(f"fine-tuned:            error {tuned[-1]:.4f}")

    gg.manual_seed(0)
    scratch = fit(Autoencoder(CONFIG), x, 4 * STEPS)
    print(f"from scratch:          error {scratch[-1]:.4f}")
    print(f"pre-training wins by a factor of {scratch[-1] / tuned[-1]:.1f}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        axes.semilogy(range(4 * STEPS), scratch, label="from scratch")
        axes.semilogy(range(3 * STEPS, 4 * STEPS), tuned, label="fine-tuned after pre-training")
        axes.axvline(3 * STEPS, color="gray", linestyle=":")
        axes.set_xlabel("step")
        axes.set_ylabel("mean squared error of the whole network")
        axes.legend()
        save(figure, picture)


def fit(part: Any, x: Any, steps: int) -> list[float]:
    """Return the error before each step of descent with momentum, on all data at once."""
    optimizer = SGD(part.parameters(), lr=0.5, momentum=0.9)
    errors = []
    for _ in range(steps):
        loss = part.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return errors


if __name__ == "__main__":
    main(sys.argv[1:])
