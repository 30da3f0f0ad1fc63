"""A21: how often GPT-3's training went through each of its corpora, 300 billion tokens in all."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.text import Mixture, epochs_elapsed

CORPORA = ["Common Crawl", "WebText2", "Books1", "Books2", "Wikipedia"]
WEIGHTS = dict(zip(CORPORA, [0.60, 0.22, 0.08, 0.08, 0.03], strict=True))
SIZES = dict(zip(CORPORA, [410, 19, 12, 55, 3], strict=True))  # billions of tokens
PRINTED = dict(zip(CORPORA, ["0.439", "3.47", "2.0", "0.436", "3.0"], strict=True))


def test_a21_mixture_epochs() -> None:
    epochs = epochs_elapsed(WEIGHTS, SIZES, 300)
    for name, printed in PRINTED.items():
        digits = len(printed.split(".")[1])
        assert f"{epochs[name]:.{digits}f}" == printed
        assert epochs[name] == pytest.approx(WEIGHTS[name] * 300 / SIZES[name], abs=1e-12)


def test_a21_the_sampler_goes_through_its_corpora_as_often() -> None:
    """A thousandth of a millionth of everything; the printed weights add up to 1.01."""
    corpora = {name: np.zeros(1000 * size, np.uint8) for name, size in SIZES.items()}
    mixture = Mixture(corpora, WEIGHTS, block=50, batch=100, seed=21)
    for _ in range(60):  # 300,000 tokens
        next(mixture)
    expected = epochs_elapsed(WEIGHTS, SIZES, 300)
    for name, epochs in mixture.epochs().items():
        rows, p = 6000, WEIGHTS[name] / 1.01
        sigma = np.sqrt(rows * p * (1 - p)) * 50 / len(corpora[name])
        assert abs(epochs - expected[name] / 1.01) < 4 * sigma
