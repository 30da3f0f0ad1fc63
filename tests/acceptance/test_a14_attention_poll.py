"""A14: attention is a poll, a weighted mean that does not see the order of the tokens."""

from __future__ import annotations

import numpy as np

import gpugrad as gg
from gpugrad.fused import scaled_dot_product_attention as attention

X = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
WEIGHTS = np.array([0.1, 0.2, 0.6, 0.1])
SWAPPED = [0, 2, 1, 3]


def polled(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what a query receives that gives the tokens these weights; values are the tokens."""
    query = np.zeros((1, 4))  # all scores 0: the weights are the softmax of the mask alone
    return attention(query, tokens, tokens, attn_mask=gg.Tensor(np.log(weights))).data[0]


def test_a14_attention_poll():
    np.testing.assert_allclose(polled(X, WEIGHTS), [0.1, 0.2, 1.2, 0.1], rtol=0, atol=1e-12)


def test_a14_swapping_tokens_with_their_weights_changes_nothing():
    swapped = polled(X[SWAPPED], WEIGHTS[SWAPPED])
    np.testing.assert_allclose(swapped, polled(X, WEIGHTS), rtol=0, atol=1e-12)


def test_a14_with_position_embeddings_the_order_counts():
    positions = np.random.default_rng(0).standard_normal((4, 4))
    before = polled(X + positions, WEIGHTS)
    after = polled(X[SWAPPED] + positions, WEIGHTS[SWAPPED])
    assert np.abs(after - before).max() > 0.1
