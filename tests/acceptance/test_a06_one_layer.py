"""A6: one layer softmax(Wx + b) with cross-entropy: dl/dW_ij = -(y_i - p_i) x_j."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("target", ["class", "one-hot", "mixed"])
def test_gradient(label, target) -> None:
    gg.manual_seed(label)
    layer = nn.Linear(4, 3, dtype="float64")
    x = gg.random.normal(size=(4,), dtype="float64")
    y = np.eye(3)[label]
    if target == "mixed":
        y = 0.7 * y + 0.1
    logits = layer(x)
    F.cross_entropy(logits, gg.tensor(label if target == "class" else y)).backward()
    p = F.softmax(logits).detach().numpy()
    expected = -np.outer(y - p, x.numpy())
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), p - y, atol=1e-12)


def test_written_with_plain_operations() -> None:
    """The same without nn: -sum(y log softmax(Wx + b))."""
    gg.manual_seed(0)
    w = gg.random.normal(size=(3, 4), dtype="float64", requires_grad=True)
    b = gg.random.normal(size=(3,), dtype="float64", requires_grad=True)
    x = gg.random.normal(size=(4,), dtype="float64")
    y = gg.tensor([0.0, 1.0, 0.0], dtype="float64")
    e = gg.exp(w @ x + b)
    p = e / e.sum()
    (-(y * gg.log(p)).sum()).backward()
    residual = (y - p).detach().numpy()
    np.testing.assert_allclose(w.grad.numpy(), -np.outer(residual, x.numpy()), atol=1e-12)
    np.testing.assert_allclose(b.grad.numpy(), -residual, atol=1e-12)
