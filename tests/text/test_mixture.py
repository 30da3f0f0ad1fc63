from __future__ import annotations

import json
import re

import numpy as np
import pytest

from gpugrad.text import Mixture, epochs_elapsed

CORPORA = {
    "a": np.arange(1000),
    "b": np.arange(5000, 5300),
    "c": np.arange(9000, 9011),
}
WEIGHTS = {"a": 2.0, "b": 1.0, "c": 1.0}


def mixture(**changes) -> Mixture:
    return Mixture(**{"corpora": CORPORA, "weights": WEIGHTS, "block": 10, "batch": 8, **changes})


def test_rows_are_windows_of_one_corpus_each() -> None:
    batches = mixture(seed=3)
    for _ in range(50):
        x, y = next(batches)
        assert x.shape == y.shape == (8, 10)
        assert x.dtype == y.dtype == np.int64
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(np.diff(x), 1)
        assert all(any(row[0] in c and row[-1] + 1 in c for c in CORPORA.values()) for row in x)


def test_weights_decide_how_often() -> None:
    """Chi-square with 2 degrees of freedom: above 13.8 once in 1000 seeds."""
    batches = mixture(seed=1)
    rows = 500 * 8
    for _ in range(500):
        next(batches)
    assert sum(batches.drawn.values()) == rows
    expected = {"a": rows / 2, "b": rows / 4, "c": rows / 4}
    chi = sum((batches.drawn[k] - n) ** 2 / n for k, n in expected.items())
    assert 0 < chi < 13.8


def test_counts_are_those_of_what_came() -> None:
    batches = mixture(seed=5)
    counts = dict.fromkeys(CORPORA, 0)
    for _ in range(20):
        for row in next(batches)[0]:
            counts[next(k for k, c in CORPORA.items() if row[0] in c)] += 1
    assert batches.drawn == counts
    assert batches.epochs() == {k: 10 * n / len(CORPORA[k]) for k, n in counts.items()}


def test_a_weight_of_0_leaves_a_corpus_out() -> None:
    for weights in ({"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 0, "c": 1}):
        batches = mixture(weights=weights)
        for _ in range(30):
            next(batches)
        assert {k for k, n in batches.drawn.items() if n} == {k for k, w in weights.items() if w}


def test_a_resumed_run_sees_the_batches_it_would_have_seen() -> None:
    one, two = mixture(seed=7), mixture(seed=0)
    for _ in range(9):
        next(one)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.epochs() == one.epochs()
    for _ in range(5):
        for a, b in zip(next(one), next(two), strict=True):
            np.testing.assert_array_equal(a, b)
    assert two.state_dict() == one.state_dict()
    assert not np.array_equal(next(mixture(seed=7))[0], next(mixture(seed=8))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 9}, "taken with block = 10, here it is 9"),
        ({"weights": {**WEIGHTS, "a": 3}}, "taken with weights = "),
        ({"corpora": {**CORPORA, "a": np.arange(99)}}, "taken with tokens = "),
    ],
    ids=["block", "weights", "tokens"],
)
def test_a_state_of_something_else_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(**changes).load_state_dict(mixture().state_dict())


def test_a_state_with_other_keys_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the keys .* got \['seed'\]"):
        mixture().load_state_dict({"seed": 1})


def test_report() -> None:
    batches = mixture()
    assert batches.report().splitlines()[1].split() == ["a", "1,000", "50.0%", "0.0%", "0.000"]
    next(batches)
    header, *rows = batches.report().splitlines()
    assert header.split() == ["corpus", "tokens", "weight", "share", "epochs"]
    for row, (name, epochs) in zip(rows, batches.epochs().items(), strict=True):
        share = f"{batches.drawn[name] / 8:.1%}"
        assert [row.split()[i] for i in (0, 3, 4)] == [name, share, f"{epochs:.3f}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"a": 1, "b": 1}}, "must name the same corpora"),
        ({"weights": {}, "corpora": {}}, "at least one; got [] and []"),
        ({"weights": {**WEIGHTS, "a": -1}}, "weights must be >= 0, finite and not all 0"),
        ({"weights": {**WEIGHTS, "a": float("nan")}}, "weights must be >= 0, finite"),
        ({"weights": dict.fromkeys("abc", 0)}, "not all 0"),
        ({"block": 11}, "corpus 'c': RandomWindows: 11 tokens are too few for block 11"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
    ],
    ids=["names", "none", "negative", "nan", "zero", "short", "batch", "seed"],
)
def test_bad_arguments_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": 1}, {"b": 1}, 3), "weights and sizes must name the same corpora"),
        (({"a": 1}, {"a": 0}, 3), "the size of 'a' must be > 0, got 0"),
        (({"a": -1}, {"a": 1}, 3), "the weight of 'a' must be >= 0, got -1"),
        (({"a": 1}, {"a": 1}, -3), "tokens must be >= 0, got -3"),
    ],
    ids=["names", "size", "weight", "tokens"],
)
def test_epochs_elapsed_refuses(arguments, message) -> None:
    with pytest.raises(ValueError, match=re.escape(f"epochs_elapsed: {message}")):
        epochs_elapsed(*arguments)
