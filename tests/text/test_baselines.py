from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from math import log

import numpy as np
import pytest

from gpugrad.text import bigram_loss, counts, unigram_loss


def counted_by_hand(train: list[int], val: list[int], vocab_size: int, s: float):
    tokens, contexts = Counter(train), Counter(train[:-1])
    pairs = Counter(pairwise(train))
    neighbours = list(pairwise(val))
    unigram = [-log((tokens[b] + s) / (len(train) + s * vocab_size)) for _, b in neighbours]
    bigram = [-log((pairs[a, b] + s) / (contexts[a] + s * vocab_size)) for a, b in neighbours]
    return sum(unigram) / len(unigram), sum(bigram) / len(bigram)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
@pytest.mark.parametrize("smoothing", [1.0, 0.01, 5])
@pytest.mark.parametrize("vocab_size", [1, 2, 7, 65, 2048, 2049, 60_000])
def test_equals_counting_by_hand(vocab_size: int, smoothing: float, dtype) -> None:
    random = np.random.default_rng(vocab_size)
    train, val = (
        np.minimum(random.geometric(0.2, n) - 1, vocab_size - 1).astype(dtype) for n in (997, 211)
    )
    val[::50] = vocab_size - 1
    unigram, bigram = counted_by_hand(train.tolist(), val.tolist(), vocab_size, smoothing)
    assert unigram_loss(train, val, vocab_size, smoothing) == pytest.approx(unigram, rel=1e-12)
    assert bigram_loss(train, val, vocab_size, smoothing) == pytest.approx(bigram, rel=1e-12)


def test_by_arithmetic() -> None:
    train, val = np.array([0, 1, 0, 1, 1]), np.array([0, 1, 0])
    assert unigram_loss(train, val, 2) == pytest.approx(-(log(4 / 7) + log(3 / 7)) / 2)
    assert bigram_loss(train, val, 2, 1) == pytest.approx(-(log(3 / 4) + log(2 / 4)) / 2)


def test_table_and_sorted_pairs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    train, val = random.integers(0, 300, 5000), random.integers(0, 300, 700)
    table = bigram_loss(train, val, 300)
    monkeypatch.setattr(counts, "_LARGEST_TABLE", 0)
    assert bigram_loss(train, val, 300) == table


def test_large_vocabulary_needs_no_table() -> None:
    """Its table of pairs would take 32 GiB; ids reach beyond what 32 bits number as pairs."""
    train = np.array([0, 65_535, 65_534, 65_535, 65_534], np.uint16)
    loss = bigram_loss(train, train[1:3], 65_536, 1e-9)
    assert loss == pytest.approx(0, abs=1e-3)


def test_bigram_takes_the_best_smoothing() -> None:
    random = np.random.default_rng(0)
    train, val = random.integers(0, 50, 500), random.integers(0, 50, 500)
    each = [bigram_loss(train, val, 50, s) for s in (1.0, 0.1, 0.01)]
    assert bigram_loss(train, val, 50) == min(each)
    assert bigram_loss(train, val, 50, (0.1, 0.01)) == min(each[1:])


def test_uniform_tokens_cost_log_vocab_size() -> None:
    random = np.random.default_rng(0)
    train, val = random.integers(0, 8, 200_000), random.integers(0, 8, 20_000)
    assert unigram_loss(train, val, 8) == pytest.approx(log(8), abs=1e-3)
    assert bigram_loss(train, val, 8) == pytest.approx(log(8), abs=1e-3)


def test_a_cycle_is_all_bigram() -> None:
    cycle = np.tile(np.arange(10), 1000)
    assert unigram_loss(cycle, cycle, 10) == pytest.approx(log(10), abs=1e-3)
    assert bigram_loss(cycle, cycle, 10) < 1e-3


@pytest.mark.parametrize("loss", [unigram_loss, bigram_loss])
@pytest.mark.parametrize("smoothing", [0, -1, float("nan")])
def test_smoothing_must_be_positive(loss, smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"{loss.__name__}: smoothing must be above 0"):
        loss(np.arange(5), np.arange(5), 5, smoothing)


def test_no_smoothing_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="smoothing must be above 0"):
        bigram_loss(np.arange(5), np.arange(5), 5, ())


@pytest.mark.parametrize("loss", [unigram_loss, bigram_loss])
@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0], [0, 1], "train must be 1-D with at least 2 tokens, got shape (1,)"),
        ([0, 1], [], "val must be 1-D with at least 2 tokens, got shape (0,)"),
        ([[0, 1]], [0, 1], "train must be 1-D"),
        ([0, 5], [0, 1], "train has ids 0..5, the vocabulary 0..4"),
        ([0, 1], [-1, 1], "val has ids -1..1, the vocabulary 0..4"),
    ],
    ids=["short train", "empty val", "2-D", "large id", "negative id"],
)
def test_bad_tokens_are_refused(loss, train, val, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{loss.__name__}: {message}")):
        loss(np.array(train), np.array(val), 5)
