"""Short documents share rows without seeing each other: less padding, the same losses.

Padded to one length, a batch of documents is mostly padding. Packed, each document stands beside
others, sees only itself (a mask of blocks along the diagonal) and counts its positions from 0.
Every token then has the loss that it has in a row of its own, and every parameter the gradient.
Without the mask it has not.

    python -m gpugrad.examples.packing [--picture FILE.svg]

>>> main([])
40 documents of 2 to 64 tokens
padded  40 rows, 41 % tokens
packed  17 rows, 97 % tokens
largest difference of a loss         less than 1e-12: True
largest difference of a gradient     less than 1e-12: True
largest difference without the mask  0.0...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad import nn
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import pack, pad_batch

BLOCK, VOCABULARY = 64, 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how full the rows are and how little losses and gradients change."""
    picture = parse_picture(__doc__, arguments)
    random = np.random.default_rng(0)
    lengths = np.minimum(random.geometric(0.04, size=40) + 1, BLOCK)
    documents = [random.integers(VOCABULARY, size=n) for n in lengths]
    print(f"{len(documents)} documents of {lengths.min()} to {lengths.max()} tokens")

    padded = pad_batch(documents, BLOCK)
    packed = pack(documents, BLOCK)
    print(f"padded  {len(padded.ids)} rows, {100 * padded.mask.mean():.0f} % tokens")
    print(f"packed  {len(packed.ids)} rows, {100 * packed.fill:.0f} % tokens")

    gg.manual_seed(0)
    model = GPT(GPTConfig(VOCABULARY, BLOCK, n_layer=1, n_head=2, n_embd=16, dtype="float64"))
    mask = nn.document_mask(packed.documents)

    def losses(ids: np.ndarray, targets: np.ndarray, **settings: Any) -> np.ndarray:
        """Return the loss of each token that has one; leave the gradients of their mean."""
        model.zero_grad()
        loss = model.loss(ids, targets, "none", **settings)
        counted = targets != -100
        (loss.sum() / int(counted.sum())).backward()
        return loss.numpy()[counted]

    def gradients() -> list[np.ndarray]:
        return [p.grad.numpy() for p in model.parameters() if p.grad is not None]

    alone = losses(padded.ids, padded.targets)
    expected = gradients()
    # the tokens of both batches in one order: by document, then by position
    counted = packed.targets != -100
    order = np.lexsort((packed.positions[counted], packed.documents[counted]))
    together = losses(packed.ids, packed.targets, attn_mask=mask, positions=packed.positions)
    difference = max(abs(a - b).max() for a, b in zip(gradients(), expected, strict=True))
    print(
        "largest difference of a loss         less than 1e-12:",
        abs(together[order] - alone).max() < 1e-12,
    )
    print("largest difference of a gradient     less than 1e-12:", difference < 1e-12)
    seen = losses(packed.ids, packed.targets, positions=packed.positions)
    print(f"largest difference without the mask  {abs(seen[order] - alone).max():.3f}")

    if picture is not None:
        figure = new_figure(9, 5)
        left, right = figure.subplots(1, 2)
        numbers = np.where(padded.mask, np.arange(len(documents))[:, None], -1)
        for axes, shown, name in (
            (left, numbers, "padded"),
            (right, packed.documents, "packed"),
        ):
            colours = np.where(shown < 0, np.nan, shown * 7 % 20)
            axes.imshow(colours, cmap="tab20", aspect="auto", interpolation="none")
            axes.set(title=f"{name}: {len(shown)} rows", xlabel="place in the row")
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
