"""A3: the cross-entropy of a target of probability 0.9, and of 0.1."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.fused import cross_entropy


@pytest.mark.parametrize(
    ("probability", "loss"), [(0.9, 0.10536051565782628), (0.1, 2.302585092994046)]
)
def test_a03_cross_entropy(probability, loss):
    logits = gg.Tensor(np.log([[probability, 1 - probability]]))
    for target in ([0], gg.tensor([[1.0, 0.0]], dtype="float64")):
        np.testing.assert_allclose(cross_entropy(logits, target).item(), loss, rtol=0, atol=1e-12)
