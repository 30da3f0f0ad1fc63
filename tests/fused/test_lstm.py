"""Long short-term memory over a sequence: dtypes, sizes, layouts, NaN, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.fused import lstm


def inputs(T, N, H, scale=0.7, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(T, N, 4 * H), (4 * H, H), (N, H), (N, H)]
    return [gg.Tensor(rng.normal(0, scale, s), requires_grad=True) for s in shapes]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 3, 7), (2, 1, 64), (17, 4, 5)], ids=str)
def test_obeys_the_tolerance_rule(sizes, dtype, check):
    check("lstm", lstm, inputs(*sizes), dtype)


def test_saturated_gates(check):
    check("lstm", lstm, inputs(6, 2, 5, scale=30.0), "float32")


def test_memory_layout_does_not_change_a_bit():
    arrays = [t.data for t in inputs(4, 3, 5)]
    found = []
    for turn in (False, True):
        given = [np.asfortranarray(a) if turn else a for a in arrays]
        tensors = [gg.Tensor(a, requires_grad=True) for a in given]
        out = lstm(*tensors)
        outs = out if isinstance(out, tuple) else (out,)
        grads = gg.grad(outs, tensors, [gg.Tensor(np.full(o.shape, 0.5)) for o in outs])
        found.append([t.data for t in (*outs, *grads)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_nan_stays_in_its_sequence():
    arrays = [t.data for t in inputs(4, 3, 5)]
    arrays[0][1, 2, 0] = np.nan
    tensors = [gg.Tensor(a, requires_grad=True) for a in arrays]
    out = lstm(*tensors)
    out = out[0] if isinstance(out, tuple) else out
    assert np.isfinite(out.data[:, :2]).all()
    assert np.isfinite(out.data[0]).all()
    assert np.isnan(out.data[2:, 2]).any()


def test_empty_batch():
    out = lstm(*inputs(3, 0, 2))
    out = out[0] if isinstance(out, tuple) else out
    out.sum().backward()
    assert out.shape == (3, 0, 2)


@pytest.mark.parametrize("wrong", range(4))
def test_errors_name_the_shapes(wrong):
    given = inputs(2, 3, 4)
    given[wrong] = gg.ones(*given[wrong].shape[:-1], 5)
    with pytest.raises(ValueError, match=r"lstm: x, weight and the initial state must be \(T, N, "):
        lstm(*given)


def test_no_steps_are_refused():
    x, *others = inputs(2, 3, 4)
    with pytest.raises(ValueError, match="with T > 0"):
        lstm(x[:0], *others)
