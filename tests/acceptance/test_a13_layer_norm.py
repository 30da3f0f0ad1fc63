"""A13: layer normalisation uses the biased standard deviation."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.fused import layer_norm


@pytest.mark.parametrize(
    ("eps", "outer", "inner"),
    [(0.0, 1.3416407865, 0.4472135955), (1e-5, 1.341635419969, 0.447211806656)],
)
def test_a13_layer_norm(eps, outer, inner):
    out = layer_norm(gg.tensor([1.0, 2.0, 3.0, 4.0], dtype="float64"), eps=eps)
    digits = 5e-11 if eps == 0 else 5e-13
    np.testing.assert_allclose(out.data, [-outer, -inner, inner, outer], rtol=0, atol=digits)
