from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from gpugrad.text import NGramCounts, counts


def grams(tokens: list[int], m: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + m]) for i in range(len(tokens) - m + 1)]


@pytest.mark.parametrize("largest", [0, 2**22], ids=["sorted", "table"])
@pytest.mark.parametrize(("size", "vocab_size"), [(5, 2), (300, 3), (1000, 40), (200, 2**40)])
def test_equals_counting_by_hand(size, vocab_size, largest, monkeypatch):
    monkeypatch.setattr(counts, "_LARGEST_TABLE", min(largest, 2**22))
    random = np.random.default_rng(size)
    tokens = (random.geometric(0.2, size) % min(vocab_size, 50)).astype(np.int64)
    tokens[::7] = vocab_size - 1
    found = NGramCounts(tokens, vocab_size, 4)
    text = tokens.tolist()
    for m in range(1, 5):
        level, expected = found.levels[m - 1], Counter(grams(text, m))
        numbers = found.find_all(np.array(sorted(expected)))
        assert level.counts[numbers].tolist() == [expected[g] for g in sorted(expected)]
        assert len(level.codes) == len(expected)
        assert (np.diff(level.codes) > 0).all()
        if m < 4:
            before = Counter(g[1:] for g in set(grams(text, m + 1)))
            assert level.preceded[numbers].tolist() == [before[g] for g in sorted(expected)]
        prefixes = Counter(g[:-1] for g in grams(text, m))
        sums = found.followed(m, level.counts)
        known = sorted({g[:-1] for g in expected})
        places = found.find_all(np.array(known).reshape(len(known), m - 1))
        assert sums[places].tolist() == [prefixes[g] for g in known]
    assert found.levels[3].preceded is None


def test_what_does_not_occur_is_not_found():
    found = NGramCounts(np.array([0, 1, 2, 1, 0]), 4, 3)
    assert found.find_all(np.array([[3, 0], [0, 2], [1, 0], [1, 3]])).tolist()[:2] == [-1, -1]
    assert found.find(np.array([-1, 0]), np.array([0, 0]), 1).tolist() == [-1, 0]
    assert found.find_all(np.zeros((2, 0), np.int64)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "order", "message"),
    [
        ([0, 1], 0, "order must be at least 1, got 0"),
        ([0, 1], 3, "tokens must be 1-D with at least 3 tokens, got shape (2,)"),
        ([], 1, "at least 1 token, got shape (0,)"),
        ([[0, 1]], 1, "got shape (1, 2)"),
        ([0, 9], 1, "tokens has ids 0..9, the vocabulary 0..4"),
        ([0.5, 1.0], 1, "tokens must be integers, got dtype float64"),
    ],
)
def test_bad_tokens_are_refused(tokens, order, message):
    with pytest.raises(
        ValueError,
        match=re.escape(f"NGramCounts: {message}") if "order" in message else re.escape(message),
    ):
        NGramCounts(np.array(tokens), 5, order)
