"""Several corpora in one training run, each by its weight: small good ones are seen many times.

GPT-3 read 300 billion tokens, a corpus by its weight and not by its size: of Wikipedia's three
billion it read each three times, of Common Crawl not half (Brown et al., 2020, table 2.2, whose
weights add up to 101 %). Below, a sampler does the same with corpora of as many thousand tokens.

    python -m gpugrad.examples.mixture [--picture FILE.svg]

>>> main([])
expected of 300 billion tokens
  Common Crawl  410 billion  60 %   0.439 epochs
  WebText2       19 billion  22 %   3.474 epochs
  Books1         12 billion   8 %   2.000 epochs
  Books2         55 billion   8 %   0.436 epochs
  Wikipedia       3 billion   3 %   3.000 epochs
counted after 303000 tokens
corpus                tokens  weight   share  epochs
Common Crawl         410,000   59.4%   59.5%   0.440
WebText2              19,000   21.8%   21.2%   3.374
Books1                12,000    7.9%    8.0%   2.018
Books2                55,000    7.9%    8.3%   0.460
Wikipedia              3,000    3.0%    3.0%   3.000
going on from a saved state gives the same batches: True
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.text import Mixture, epochs_elapsed

SIZES = {"Common Crawl": 410, "WebText2": 19, "Books1": 12, "Books2": 55, "Wikipedia": 3}
WEIGHTS = {"Common Crawl": 0.6, "WebText2": 0.22, "Books1": 0.08, "Books2": 0.08, "Wikipedia": 0.03}
TOKENS = 300
BLOCK, BATCH, STEPS = 30, 100, 101  # 303,000 tokens: the weights add up to 1.01


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the epochs that are to be expected, then those that a sampler counts."""
    picture = parse_picture(__doc__, arguments)
    print(f"expected of {TOKENS} billion tokens")
    for name, epochs in epochs_elapsed(WEIGHTS, SIZES, TOKENS).items():
        weight = f"{100 * WEIGHTS[name]:2.0f} %"
        print(f"  {name:12} {SIZES[name]:4} billion  {weight}   {epochs:.3f} epochs")

    random = np.random.default_rng(0)
    corpora = {name: random.integers(0, 256, 1000 * size) for name, size in SIZES.items()}
    mixture = Mixture(corpora, WEIGHTS, BLOCK, BATCH, seed=1)
    for _ in range(STEPS):
        next(mixture)
    print(f"counted after {mixture.step * BATCH * BLOCK} tokens")
    print(mixture.report())
    counted = mixture.epochs()

    resumed = Mixture(corpora, WEIGHTS, BLOCK, BATCH)
    resumed.load_state_dict(mixture.state_dict())
    same = all(np.array_equal(a, b) for a, b in zip(next(mixture), next(resumed), strict=True))
    print("going on from a saved state gives the same batches:", same)

    if picture is not None:
        figure = new_figure(8, 4)
        axes = figure.subplots()
        rows = np.arange(len(SIZES))
        for offset, parts, label in ((-0.2, SIZES, "of all tokens"), (0.2, WEIGHTS, "of a batch")):
            shares = 100 * np.array(list(parts.values())) / sum(parts.values())
            axes.barh(rows + offset, shares, 0.4, label=label)
        for row, epochs in enumerate(counted.values()):
            axes.text(100, row, f"{epochs:.2f} epochs", ha="right", va="center")
        axes.set(yticks=rows, yticklabels=SIZES, xlabel="%", xlim=(0, 100))
        axes.invert_yaxis()
        axes.legend(loc="lower center")
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
