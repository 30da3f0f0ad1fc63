"""dpo_loss: its value, its textbook gradient through a model, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.nn import functional as F


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.fixture
def four():
    return np.random.default_rng(11).normal(-20, 5, size=(4, 7))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value(four, smoothing):
    z = 0.3 * ((four[0] - four[2]) - (four[1] - four[3]))
    expected = -(1 - smoothing) * np.log(sigmoid(z)) - smoothing * np.log(sigmoid(-z))
    options = {"beta": 0.3, "label_smoothing": smoothing}
    losses = F.dpo_loss(*four, **options, reduction="none")
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)
    assert F.dpo_loss(*four, **options).item() == pytest.approx(expected.mean(), rel=1e-12)
    assert F.dpo_loss(*four, **options, reduction="sum").item() == pytest.approx(expected.sum())


def test_gradient_of_the_four(four):
    tensors = [gg.tensor(x, requires_grad=True) for x in four]
    assert gg.testing.gradgradcheck(lambda *x: F.dpo_loss(*x, beta=0.3), tensors)
    F.dpo_loss(*tensors, beta=0.3, reduction="sum").backward()
    weight = 0.3 * sigmoid(-0.3 * ((four[0] - four[2]) - (four[1] - four[3])))
    for tensor, sign in zip(tensors, (-1, 1, 1, -1), strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), sign * weight, rtol=1e-12)


def test_the_textbook_gradient_of_a_policy():
    """-beta s(-beta d) (grad log pi(w) - grad log pi(l)), averaged over pairs, through softmax."""
    rng = np.random.default_rng(2)
    logits = gg.tensor(rng.normal(size=(5, 6)), requires_grad=True)  # one answer token per prompt
    reference = gg.tensor(rng.normal(size=(5, 6)))
    chosen = rng.integers(6, size=5)
    rejected = (chosen + rng.integers(1, 6, size=5)) % 6
    beta, rows = 0.7, np.arange(5)
    policy, fixed = F.log_softmax(logits, -1), F.log_softmax(reference, -1)
    pairs = [p[rows, ids] for p in (policy, fixed) for ids in (chosen, rejected)]
    F.dpo_loss(*pairs, beta=beta).backward()

    p, pw, pl, rw, rl = np.exp(policy.numpy()), *(x.numpy() for x in pairs)
    weight = beta * sigmoid(-beta * ((pw - rw) - (pl - rl)))
    one_hot = np.eye(6)
    grad_w, grad_l = one_hot[chosen] - p, one_hot[rejected] - p  # of log softmax by the logits
    expected = -weight[:, None] * (grad_w - grad_l) / 5
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-12, atol=1e-16)


def test_at_the_reference_it_is_log_2_and_far_away_it_stays_finite():
    x = np.float32([-3.0, -1e4])
    assert F.dpo_loss(x, x - 1, x, x - 1).item() == pytest.approx(np.log(2))
    far = gg.tensor([-1e6, 0.0], requires_grad=True)
    loss = F.dpo_loss(far, [0.0, -1e6], [0.0, 0.0], [0.0, 0.0], beta=1.0, reduction="none")
    np.testing.assert_array_equal(loss.numpy(), [1e6, 0.0])
    loss.sum().backward()
    np.testing.assert_array_equal(far.grad.numpy(), [-1.0, 0.0])


def test_what_is_refused(four):
    with pytest.raises(ValueError, match="beta must be a number above 0, got 0"):
        F.dpo_loss(*four, beta=0)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0\.5\), got 0\.5"):
        F.dpo_loss(*four, label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"same shape, \(N,\), got \(7,\), \(7, 1\)"):
        F.dpo_loss(four[0], four[1][:, None], four[2], four[3])
    with pytest.raises(ValueError, match="reduction must be"):
        F.dpo_loss(*four, reduction="max")
