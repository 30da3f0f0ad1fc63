"""A2: a value used more than once collects a gradient from every use."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


def variable(value: float) -> gg.Tensor:
    return gg.tensor(value, "float64", requires_grad=True)


def test_two_doublings() -> None:
    a = variable(1.7)
    b = a + a
    (b + b).backward()
    assert a.grad.item() == 4.0


def test_square_as_a_product() -> None:
    x = variable(-3.0)
    (x * x).backward()
    assert x.grad.item() == -6.0


@pytest.mark.parametrize("weight", [0.0, 0.1, 5.0])
def test_a_penalty_on_a_value_used_elsewhere(weight: float) -> None:
    a, b, c = variable(3.0), variable(1.0), variable(-2.0)
    (c * (a + 2.0 * b) + weight * c**2).backward()
    np.testing.assert_allclose(c.grad.item(), 5.0 + 2.0 * weight * -2.0, atol=1e-12)
    assert (a.grad.item(), b.grad.item()) == (-2.0, -4.0)
