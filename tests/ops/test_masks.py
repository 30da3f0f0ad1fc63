"""Choosing by a mask: NumPy's where to the bit, for every layout and whatever is left out."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.ops._masks import where_or_zero


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", gg.bfloat16])
def test_is_where(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7)).astype(dtype)
    x[0, :4] = np.nan, np.inf, -np.inf, -0.0
    for values in (x, x.T, x[::2, ::-1], np.broadcast_to(x[0], (3, 7)), x[:0], x[0, 0]):
        for keep in (rng.random(values.shape) < 0.5, np.ones(values.shape, bool)):
            expected = np.where(keep, values, 0).astype(dtype)
            found = np.asarray(where_or_zero(np, keep, values))
            assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())


def test_relu_lets_no_infinite_gradient_through_where_it_is_zero():
    x = gg.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    gg.relu(x).backward(gg.tensor([np.inf, np.nan, np.inf]))
    np.testing.assert_array_equal(x.grad.data, [0.0, 0.0, np.inf])
