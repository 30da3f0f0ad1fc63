"""GELU and bias + GELU: both forms, shapes, dtypes, layouts, tails, blocks, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import FUSED, _rows, bias_gelu, gelu

SHAPES = [(), (1,), (0,), (7,), (1023,), (7, 13), (2, 3, 17), (3, 0, 2)]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
FORMS = ["none", "tanh"]
forms = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def drawn(*shapes, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return [gg.Tensor(np.asarray(rng.normal(0, spread, s)), requires_grad=True) for s in shapes]


def exact(x):
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


def by_tanh(x):
    return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("form", "formula"), [("none", exact), ("tanh", by_tanh)])
def test_values_by_formula(form, formula):
    x = np.linspace(-9, 9, 501)
    expected = [formula(v) for v in x]
    np.testing.assert_allclose(gelu(x, form).data, expected, rtol=0, atol=4e-15)
    narrow = gelu(x.astype(np.float32), form)
    np.testing.assert_allclose(narrow.data, expected, rtol=3e-7, atol=3e-7)


def test_forms_differ_by_less_than_the_documented_bound():
    x = np.linspace(-6, 6, 4001)
    difference = np.abs(gelu(x).data - gelu(x, "tanh").data).max()
    assert 1e-4 < difference < 5e-4


@forms
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, dtype, form, check):
    check("gelu", gelu, drawn(shape), dtype, approximate=form)


@forms
@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (7,), (7, 13), (33, 64), (5, 1023), (0, 4), (2, 3, 0)])
def test_bias_obeys_the_tolerance_rule(shape, dtype, form, check):
    check("bias_gelu", bias_gelu, drawn(shape, shape[-1:]), dtype, approximate=form)


@forms
@pytest.mark.parametrize("region", [(-5, -3), (-1, 1), (-0.01, 0.01), (2, 6), (-99, 99)], ids=str)
def test_each_region_obeys_the_tolerance_rule(region, form, check):
    x = np.random.default_rng(2).uniform(*region, 20000)
    check("gelu", gelu, [gg.Tensor(x, requires_grad=True)], "float32", approximate=form)


@forms
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits_of_huge_and_infinite_inputs(dtype, form):
    x = gg.Tensor(np.array([-np.inf, -1e30, -50, 50, 1e30, np.inf], dtype), requires_grad=True)
    for run in (gelu, FUSED["gelu"].spec):
        with np.errstate(all="raise"):
            out = run(x, approximate=form)
        (g,) = gg.grad(out.sum(), x)
        np.testing.assert_array_equal(out.data, np.maximum(x.data, 0))
        np.testing.assert_array_equal(g.data, x.data > 0)


@forms
def test_nan_stays_where_it_is(form):
    x = gg.Tensor(np.array([1.0, np.nan, -1.0], np.float32), requires_grad=True)
    out = gelu(x, form)
    out.backward(gg.ones(3))
    assert np.isnan(out.data).tolist() == np.isnan(x.grad.data).tolist() == [False, True, False]


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    x, bias, upstream = (t.data for t in drawn((6, 5, 7), (7,), (6, 5, 7)))
    for function in (gelu, lambda x: bias_gelu(x, bias)):
        results = []
        for name in ("contiguous", layout):
            t = gg.Tensor(dict(testing.layouts(x))[name], requires_grad=True)
            out = function(t)
            out.backward(gg.Tensor(dict(testing.layouts(upstream))[name]))
            results.append(out.data.tobytes() + t.grad.data.tobytes())
        assert results[0] == results[1]


def test_blocks_and_threads_change_no_bit(splits):
    x, bias = (t.data for t in drawn((1000, 17), (17,)))
    results = []
    for _ in splits:
        args = [gg.Tensor(a, requires_grad=True) for a in (x, bias)]
        out = bias_gelu(*args) + gelu(args[0])
        out.backward(out.detach())
        results.append([t.data.tobytes() for t in (out, *(a.grad for a in args))])
    assert all(r == results[0] for r in results)


@forms
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (1, 1, 127), (3, 5, 7), (63, 128)])
def test_few_rows_have_the_bits_they_have_in_blocks(shape, dtype, form, monkeypatch):
    x, bias = (t.data.astype(dtype) * 20 for t in drawn(shape, shape[-1:]))  # some beyond 40

    def results():
        args = [gg.Tensor(a, requires_grad=True) for a in (x, bias)]
        outs = bias_gelu(*args, form), gelu(args[0], form)
        (outs[0] * 3 + outs[1]).sum().backward()
        return [(t.shape, t.dtype, t.data.tobytes()) for t in (*outs, *(a.grad for a in args))]

    few = results()
    monkeypatch.setattr(_rows, "FEW", 0)
    assert few == results()


@forms
def test_without_a_gradient_the_result_is_the_same(form):
    x, bias = drawn((33, 7), (7,))
    recorded = bias_gelu(x, bias, form)
    with gg.no_grad():
        assert bias_gelu(x, bias, form).data.tobytes() == recorded.data.tobytes()


@forms
def test_one_huge_element_changes_no_other(form):
    x = drawn((1000,))[0].data.astype(np.float32)
    results = []
    for last in (0.5, 1e30):
        t = gg.Tensor(np.append(x, np.float32(last)), requires_grad=True)
        out = gelu(t, form)
        out.sum().backward()
        results.append(out.data[:-1].tobytes() + t.grad.data[:-1].tobytes())
    assert results[0] == results[1]


@forms
def test_bias_is_added_first(form):
    x, bias = drawn((5, 7), (7,))
    together, apart = bias_gelu(x, bias, form), gelu(x + bias, form)
    np.testing.assert_array_equal(together.data, apart.data)
    upstream = gg.Tensor(np.random.default_rng(3).standard_normal((5, 7)))
    for a, b in zip(
        gg.grad(together, [x, bias], upstream), gg.grad(apart, [x, bias], upstream), strict=True
    ):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-13, atol=1e-15)


@forms
def test_one_tensor_as_both_arguments(form):
    x = gg.Tensor(np.array([0.5, -1.0, 2.0]), requires_grad=True)
    testing.gradcheck(lambda x: bias_gelu(x, x, form), x)
    testing.gradgradcheck(lambda x: bias_gelu(x, x, form), x)


def test_bias_may_be_of_another_dtype():
    x = gg.Tensor(np.ones((3, 4)), "bfloat16", requires_grad=True)
    bias = gg.ones(4, requires_grad=True)
    out = bias_gelu(x, bias)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == gg.bfloat16
    assert bias.grad.dtype == gg.float32


def test_integers_become_float32():
    assert gelu([0, 1]).dtype == gg.float32
    assert gelu([0, 1]).data[1] == np.float32(0.8413447)


def test_unknown_form_is_refused():
    for run in (gelu, lambda x, approximate: bias_gelu(x, x, approximate)):
        with pytest.raises(ValueError, match=r'approximate must be "none" or "tanh", got True'):
            run(gg.ones(2), approximate=True)


def test_bias_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"bias_gelu: bias has shape \(2,\).*needs \(3,\)"):
        bias_gelu(gg.ones(2, 3), gg.ones(2))
    with pytest.raises(TypeError, match="bias is None"):
        bias_gelu(gg.ones(2, 3), None)
    with pytest.raises(ValueError, match="x has no axes"):
        bias_gelu(1.0, gg.ones(1))
