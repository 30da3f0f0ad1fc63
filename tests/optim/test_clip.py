from __future__ import annotations

import math
import os

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import openblas, optim
from gpugrad.optim import blocks as blocks_module
from gpugrad.optim import clip_grad_norm_


def with_gradients(*gradients, dtype="float32"):
    parameters = []
    for g in gradients:
        p = gg.zeros(np.shape(g), dtype=dtype).requires_grad_()
        p.grad = gg.tensor(np.asarray(g), dtype=dtype)
        parameters.append(p)
    return parameters


def norm_of(parameters) -> float:
    squares = [np.sum(np.square(p.grad.numpy().astype(np.longdouble))) for p in parameters]
    return float(np.sqrt(sum(squares)))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e25, 3e38], ids="{:g}".format)
@pytest.mark.parametrize("block", [5, 1 << 15])
def test_float32_of_any_size(monkeypatch, scale, block) -> None:
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", block)
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(-1, 1, shape) * scale for shape in [(7, 11), (), (0,), (1023,)]]
    parameters = with_gradients(*drawn)
    expected = norm_of(parameters)
    before = [p.grad.numpy().astype(np.float64) for p in parameters]
    norm = clip_grad_norm_(parameters, max_norm=scale)
    assert isinstance(norm, float)
    np.testing.assert_allclose(norm, expected, rtol=1e-12)
    factor = min(1.0, scale / (expected + 1e-6))
    for p, g in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g * factor, rtol=1e-6, atol=1e-45)
        assert p.grad.dtype == np.float32
    assert norm_of(parameters) <= scale * (1 + 1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300], ids="{:g}".format)
def test_float64_beyond_the_square(scale) -> None:
    parameters = with_gradients([3 * scale, 0.0], [-4 * scale], dtype="float64")
    np.testing.assert_allclose(clip_grad_norm_(parameters, 1.0), 5 * scale, rtol=1e-14)
    if scale > 1:
        np.testing.assert_allclose(parameters[0].grad.numpy(), [0.6, 0], rtol=1e-14)
        np.testing.assert_allclose(parameters[1].grad.numpy(), [-0.8], rtol=1e-14)
    else:
        np.testing.assert_array_equal(parameters[1].grad.numpy(), [-4 * scale])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype) -> None:
    """A factor of 1e-5 is no normal number in float16: the product must not pass through one."""
    parameters = with_gradients(np.full(64, 30000.0), dtype=dtype)
    exact = float(parameters[0].grad.numpy()[0].astype(np.float64))
    np.testing.assert_allclose(clip_grad_norm_(parameters, 1.0), exact * 8, rtol=1e-14)
    np.testing.assert_array_equal(
        parameters[0].grad.numpy(), np.full(64, np.float64(0.125)).astype(parameters[0].dtype)
    )


def test_a_small_norm_leaves_the_gradients_untouched() -> None:
    parameters = with_gradients([0.3, -0.4])
    array = parameters[0].grad.data
    np.testing.assert_allclose(clip_grad_norm_(parameters, 0.6), 0.5, rtol=1e-7)
    assert parameters[0].grad.data is array
    np.testing.assert_array_equal(array, np.array([0.3, -0.4], np.float32))


def test_clips_in_place_whatever_the_layout() -> None:
    g = np.arange(12.0).reshape(3, 4).T
    p = gg.zeros((4, 3), dtype="float64").requires_grad_()
    p.grad = gg.Tensor(g)
    norm = clip_grad_norm_(p, 1.0)
    np.testing.assert_allclose(norm, np.sqrt(506), rtol=1e-15)
    np.testing.assert_allclose(g, np.arange(12.0).reshape(3, 4).T / (norm + 1e-6), rtol=1e-15)
    assert p.grad.data is g


def test_one_parameter_counts_once() -> None:
    (p,) = with_gradients([3.0, 4.0])
    assert clip_grad_norm_([p, p], 10.0) == 5.0


@pytest.mark.parametrize("parameters", [[], [gg.ones(3).requires_grad_()]], ids=["none", "no grad"])
def test_without_gradients_the_norm_is_zero(parameters) -> None:
    assert clip_grad_norm_(parameters, 1.0) == 0.0


def test_zero_gradients_have_norm_zero() -> None:
    assert clip_grad_norm_(with_gradients(np.zeros((3, 5)), np.zeros((0, 2))), 1.0) == 0.0


def test_max_norm_zero_removes_the_gradient() -> None:
    (p,) = with_gradients([3.0, 4.0])
    assert clip_grad_norm_([p], 0.0) == 5.0
    np.testing.assert_array_equal(p.grad.numpy(), [0.0, 0.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_changes_nothing(bad, dtype) -> None:
    parameters = with_gradients([1.0, 2.0], [3.0, bad, 1.0], dtype=dtype)
    norm = clip_grad_norm_(parameters, 1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    np.testing.assert_array_equal(parameters[0].grad.numpy().astype(np.float64), [1.0, 2.0])
    np.testing.assert_array_equal(parameters[1].grad.numpy().astype(np.float64), [3.0, bad, 1.0])
    with pytest.raises(RuntimeError, match=rf"parameter 1, {dtype}\[3\], has 1 NaN or infinite"):
        clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("max_norm", [1.0, 4.0])
def test_gradients_saved_by_a_graph_are_guarded(max_norm) -> None:
    x = gg.tensor([2.0], requires_grad=True)
    (x**2).sum().backward(create_graph=True)
    penalty = (x.grad * x.grad).sum()
    assert clip_grad_norm_(x, max_norm + 1e-3) == 4.0
    if max_norm < 4:
        with pytest.raises(RuntimeError, match="clip_grad_norm_ changed that array in place"):
            penalty.backward()
    else:  # there was nothing to clip
        penalty.backward()
        assert x.grad.item() == 4.0 + 16.0


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_refuses_a_max_norm(max_norm) -> None:
    with pytest.raises(ValueError, match="max_norm must be a number >= 0"):
        clip_grad_norm_(with_gradients([1.0]), max_norm)


def test_refuses_what_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="parameter 1 must be a tensor, got float"):
        clip_grad_norm_([*with_gradients([1.0]), 3.0], 1.0)


def test_small_gradients_of_every_dtype_at_once() -> None:
    parameters = []
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        p = gg.zeros(5, dtype=dtype, requires_grad=True)
        p.grad = gg.full(5, 2.0, dtype=dtype)
        parameters.append(p)
    assert clip_grad_norm_(parameters, 9.0) == math.sqrt(80)
    norm = optim.AdamW(parameters, lr=0.1).step(max_norm=9.0)
    assert float(norm) == math.sqrt(80)
    assert all((p.numpy() != 0).all() for p in parameters)


needs_openblas = pytest.mark.skipif(not openblas.available(), reason="NumPy has another BLAS here")


@needs_openblas
def test_the_threads_of_blas_change_no_bit() -> None:
    p = gg.zeros(30000, dtype="float64", requires_grad=True)
    p.grad = gg.Tensor(np.random.default_rng(2).standard_normal(30000))
    found = set()
    try:
        for count in (1, 2):
            openblas._threads().set(count)
            found.add(clip_grad_norm_([p], 1e9))
    finally:
        openblas._threads().set(os.cpu_count() or 1)
    assert len(found) == 1


# Large float32 gradients: runs of them are summed in float32


@pytest.fixture
def runs(monkeypatch):
    """How many runs were summed by each call."""
    seen: list[int] = []
    vecdot = np.vecdot

    def counted(x, y):
        assert x.dtype == y.dtype == np.float32
        seen.append(len(x))
        return vecdot(x, y)

    monkeypatch.setattr(np, "vecdot", counted)
    return seen


LARGE = [(5000,), (4097,), (300, 257), (3, 70_001)]


@needs_openblas
@pytest.mark.parametrize("scale", [3e-15, 1e-14, 1e-3, 1.0, 1e10, 1e16], ids="{:g}".format)
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_large_gradients_are_summed_in_runs(runs, scale, layout) -> None:
    rng = np.random.default_rng(1)
    parameters = with_gradients(*(rng.normal(size=shape) * scale for shape in LARGE), 7 * scale)
    for p in parameters:
        if layout == "F" and p.ndim:
            p.grad = gg.Tensor(np.asfortranarray(p.grad.data))
        elif layout == "strided" and p.ndim:
            p.grad = gg.Tensor(np.repeat(p.grad.data, 2, -1)[..., ::2])
    norm = clip_grad_norm_(parameters, math.inf)
    sizes = [math.prod(shape) for shape in LARGE]
    assert sum(sizes) // 128 - 10 <= sum(runs) <= sum(sizes) // 128
    np.testing.assert_allclose(norm, norm_of(parameters), rtol=1e-7)


@needs_openblas
def test_runs_in_the_worst_order_err_by_less_than_a_millionth() -> None:
    """A large square and others that alone beside it are rounded off, or all in one direction."""
    for place in (0, 1, 31, 64, 127):
        for square in (0.999 * 2.0**-24, 0.5 * 2.0**-24, 1.01 * 2.0**-24, 1.5 * 2.0**-23):
            run = np.full(128, math.sqrt(square))
            run[place] = 1.0
            parameters = with_gradients(np.tile(run, 100))
            norm = clip_grad_norm_(parameters, math.inf)
            np.testing.assert_allclose(norm, norm_of(parameters), rtol=7e-7)
    for value in np.random.default_rng(0).uniform(0.5, 2.0, 100):
        parameters = with_gradients(np.full(12_800, value))
        norm = clip_grad_norm_(parameters, math.inf)
        np.testing.assert_allclose(norm, norm_of(parameters), rtol=7e-7)


def in_ones(value):
    values = np.ones(70_001)
    values[69_000] = value
    return values


EXTREMES = {
    "1e-30": np.full(70_001, 1e-30),
    "1e-45": np.full(70_001, 1e-45),
    "1e-17": np.full(70_001, 1e-17),
    "1e25": np.full(70_001, 1e25),
    "3e38": np.full(70_001, 3e38),
    "2e18": np.full(70_001, 2e18),
    "1e25 among ones": in_ones(1e25),
    "1e25 among 1e-30": in_ones(1e25) * np.where(in_ones(2) == 1, 1e-30, 1),
    "1e-13 among 1e-30": in_ones(1e-13) * np.where(in_ones(2) == 1, 1e-30, 1),
    "zeros": np.zeros(70_001),
}


@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("beside", [None, 1e-30, 1e-200, 1e200])
def test_no_square_of_a_large_gradient_is_lost(values, beside) -> None:
    """The others are summed in float64, or all are where their squares count."""
    parameters = with_gradients(values)
    if beside is not None:
        parameters += with_gradients(np.full(5001, beside), dtype="float64")
    exact = np.sqrt(sum(np.sum(p.grad.numpy().astype(np.longdouble) ** 2) for p in parameters))
    norm = optim.SGD(parameters, lr=0.1).step(max_norm=1.0).item()
    np.testing.assert_allclose(norm, float(exact), rtol=1e-12)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_large_gradient_that_is_not_finite(bad) -> None:
    parameters = with_gradients(in_ones(bad), np.full(5000, 1e30))
    before = [p.numpy().copy() for p in parameters]
    optimizer = optim.AdamW(parameters, lr=0.1)
    np.testing.assert_equal(optimizer.step(max_norm=1.0).item(), abs(bad))
    for p, x in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), x)
        assert optimizer._states[p].step == 0


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float32"])
def test_what_is_summed_in_float64(monkeypatch, runs, dtype) -> None:
    """Other dtypes, and float32 too where nobody knows how a BLAS adds."""
    if dtype == "float32":
        monkeypatch.setattr(openblas, "available", lambda: False)
    parameters = with_gradients(np.random.default_rng(0).normal(size=70_001), dtype=dtype)
    norm = clip_grad_norm_(parameters, math.inf)
    assert not runs
    np.testing.assert_allclose(norm, norm_of(parameters), rtol=1e-14)
