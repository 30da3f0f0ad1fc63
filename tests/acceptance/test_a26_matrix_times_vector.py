"""A26: W x as products with the rows of W, and as a sum of its columns, is one thing."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F


def by_rows(w: gg.Tensor, x: gg.Tensor) -> gg.Tensor:
    return gg.stack([(w[i] * x).sum() for i in range(w.shape[0])])


def by_columns(w: gg.Tensor, x: gg.Tensor) -> gg.Tensor:
    total = gg.zeros(w.shape[0], dtype=w.dtype)
    for j in range(w.shape[1]):
        total = total + w[:, j] * x[j]
    return total


@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (5, 1), (7, 7)], ids=str)
@pytest.mark.parametrize("form", [by_rows, by_columns])
def test_equal(form, shape) -> None:
    w = gg.random.normal(size=shape, dtype="float64", requires_grad=True)
    x = gg.random.normal(size=shape[1:], dtype="float64", requires_grad=True)
    g = gg.random.normal(size=shape[:1], dtype="float64")
    expected = w.detach().numpy() @ x.detach().numpy()
    gradients = []
    for product in (form, gg.matmul, lambda w, x: F.linear(x, w)):
        out = product(w, x)
        np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-12)
        gradients.append(gg.grad(out, [w, x], g))
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-12)
