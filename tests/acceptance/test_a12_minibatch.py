"""A12: the mean of the gradients over all batches of one size is the full gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpugrad as gg

N = 7


@pytest.mark.parametrize("size", range(1, N + 1))
def test_mean_over_all_batches(size: int) -> None:
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal((N, 3)), rng.standard_normal(N)
    weight = rng.standard_normal(3)

    def gradient(rows: tuple[int, ...]) -> np.ndarray:
        w = gg.tensor(weight, requires_grad=True)
        error = gg.tanh(gg.tensor(x)[rows,] @ w) - y[list(rows)]
        (error * error).mean().backward()
        return w.grad.numpy()

    batches = list(itertools.combinations(range(N), size))
    average = np.mean([gradient(batch) for batch in batches], axis=0)
    np.testing.assert_allclose(average, gradient(tuple(range(N))), rtol=0, atol=1e-14)
