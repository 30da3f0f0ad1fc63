"""A10: three steps of AdamW on one number."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.optim import AdamW

EXPECTED = [0.899000002, 0.8714672987058463, 0.804784672376384]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-7)])
def test_a10_adamw(dtype: str, tolerance: float) -> None:
    theta = gg.tensor(1.0, dtype=dtype, requires_grad=True)
    optimizer = AdamW([theta], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    reached = []
    for g in (0.5, -0.25, 1.0):
        optimizer.zero_grad()
        (theta * g).backward()
        optimizer.step()
        reached.append(theta.item())
    np.testing.assert_allclose(reached, EXPECTED, rtol=0, atol=tolerance)
