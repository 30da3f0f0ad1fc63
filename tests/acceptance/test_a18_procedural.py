"""A18: a = alpha x, z = sigmoid(a), b = beta z, p = softmax(b), J = -y' log p.

The backward pass written out by hand, the engine, and finite differences agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.examples import three_backwards

RNG = np.random.default_rng(18)
ALPHA, BETA = RNG.standard_normal((4, 5)), RNG.standard_normal((3, 4))
X, Y = RNG.standard_normal(5), np.array([0.0, 1.0, 0.0])


def forward_and_backward_by_hand(y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Return J and its derivatives with respect to alpha, beta and x."""
    a = ALPHA @ X
    z = 1 / (1 + np.exp(-a))
    b = BETA @ z
    p = np.exp(b) / np.exp(b).sum()
    loss = -(y * np.log(p)).sum()
    g_p = -y / p
    g_b = (np.diag(p) - np.outer(p, p)) @ g_p
    g_beta = np.outer(g_b, z)
    g_z = BETA.T @ g_b
    g_a = g_z * z * (1 - z)
    return loss, np.outer(g_a, X), g_beta, ALPHA.T @ g_a


def loss(alpha: gg.Tensor, beta: gg.Tensor, x: gg.Tensor, y: np.ndarray = Y) -> gg.Tensor:
    z = gg.sigmoid(alpha @ x)
    e = gg.exp(beta @ z)
    p = e / e.sum()
    return -(gg.tensor(y) * gg.log(p)).sum()


def fused_loss(alpha: gg.Tensor, beta: gg.Tensor, x: gg.Tensor, y: np.ndarray = Y) -> gg.Tensor:
    return F.cross_entropy(beta @ gg.sigmoid(alpha @ x), gg.tensor(y))


@pytest.mark.parametrize("y", [Y, np.array([0.2, 0.3, 0.5])], ids=["one-hot", "probabilities"])
@pytest.mark.parametrize("f", [loss, fused_loss], ids=["plain", "fused"])
def test_engine_equals_hand_written(f: Callable[..., gg.Tensor], y: np.ndarray) -> None:
    tensors = [gg.tensor(v, requires_grad=True) for v in (ALPHA, BETA, X)]
    value = f(*tensors, y)
    value.backward()
    expected, *gradients = forward_and_backward_by_hand(y)
    np.testing.assert_allclose(value.item(), expected, rtol=0, atol=1e-12)
    for t, g in zip(tensors, gradients, strict=True):
        np.testing.assert_allclose(t.grad.numpy(), g, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_by_hand_by_modules_on_a_tape_and_by_the_engine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, width, inputs = 3 + seed, 7 - seed, 5
    shapes = [(width, inputs), (rows, width), (inputs,)]
    arrays = [*map(rng.standard_normal, shapes), np.eye(rows)[seed]]
    value, gradients = three_backwards.procedural(*arrays)
    for other in (
        three_backwards.modules_on_a_tape(*arrays),
        three_backwards.engine(*arrays),
        three_backwards.engine(*arrays, fused=True),
    ):
        np.testing.assert_allclose(other[0], value, rtol=0, atol=1e-12)
        for found, expected in zip(other[1], gradients, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("f", [loss, fused_loss], ids=["plain", "fused"])
def test_engine_equals_finite_differences(f: Callable[..., gg.Tensor]) -> None:
    tensors = [gg.tensor(v, requires_grad=True) for v in (ALPHA, BETA, X)]
    gg.testing.gradcheck(f, tensors)
    gg.testing.gradgradcheck(f, tensors)


def test_gradient_of_fused_softmax_and_cross_entropy() -> None:
    logits = gg.tensor(RNG.standard_normal(3), requires_grad=True)
    F.cross_entropy(logits, gg.tensor(Y)).backward()
    p = np.exp(logits.detach().numpy())
    np.testing.assert_allclose(logits.grad.numpy(), p / p.sum() - Y, rtol=0, atol=1e-12)
