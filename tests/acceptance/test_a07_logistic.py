"""A7: logistic regression with w = [.1, -.2], x = [1, 2], b = .3, y = 1."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn
from gpugrad.models import LogisticRegression, LogisticRegressionConfig


def negative_log(score: gg.Tensor, y: gg.Tensor) -> gg.Tensor:
    p = gg.sigmoid(score)
    return -(y * gg.log(p) + (1 - y) * gg.log(1 - p))


@pytest.mark.parametrize(
    "loss", [negative_log, F.binary_cross_entropy_with_logits], ids=["formula", "with-logits"]
)
def test_values(loss) -> None:
    layer = nn.Linear(2, 1, dtype="float64")
    layer.load_state_dict({"weight": np.array([[0.1, -0.2]]), "bias": np.array([0.3])})
    score = layer(gg.tensor([1.0, 2.0], dtype="float64"))
    assert abs(gg.sigmoid(score).item() - 0.5) < 1e-12
    value = loss(score, gg.tensor([1.0], dtype="float64"))
    assert abs(value.item() - math.log(2)) < 1e-12
    value.sum().backward()
    np.testing.assert_allclose(layer.weight.grad.numpy(), [[-0.5, -1.0]], atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), [-0.5], atol=1e-12)


def test_the_model() -> None:
    model = LogisticRegression(LogisticRegressionConfig(2, dtype="float64"))
    model.load_state_dict(
        {"linear.weight": np.array([[0.1, -0.2]]), "linear.bias": np.array([0.3])}
    )
    assert abs(model.probabilities([[1.0, 2.0]]).item() - 0.5) < 1e-12
    model.loss([[1.0, 2.0]], [1]).backward()
    np.testing.assert_allclose(model.linear.weight.grad.numpy(), [[-0.5, -1.0]], atol=1e-12)
    np.testing.assert_allclose(model.linear.bias.grad.numpy(), [-0.5], atol=1e-12)
