"""Ancestral sampling: sequences appear as often as the model's path probabilities say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import generate

SYMBOLS, LENGTH, SEQUENCES = 3, 3, 20_000
# 0.999 quantile of chi-square with 26 degrees of freedom, for the 27 sequences
LIMIT_26 = 54.05


class Toy:
    """Next-symbol logits that depend on the last two symbols, so that paths matter."""

    block_size = 8

    def __init__(self) -> None:
        self.table = np.random.default_rng(3).normal(size=(SYMBOLS, SYMBOLS, SYMBOLS))

    def next_logits(self, ids, cache=None):
        ids = ids.numpy()
        return gg.Tensor(self.table[ids[:, -2], ids[:, -1]])

    def new_cache(self):
        return None


def path_probabilities(model: Toy, start: list[int], temperature: float) -> np.ndarray:
    """The product of the conditional probabilities along each of the 27 paths."""
    probabilities = []
    for path in product(range(SYMBOLS), repeat=LENGTH):
        text, p = list(start), 1.0
        for symbol in path:
            weights = np.exp(model.table[text[-2], text[-1]] / temperature)
            p *= weights[symbol] / weights.sum()
            text.append(symbol)
        probabilities.append(p)
    return np.array(probabilities)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


def sampled(model: Toy, start: list[int], **options) -> np.ndarray:
    prompt = np.tile(start, (SEQUENCES, 1))
    paths = generate(model, prompt, LENGTH, **options).numpy()[:, len(start) :]
    return np.bincount(paths @ SYMBOLS ** np.arange(LENGTH)[::-1], minlength=SYMBOLS**LENGTH)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("start", [[0, 0], [2, 1]], ids=str)
def test_ancestral(start, temperature) -> None:
    model = Toy()
    probabilities = path_probabilities(model, start, temperature)
    assert abs(probabilities.sum() - 1) < 1e-12
    counts = sampled(model, start, temperature=temperature, seed=1)
    assert counts.sum() == SEQUENCES
    assert chi_square(counts, probabilities) < LIMIT_26


def test_ancestral_from_the_shared_generator() -> None:
    model = Toy()
    gg.manual_seed(9)
    counts = sampled(model, [0, 1])
    assert chi_square(counts, path_probabilities(model, [0, 1], 1.0)) < LIMIT_26


def test_ancestral_the_test_can_fail() -> None:
    """Frequencies of another temperature are found out."""
    model = Toy()
    counts = sampled(model, [0, 0], temperature=1.1, seed=1)
    assert chi_square(counts, path_probabilities(model, [0, 0], 1.0)) > LIMIT_26
