from __future__ import annotations

import numpy as np
import pytest

from gpugrad.generate import Sampler
from gpugrad.models.sampler import log_softmax

P = np.array([0.125, 0.5, 0.125, 0.25])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_p": 1e-9}, [0, 1, 2, 3]),
        ({"min_p": 0.25}, [0, 1, 2, 3]),
        ({"min_p": 0.26}, [1, 3]),
        ({"min_p": 0.51}, [1]),
        ({"min_p": 1.0}, [1]),
        ({"min_p": 0.25, "top_k": 2}, [1, 3]),
        ({"min_p": 0.51, "top_p": 1.0}, [1]),
        ({"min_p": 0.26, "temperature": 2.0}, [0, 1, 2, 3]),  # flattened: 1/2 of the likeliest
        ({"min_p": 0.51, "temperature": 2.0}, [1, 3]),
    ],
    ids=str,
)
def test_min_p(options, kept) -> None:
    found = Sampler(**options).probabilities(np.log(P)[None])[0]
    expected = np.zeros(4)
    expected[kept] = P[kept] ** (1 / options.get("temperature", 1.0))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-320, 5e-324])
def test_at_the_smallest_temperatures_the_likeliest_is_left(temperature) -> None:
    logits = np.array([[-3.0, 2.0, 7.0, 6.9], [5.0, -np.inf, -1e30, 4.0]])
    sampler = Sampler(temperature=temperature, seed=1)
    np.testing.assert_array_equal(sampler.probabilities(logits), [[0, 0, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(sampler.choose(logits, 0), [2, 0])


def test_min_p_keeps_all_of_equals() -> None:
    np.testing.assert_array_equal(Sampler(min_p=1.0).probabilities(np.zeros((2, 5))), 0.2)


def test_min_p_works_row_by_row() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 31)) * 3
    sampler = Sampler(min_p=0.1, top_k=9)
    alone = np.concatenate([sampler.probabilities(row[None]) for row in logits])
    np.testing.assert_array_equal(sampler.probabilities(logits), alone)
    kept = (alone > 0).sum(axis=1)
    assert kept.min() < kept.max() <= 9


def test_repetition_penalty() -> None:
    logits = np.array([[2.0, -2.0, 0.0, 1.0, -np.inf]])
    occurred = np.array([[True, True, True, False, True]])
    found = Sampler(repetition_penalty=4.0).penalized(logits, occurred)
    np.testing.assert_array_equal(found, [[0.5, -8.0, 0.0, 1.0, -np.inf]])
    found = Sampler(repetition_penalty=0.5).penalized(logits, occurred)
    np.testing.assert_array_equal(found, [[4.0, -1.0, 0.0, 1.0, -np.inf]])
    found = Sampler(repetition_penalty=4.0).penalized(logits, np.zeros((1, 5), bool))
    np.testing.assert_array_equal(found, logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_p": 0.0}, r"min_p must lie in \(0, 1\], got 0.0"),
        ({"min_p": 1.1}, "min_p must lie in"),
        ({"min_p": float("nan")}, "min_p must lie in"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty must be > 0 \(1: none\), got 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be > 0"),
    ],
    ids=str,
)
def test_refuses(options, message) -> None:
    with pytest.raises(ValueError, match=f"^Sampler: {message}"):
        Sampler(**options)


def test_log_softmax() -> None:
    logits = np.array([[1.0, -2.0, 1000.0], [0.0, -np.inf, 0.0]])
    with np.errstate(all="raise", under="ignore"):
        found = log_softmax(logits)
    np.testing.assert_allclose(found[0], [-999, -1002, 0])
    np.testing.assert_allclose(np.exp(found[1]), [0.5, 0, 0.5])
    with pytest.raises(FloatingPointError, match="it has diverged"):
        log_softmax(np.array([[np.nan, 0.0]]))
