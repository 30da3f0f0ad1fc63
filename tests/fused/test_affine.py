"""A linear layer on NumPy where it is large: see also tests/ops/test_products.py."""

from __future__ import annotations

import numpy as np

import gpugrad as gg
from gpugrad import fused


def test_second_derivatives_where_the_bias_is_not_kept():
    """Its values are none of the gradient's business; the products are large enough for threads."""
    rng = np.random.default_rng(0)
    x, weight = (gg.tensor(rng.normal(size=(256, 256)), requires_grad=True) for _ in range(2))
    bias = gg.zeros(256, dtype="float64", requires_grad=True)
    (dx,) = gg.grad((fused.affine(x, weight, bias) ** 2).sum(), [x], create_graph=True)
    (found,) = gg.grad(dx.sum(), [bias])
    np.testing.assert_allclose(found.numpy(), 2 * weight.numpy().sum(1) * len(x), rtol=1e-10)
