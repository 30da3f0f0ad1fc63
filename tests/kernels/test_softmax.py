"""The CUDA kernels in the emulator: no fault, the same bits in any order, the spec's values."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.cuda import launches
from gpugrad.fused import FUSED, _teams, log_softmax, softmax

FUNCTIONS = {"softmax": softmax, "log_softmax": log_softmax}
SWEPT = len(emulator.SWEEP)
INF, NAN = math.inf, math.nan
both = pytest.mark.parametrize("name", FUNCTIONS)
# a warp for each row, up to four rows in a block; a block of 128 threads; of 512
ROWS = [(1,), (5, 3), (2, 3, 37), (5, 64), (3, 1023), (3, 1031), (2, 2048), (2, 8200)]
LINES = [((2, 3), 0), ((3, 37), 0), ((2, 5, 33), 1), ((2, 5, 3, 4), 1), ((100, 3), 0), ((1, 40), 0)]
LINES += [((22, 3), 0)]  # a thread's last elements begin a round that the line does not fill


def drawn(shape, spread=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, spread, shape)


def kind_of(dtype):
    return gg.Tensor([0.0]).astype(dtype).dtype


def result_and_gradient(function, x, upstream):
    t = gg.Tensor(x, requires_grad=True)
    out = function(t)
    (g,) = gg.grad(out, t, gg.Tensor(upstream))
    return out.data, g.data


def by_spec(name, x, upstream, dtype, axis):
    function = functools.partial(FUSED[name].spec, axis=axis % x.ndim)
    with np.errstate(all="ignore"):
        return result_and_gradient(function, x.astype(dtype), upstream.astype(dtype))


def obeys(name, x, dtype="float32", axis=-1, settings=emulator.SWEEP, upstream=None):
    """Assert that the kernels run without fault, order-free, and by the 2x/3x rule."""
    x = x.astype(kind_of(dtype), copy=False)
    if upstream is None:
        upstream = drawn(x.shape, 1.0, seed=7).astype(x.dtype)
    before = FUSED[name].launches["cuda"]
    found = emulator.sweep(
        lambda: result_and_gradient(lambda t: FUNCTIONS[name](t, axis), x, upstream), settings
    )
    assert FUSED[name].launches["cuda"] == before + len(settings)
    exact, plain = (by_spec(name, x, upstream, d, axis) for d in ("float64", x.dtype))
    testing.assert_close(found[0], exact[0], plain[0], 2, name="the result")
    testing.assert_close(found[1], exact[1], plain[1], 3, name="the gradient")
    return found


@both
@pytest.mark.parametrize("how", ["kept", "read again"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows(shape, dtype, how, name, monkeypatch):
    if how == "read again":
        monkeypatch.setattr(_teams, "EMULATED_SHARED", 0)
    obeys(name, drawn(shape), dtype)


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "axis"), LINES, ids=str)
def test_lines_along_other_axes(shape, axis, dtype, name):
    before = launches["softmax_lines_forward"], launches["softmax_lines_backward"]
    obeys(name, drawn(shape), dtype, axis)
    after = launches["softmax_lines_forward"], launches["softmax_lines_backward"]
    assert after == (before[0] + SWEPT, before[1] + SWEPT)


@both
@pytest.mark.parametrize("spread", [1e-6, 30.0, 1e4, 1e30])
@pytest.mark.parametrize(("shape", "axis"), [((3, 300), -1), ((2, 1030), -1), ((37, 3), 0)])
def test_small_and_huge_spreads(shape, axis, spread, name):
    obeys(name, drawn(shape, spread), axis=axis)


def test_more_rows_than_a_grid_has_in_y():
    obeys("softmax", drawn((65540, 3)), settings=[emulator.Settings("plain")])


def at_offset(values, offset):
    """Return a contiguous copy that begins so many elements after a multiple of 16 bytes."""
    memory = np.empty(values.size + 16, values.dtype)
    start = -memory.ctypes.data % 16 // values.itemsize + offset
    copy = memory[start : start + values.size].reshape(values.shape)
    copy[...] = values
    return copy


@both
@pytest.mark.parametrize("together", [True, False], ids=["x-and-g", "x"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [64, 1501])
def test_rows_that_begin_anywhere(columns, dtype, together, name):
    """A row is read in packs from its first address that suits one, if all its arrays lie alike."""
    x, g = (drawn((3, columns), seed=i).astype(kind_of(dtype)) for i in range(2))
    for offset in range(4):
        upstream = at_offset(g, offset if together else 0)
        obeys(name, at_offset(x, offset), dtype, -1, emulator.SWEEP[:2], upstream)


@both
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout, axis, name):
    x, upstream = (drawn((4, 5, 7), seed=i).astype(np.float32) for i in range(2))
    results = []
    for kind in ("contiguous", layout):
        with emulator.enabled("checked"):
            found = result_and_gradient(
                lambda t: FUNCTIONS[name](t, axis),
                dict(testing.layouts(x))[kind],
                dict(testing.layouts(upstream))[kind],
            )
        results.append([a.tobytes() for a in found])
    assert results[0] == results[1]


EDGES = {
    "all masked": [-INF, -INF, -INF],
    "one masked": [1.0, -INF, 0.0],
    "one left": [-INF, -INF, 7.0],
    "a NaN": [1.0, NAN, 0.0],
    "a NaN among masked": [-INF, NAN, -INF],
    "nothing but NaN": [NAN, NAN, NAN],
    "infinity": [1.0, INF, 0.0],
    "infinity first, then masked": [INF, -INF, -INF],
    "as large as can be": [3e38, -3e38, 3e38],
    "equal and huge": [-1e30, -1e30, -1e30],
}


@both
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n", [3, 1030])
@pytest.mark.parametrize("edge", EDGES)
def test_all_implementations_agree_at_the_edges(edge, n, axis, name):
    x = drawn((2, n)).astype(np.float32)
    x[0] = -INF
    x[0, [0, 1, -1]] = EDGES[edge]
    upstream = drawn((2, n), 1.0, seed=7).astype(np.float32)
    x, upstream = (x, upstream) if axis else (x.T, upstream.T)
    expected = by_spec(name, x, upstream, "float32", axis)

    def run():
        return result_and_gradient(lambda t: FUNCTIONS[name](t, axis), x, upstream)

    with np.errstate(all="ignore"):
        by_numpy = run()
    for found in (by_numpy, emulator.sweep(run, emulator.SWEEP[:2])):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@both
def test_what_no_kernel_knows_falls_back(name):
    x = gg.Tensor(drawn((3, 5)))
    before = FUSED[name].launches["cuda"]
    with emulator.enabled("plain"):
        FUNCTIONS[name](x)
    assert FUSED[name].launches["cuda"] == before
