"""A8: relu'(0) = 0, sigmoid' = sigmoid (1 - sigmoid), the Jacobian of softmax."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn


@pytest.mark.parametrize("relu", [gg.relu, F.relu, nn.ReLU()], ids=["gg", "functional", "module"])
@pytest.mark.parametrize("zero", [0.0, -0.0], ids=["zero", "negative-zero"])
def test_relu_at_zero(relu, zero) -> None:
    """A choice from the Clarke subdifferential [0, 1]; one textbook chooses 1."""
    x = gg.tensor([-1.0, zero, 1.0], requires_grad=True)
    relu(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "sigmoid", [gg.sigmoid, F.sigmoid, nn.Sigmoid()], ids=["gg", "functional", "module"]
)
def test_derivative_of_sigmoid(sigmoid) -> None:
    x = gg.linspace(-6, 6, 25, dtype="float64").requires_grad_()
    s = sigmoid(x)
    s.sum().backward()
    s = s.detach().numpy()
    np.testing.assert_allclose(x.grad.numpy(), s * (1 - s), atol=1e-12)


@pytest.mark.parametrize("softmax", [F.softmax, nn.Softmax(dim=0)], ids=["functional", "module"])
def test_jacobian_of_softmax(softmax) -> None:
    x = gg.random.normal(size=(5,), dtype="float64", requires_grad=True)
    s = softmax(x)
    rows = [gg.grad(s, x, gg.tensor(row), retain_graph=True)[0].numpy() for row in np.eye(5)]
    s = s.detach().numpy()
    np.testing.assert_allclose(rows, s[:, None] * (np.eye(5) - s), atol=1e-12)
