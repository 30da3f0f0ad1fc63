"""The CUDA kernel in the emulator: no fault, the same bits in any order, the spec's values."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.cuda import source
from gpugrad.fused.layer_norm import _layer_norm

PATH = source.folder() / "layer_norm.cu"


@pytest.mark.parametrize("given", ["all", "plain"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 257), (3, 1023)], ids=str)
def test_agrees_with_the_spec(shape, given):
    rng = np.random.default_rng(shape[1])
    x, residual = (rng.normal(3, 2, shape).astype(np.float32) for _ in range(2))
    weight, bias = (rng.normal(size=shape[1]).astype(np.float32) for _ in range(2))
    if given == "plain":
        residual = weight = bias = None
    total, out = (emulator.empty(shape, np.float32) for _ in range(2))
    mean, rstd = (emulator.empty(shape[0], np.float32) for _ in range(2))
    args = [x, residual, weight, bias, total, out, mean, rstd, shape[1], 1e-5]
    after = emulator.check(
        PATH, "layer_norm_forward", grid=(shape[0], 1, 1), block=(256, 1, 1), args=args
    )

    def spec(dtype):
        tensors = (
            None if a is None else gg.tensor(a, dtype=dtype) for a in (x, weight, bias, residual)
        )
        results = _layer_norm.spec(*tensors, eps=1e-5)
        return results if isinstance(results, tuple) else (results,)

    exact, plain = spec("float64"), spec("float32")
    testing.assert_close(after[5], exact[0], plain[0], factor=2, scale=1.0, name="out")
    h = x if residual is None else x + residual
    if residual is not None:
        np.testing.assert_array_equal(after[4], h)
    np.testing.assert_allclose(after[6], h.mean(1, dtype=np.float64), rtol=1e-5, atol=1e-6)
    expected = 1 / np.sqrt(h.var(1, dtype=np.float64) + 1e-5)
    np.testing.assert_allclose(after[7], expected, rtol=1e-5)
