"""A15: a causal softmax row sees the past only, with zeros that are exact."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.fused import scaled_dot_product_attention as attention
from gpugrad.models import GPT, GPTConfig

X = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
ROWS = [
    [1, 0, 0, 0],
    [0.3775406688, 0.6224593312, 0, 0],
    [0.106506979, 0.106506979, 0.786986042, 0],
    [0.215112919, 0.215112919, 0.215112919, 0.354661244],
]


def test_a15_causal_weights():
    x = gg.Tensor(X)
    weights = attention(x, x, np.eye(4), is_causal=True)  # values: one axis for each token
    np.testing.assert_allclose(weights.data, ROWS, rtol=0, atol=5e-10)
    assert (weights.data[np.triu_indices(4, 1)] == 0).all()


def test_a15_no_gradient_is_nan():
    x = gg.Tensor(X, requires_grad=True)
    attention(x, x, x, is_causal=True).sum().backward()
    assert np.isfinite(x.grad.data).all()


def test_a15_a_later_token_changes_nothing_before_it():
    before = attention(X, X, X, is_causal=True).data
    for t in range(3):
        changed = X.copy()
        changed[t + 1] = [1e4, -3.0, np.inf, 7.0]
        after = attention(changed, changed, np.nan_to_num(changed), is_causal=True).data
        np.testing.assert_array_equal(after[: t + 1], before[: t + 1])


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "relative"])
def test_a15_a_later_token_changes_no_logits_before_it(positions, norm_first):
    gg.manual_seed(15)
    model = GPT(
        GPTConfig(11, 8, 2, 4, 16, positions=positions, norm_first=norm_first, n_kv_head=2)
    ).eval()
    ids = gg.random.integers(11, size=(3, 8)).numpy()
    before = model(ids)[0].numpy()
    for t in range(7):
        changed = ids.copy()
        changed[:, t + 1] = (ids[:, t + 1] + 1) % 11
        after = model(changed)[0].numpy()
        np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
        assert (after[:, t + 1] != before[:, t + 1]).any(axis=-1).all()
