"""Softmax and log-softmax: any axis, dtypes, layouts, masks, extreme values, blocks, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import log_softmax, softmax

FUNCTIONS = {"softmax": softmax, "log_softmax": log_softmax}
DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [((1,), 0), ((7,), 0), ((1023,), 0), ((3, 1), 1), ((7, 13), 1), ((7, 13), 0)]
SHAPES += [((2, 3, 17), 2), ((2, 3, 17), 1), ((2, 3, 17), 0), ((0, 4), 1), ((0, 4), 0), ((3, 0), 1)]
both = pytest.mark.parametrize("name", FUNCTIONS)


def drawn(shape, spread=3.0, seed=0):
    return gg.Tensor(np.random.default_rng(seed).normal(0, spread, shape), requires_grad=True)


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, axis, dtype, name, check):
    check(name, FUNCTIONS[name], [drawn(shape)], dtype, axis=axis)


@both
@pytest.mark.parametrize("spread", [1e-6, 30.0, 1e4, 1e30])
def test_small_and_huge_spreads(spread, name, check):
    check(name, FUNCTIONS[name], [drawn((5, 37), spread)], "float32", axis=1)


def test_values_by_hand():
    x = gg.tensor([[0.0, math.log(3.0)], [1e4, 1e4]], dtype="float64")
    np.testing.assert_allclose(softmax(x).data, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(log_softmax(x).data, np.log([[0.25, 0.75], [0.5, 0.5]]), rtol=1e-15)


def test_log_softmax_is_exact_where_softmax_underflows():
    x = gg.tensor([[0.0, -500.0, -3e38]])
    np.testing.assert_array_equal(softmax(x).data, [[1, 0, 0]])
    np.testing.assert_array_equal(log_softmax(x).data, np.float32([[0, -500, -3e38]]))


def test_negative_axis_counts_from_the_end():
    x = drawn((3, 4, 5))
    for axis in range(3):
        for function in FUNCTIONS.values():
            a, b = function(x, axis), function(x, axis - 3)
            assert a.data.tobytes() == b.data.tobytes()


def test_probabilities_sum_to_one_and_gradients_to_zero():
    x = drawn((50, 999))
    out = softmax(x)
    np.testing.assert_allclose(out.data.sum(1), 1, rtol=1e-14)
    (g,) = gg.grad(out, x, gg.Tensor(np.random.default_rng(1).standard_normal((50, 999))))
    np.testing.assert_allclose(g.data.sum(1), 0, atol=1e-14)


@both
def test_masked_elements(name):
    x = np.array([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, -np.inf], [0.0, 0.0, -np.inf]])
    t = gg.Tensor(x, requires_grad=True)
    out = FUNCTIONS[name](t)
    upstream = np.array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    out.backward(gg.Tensor(upstream))
    p = out.data if name == "softmax" else np.exp(out.data)
    assert (p[np.isneginf(x)] == 0).all()
    np.testing.assert_allclose(p.sum(1), [1, 0, 1], rtol=1e-15)
    assert np.isfinite(t.grad.data).all()
    assert (t.grad.data[np.isneginf(x)] == 0).all()


def test_gradient_of_an_all_masked_line_is_zero():
    x = gg.Tensor(np.full((2, 3), -np.inf, np.float32), requires_grad=True)
    softmax(x).backward(gg.Tensor(np.float32([[1, 2, 3], [4, 5, 6]])))
    assert (x.grad.data == 0).all()


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_spoil_their_line_only(bad, name):
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    x[1, 2] = bad
    t = gg.Tensor(x, requires_grad=True)
    out = FUNCTIONS[name](t)
    out.backward(gg.Tensor(x.T.copy().reshape(3, 4)))
    assert np.isnan(out.data[1]).all()
    assert np.isfinite(out.data[[0, 2]]).all()
    assert np.isfinite(t.grad.data[0]).all()


@both
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout, axis, name):
    x, upstream = drawn((4, 5, 7)).data, drawn((4, 5, 7), seed=1).data
    results = []
    for kind in ("contiguous", layout):
        t = gg.Tensor(dict(testing.layouts(x))[kind], requires_grad=True)
        out = FUNCTIONS[name](t, axis)
        out.backward(gg.Tensor(dict(testing.layouts(upstream))[kind]))
        results.append(out.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


@both
def test_broadcast_input(name):
    x = gg.Tensor(np.broadcast_to([[1.0], [2.0]], (2, 3)), requires_grad=True)
    out = FUNCTIONS[name](x)
    np.testing.assert_allclose(np.exp(out.data) if name != "softmax" else out.data, 1 / 3)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.data, 0, atol=1e-15)


@both
@pytest.mark.parametrize("axis", [1, 2])
def test_blocks_and_threads_change_no_bit(axis, name, splits):
    x, upstream = drawn((100, 7, 19)).data, gg.Tensor(drawn((100, 7, 19), seed=1).data)
    results = []
    for _ in splits:
        t = gg.Tensor(x, requires_grad=True)
        out = FUNCTIONS[name](t, axis)
        out.backward(upstream)
        results.append(out.data.tobytes() + t.grad.data.tobytes())
    assert all(r == results[0] for r in results)


def test_second_derivative_of_cross_entropy_is_the_covariance():
    x = gg.Tensor(np.array([0.3, -1.0, 2.0]), requires_grad=True)
    (g,) = gg.grad(-log_softmax(x)[1], x, create_graph=True)
    rows = [gg.grad(g[i], x, retain_graph=True)[0].data for i in range(3)]
    p = softmax(x).data
    np.testing.assert_allclose(rows, np.diag(p) - np.outer(p, p), rtol=0, atol=1e-15)


@both
def test_integers_become_float32(name):
    assert FUNCTIONS[name]([1, 2, 3]).dtype == gg.float32


@both
@pytest.mark.parametrize(("shape", "axis"), [((), 0), ((2, 3), 2), ((2, 3), -3)])
def test_missing_axis_is_refused(shape, axis, name):
    with pytest.raises(IndexError, match=f"{name}: axis {axis} is out of range for {len(shape)}"):
        FUNCTIONS[name](gg.ones(shape), axis)
