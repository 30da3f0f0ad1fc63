"""The CUDA kernels of gelu and bias_gelu in the emulator, through the operations."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.fused import FUSED, bias_gelu, gelu

DTYPES = ["float32", "bfloat16", "float16"]
FORMS = ["none", "tanh"]
forms = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def drawn(*shapes, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return [gg.Tensor(np.asarray(rng.normal(0, spread, s)), requires_grad=True) for s in shapes]


def results(function, inputs, dtype="float32", upstream=None):
    """Return the result of a function and its gradients, as arrays."""
    given = [
        gg.Tensor(x.data.astype(dtype, copy=False), requires_grad=x.requires_grad) for x in inputs
    ]
    out = function(*given)
    if upstream is None:
        upstream = np.cos(np.arange(out.size)).reshape(out.shape)
    wanted = [x for x in given if x.requires_grad]
    grads = gg.grad(out, wanted, gg.Tensor(upstream.astype(dtype, copy=False)))
    return [t.data for t in (out, *grads)]


def check(function, inputs, dtype, form, settings=emulator.SWEEP):
    name = function.__name__
    fast = functools.partial(function, approximate=form)
    before = FUSED[name].launches["cuda"]
    with emulator.enabled():
        testing.assert_implements(
            fast, functools.partial(FUSED[name].spec, approximate=form), inputs, dtype
        )
    assert FUSED[name].launches["cuda"] == before + 1
    return emulator.sweep(lambda: results(fast, inputs, dtype), settings)


@forms
@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1023), (2, 5, 512)], ids=str)
def test_gelu(shape, dtype, form):
    check(gelu, drawn(shape), dtype, form)


# one row, one column; packs and none; several tiles of columns, several stripes of rows
@forms
@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 64), (37, 264), (3, 1023)], ids=str)
def test_bias_gelu(shape, dtype, form):
    check(bias_gelu, drawn(shape, shape[-1:]), dtype, form)


@forms
@pytest.mark.parametrize("region", [(-6, -2), (-1, 1), (-0.01, 0.01), (2, 6), (-99, 99)], ids=str)
def test_each_region_obeys_the_tolerance_rule(region, form):
    x = np.random.default_rng(2).uniform(*region, 20000)
    check(gelu, [gg.Tensor(x, requires_grad=True)], "float32", form, ())


@pytest.mark.parametrize("columns", [3, 4])
def test_many_rows(columns):
    check(bias_gelu, drawn((66_000, columns), (columns,)), "float32", "tanh", ())


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["x", "bias"])
@pytest.mark.parametrize("columns", [5, 8])
def test_a_gradient_alone_has_the_same_bits(columns, wanted):
    x, bias = drawn((40, columns), (columns,))
    with emulator.enabled("checked"):
        together = results(bias_gelu, [x, bias])
        given = [gg.Tensor(t.data, requires_grad=w) for t, w in zip((x, bias), wanted, strict=True)]
        _, alone = results(bias_gelu, given)
    assert alone.tobytes() == together[1 + wanted.index(True)].tobytes()


@forms
@dtypes
def test_limits_of_huge_and_infinite_inputs(dtype, form):
    values = np.array([-np.inf, -60000.0, -300.0, -50.0, 50.0, 300.0, 60000.0, np.inf, np.nan])
    x = gg.Tensor(np.resize(values, (2, 9)), requires_grad=True)
    ones = np.ones(x.shape)
    zero = gg.Tensor(np.zeros(9))
    expected = np.maximum(x.data.astype(dtype).astype(float), 0)
    for f in (gelu, lambda x, approximate: bias_gelu(x, zero.astype(dtype), approximate)):
        out, g = emulator.sweep(lambda f=f: results(lambda x: f(x, form), [x], dtype, ones))
        np.testing.assert_array_equal(out.astype(float), expected)
        slope = np.where(np.isnan(x.data), np.nan, x.data > 0)
        np.testing.assert_array_equal(g.astype(float), slope)
    if dtype != "float16":
        far = gg.Tensor(np.array([-1e30, 1e30, -3e38, 3e38]), requires_grad=True)
        with emulator.enabled():
            out, g = results(lambda x: gelu(x, form), [far], dtype, np.ones(4))
        np.testing.assert_array_equal(out, np.maximum(far.data.astype(dtype), 0))
        np.testing.assert_array_equal(g, [0, 1, 0, 1])


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
@pytest.mark.parametrize("name", ["gelu", "bias_gelu"])
def test_memory_layout_does_not_change_a_bit(name, layout):
    x, bias, upstream = (t.data.astype(np.float32) for t in drawn((6, 5, 12), (12,), (6, 5, 12)))
    found = []
    for chosen in ("contiguous", layout):
        args = [gg.Tensor(dict(testing.layouts(x))[chosen], requires_grad=True)]
        if name == "bias_gelu":
            args.append(gg.Tensor(dict(testing.layouts(bias))[chosen], requires_grad=True))
        with emulator.enabled("checked"):
            out = FUSED[name](*args, approximate="none")
            g = gg.Tensor(dict(testing.layouts(upstream))[chosen])
            found.append([t.data.tobytes() for t in (out, *gg.grad(out, args, g))])
    assert found[0] == found[1]


@dtypes
@pytest.mark.parametrize("which", range(3), ids=["x", "bias", "g"])
def test_arrays_that_begin_anywhere(which, dtype):
    aligned = [t.data.astype(dtype) for t in drawn((24, 16), (16,), (24, 16))]
    arrays = list(aligned)
    memory = np.empty(1 + arrays[which].size, dtype)
    arrays[which] = memory[1:].reshape(arrays[which].shape)
    arrays[which][...] = aligned[which]
    for function, count in ((gelu, 1), (bias_gelu, 2)):
        found = []
        for *inputs, g in (aligned, arrays):
            given = [gg.Tensor(a, requires_grad=True) for a in inputs[:count]]
            with emulator.enabled("checked"):
                found.append(results(function, given, dtype, g))
        for a, b in zip(*found, strict=True):
            assert a.tobytes() == b.tobytes()


def test_an_upstream_gradient_without_memory_of_its_own():
    x, bias = (gg.Tensor(t.data.astype("float32"), requires_grad=True) for t in drawn((5, 8), (8,)))
    with emulator.enabled("checked"):
        (a,) = gg.grad(bias_gelu(x, bias).sum(), bias)
    b = gg.grad(bias_gelu(x, bias).sum(), bias)[0]
    np.testing.assert_allclose(a.data, b.data, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "h", "rounded_once", "rounded_before"),
    [("bfloat16", 1.0, 3248, 3264), ("float16", 1.5, 3382, 3384)],
)
def test_the_gradient_of_the_bias_is_summed_in_float32(dtype, h, rounded_once, rounded_before):
    slope = 0.5 * math.erfc(-h / math.sqrt(2)) + h * math.exp(-h * h / 2) / math.sqrt(2 * math.pi)
    one = np.asarray(slope).astype(dtype).astype(float)
    sums = np.array([3000 * slope, 3000 * one]).astype(dtype).astype(float)
    assert sums.tolist() == [rounded_once, rounded_before]
    x = gg.full((3000, 8), h, dtype=dtype)
    bias = gg.zeros(8, dtype=dtype, requires_grad=True)
    with emulator.enabled():
        (g,) = gg.grad(bias_gelu(x, bias), bias, gg.ones_like(x))
    np.testing.assert_array_equal(g.data.astype(float), rounded_once)


def test_what_the_kernels_do_not_know_takes_another_way():
    x = gg.Tensor(np.ones((2, 3)))
    before = FUSED["bias_gelu"].launches["cuda"], FUSED["gelu"].launches["cuda"]
    with emulator.enabled():
        gelu(x)  # float64
        bias_gelu(x.astype("bfloat16"), gg.ones(3))
        gelu(gg.zeros(0, 3))
    assert before == (FUSED["bias_gelu"].launches["cuda"], FUSED["gelu"].launches["cuda"])
