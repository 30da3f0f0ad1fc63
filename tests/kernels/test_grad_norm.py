"""The CUDA kernels in the emulator: no fault, the same bits in any order, the NumPy path's norm."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.optim import SGD, AdamW, chunks, clip, clip_grad_norm_

SHAPES = [(), (1,), (3,), (0, 4), (1023,), (5, 7, 2), (4011, 3), (64, 16)]


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    """Three rounds of vectors in a chunk, three chunks in the largest gradient."""
    monkeypatch.setattr(chunks, "CHUNK", 5120)


def with_gradients(*gradients, dtype="float32"):
    parameters = []
    for g in gradients:
        p = gg.zeros(np.shape(g), dtype=dtype).requires_grad_()
        p.grad = gg.tensor(np.asarray(g), dtype=dtype)
        parameters.append(p)
    return parameters


def drawn(scale=1.0, shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) * scale for shape in shapes]


def gradients_of(parameters):
    return [p.grad.numpy().astype(np.float64) for p in parameters]


def clipped(gradients, max_norm, dtype):
    parameters = with_gradients(*gradients, dtype=dtype)
    norm = clip_grad_norm_(parameters, max_norm)
    return np.float64(norm), [p.grad.numpy() for p in parameters]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25, 5e37], ids="{:g}".format)
def test_float32_of_any_size(scale):
    gradients = drawn(scale)
    for max_norm in (scale, 1e9 * scale, 1e-40 * scale, 0.0):
        norm, found = emulator.sweep(lambda m=max_norm: clipped(gradients, m, "float32"))
        expected, plain = clipped(gradients, max_norm, "float32")
        np.testing.assert_allclose(norm, expected, rtol=1e-14)
        exact = [g.astype(np.float32).astype(np.float64) for g in gradients]
        factor = min(1.0, max_norm / (expected + 1e-6))
        for x, p, e in zip(found, plain, exact, strict=True):
            np.testing.assert_allclose(x, p, rtol=2e-7, atol=1e-45)
            np.testing.assert_allclose(x, e * factor, rtol=1e-7, atol=1e-45)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    gradients = drawn(1000.0)
    norm, found = emulator.sweep(lambda: clipped(gradients, 1.0, dtype))
    expected, plain = clipped(gradients, 1.0, dtype)
    np.testing.assert_allclose(norm, expected, rtol=1e-14)
    for x, p in zip(found, plain, strict=True):
        assert x.dtype == p.dtype == dtype
        np.testing.assert_array_equal(x.astype(np.float64), p.astype(np.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_agrees_with_numpy_on_a_gpu(monkeypatch, dtype):
    before = cuda.launches["grad_scale"]
    norm, found = clipped(drawn(1000.0), 1.0, dtype)
    assert cuda.launches["grad_scale"] == before + 1
    again = clipped(drawn(1000.0), 1.0, dtype)
    assert again[0] == norm
    monkeypatch.setenv("GPUGRAD_DEVICE", "cpu")
    expected, plain = clipped(drawn(1000.0), 1.0, dtype)
    np.testing.assert_allclose(norm, expected, rtol=1e-14)
    for x, p in zip(found, plain, strict=True):
        np.testing.assert_array_equal(x.astype(np.float64), p.astype(np.float64))


def test_three_launches_whatever_the_number_of_gradients():
    before = dict(cuda.launches)
    with emulator.enabled():
        clipped(drawn(), 1.0, "float32")
    for kernel in ("grad_norm_partial", "grad_norm_finish", "grad_scale"):
        assert cuda.launches[kernel] == before.get(kernel, 0) + 1


def test_many_partial_sums(monkeypatch):
    """More chunks than the second pass has threads, and sums that need every one of them."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    g = np.zeros(8 * 700)
    g[::8] = np.arange(700)
    norm, _ = emulator.sweep(lambda: clipped([g], 1.0, "float32"), emulator.SWEEP[2:3])
    assert norm == math.sqrt(sum(i * i for i in range(700)))


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_alignment_counts_each_element_once(dtype, offset):
    base = np.full(6000, 2**40, np.float32).astype(gg.tensor([0.0], dtype=dtype).dtype)
    p = gg.zeros(5133, dtype=dtype).requires_grad_()
    p.grad = gg.Tensor(base[offset : offset + 5133])
    p.grad.data[...] = 1
    with emulator.enabled("checked"):
        assert clip_grad_norm_(p, 0.5 * math.sqrt(5133)) == math.sqrt(5133)
    np.testing.assert_allclose(p.grad.numpy().astype(np.float64), 0.5, rtol=1e-7)
    assert (base[:offset] == 2**40).all()
    assert (base[offset + 5133 :] == 2**40).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_changes_nothing(bad, dtype):
    parameters = with_gradients([1.0, 2.0], [3.0, bad, 1.0], dtype=dtype)
    with emulator.enabled("checked"):
        norm = clip_grad_norm_(parameters, 1.0)
        assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
        np.testing.assert_array_equal(gradients_of(parameters)[0], [1, 2])
        np.testing.assert_array_equal(gradients_of(parameters)[1], [3, bad, 1])
        with pytest.raises(RuntimeError, match=rf"parameter 1, {dtype}\[3\], has 1 NaN or inf"):
            clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


def test_a_small_norm_leaves_the_gradients_untouched():
    parameters = with_gradients([0.3, -0.4])
    parameters[0].grad.data.flags.writeable = False
    with emulator.enabled("checked"):
        np.testing.assert_allclose(clip_grad_norm_(parameters, 0.6), 0.5, rtol=1e-7)


def test_what_the_kernels_do_not_take_goes_through_numpy():
    """float64 among them, one array under two names; a transposed one they do take."""
    before = cuda.launches["grad_scale"]
    with emulator.enabled("checked"):
        wide, narrow = with_gradients([3.0], dtype="float64") + with_gradients([4.0])
        assert clip_grad_norm_([wide, narrow], 1.0) == 5.0
        np.testing.assert_allclose(wide.grad.item(), 0.6, rtol=1e-6)
        shared = with_gradients([3.0], [4.0])
        shared[1].grad = shared[0].grad
        np.testing.assert_allclose(clip_grad_norm_(shared, 10.0), math.sqrt(18), rtol=1e-14)
        assert cuda.launches["grad_scale"] == before
        (p,) = with_gradients(np.ones((4, 3)))
        p.grad.data = np.arange(12, dtype=np.float32).reshape(3, 4).T
        norm = clip_grad_norm_(p, 1.0)
        assert cuda.launches["grad_scale"] == before + 1
    np.testing.assert_allclose(norm, math.sqrt(506), rtol=1e-15)
    np.testing.assert_allclose(p.grad.numpy().T.ravel() * norm, np.arange(12), rtol=1e-6)
    with emulator.enabled():
        assert clip_grad_norm_(with_gradients(np.zeros((0, 2))), 1.0) == 0.0


def test_gradients_saved_by_a_graph_are_guarded():
    x = gg.tensor([2.0], requires_grad=True)
    (x**2).sum().backward(create_graph=True)
    penalty = (x.grad * x.grad).sum()
    with emulator.enabled():
        clip_grad_norm_(x, 1.0)
    with pytest.raises(RuntimeError, match="clip_grad_norm_ changed that array in place"):
        penalty.backward()


# The factor used by the optimisers where it lies


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize("max_norm", [0.5, 1e-38, 1e9], ids="{:g}".format)
def test_a_step_takes_the_factor_from_memory(kind, max_norm):
    gradients = drawn()

    def fused():
        parameters = with_gradients(*gradients)
        optimizer = kind(parameters, lr=0.1)
        optimizer._lay_out(optimizer.param_groups[0])
        members = [(p, optimizer.param_groups[0]) for p in parameters if p.size]
        table = chunks.table([chunks.Row(p.grad.data) for p, _ in members])
        assert optimizer._by_kernel(members, clip.measure(table, max_norm)) == []
        for p, g in zip(parameters, gradients, strict=True):
            np.testing.assert_array_equal(p.grad.numpy(), g.astype(np.float32))
        return [p.numpy() for p in parameters]

    parameters = with_gradients(*gradients)
    clip_grad_norm_(parameters, max_norm)
    kind(parameters, lr=0.1).step()
    for x, p in zip(emulator.sweep(fused), parameters, strict=True):
        np.testing.assert_allclose(x, p.numpy(), rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_no_step_where_the_norm_is_not_finite(bad):
    parameters = with_gradients([1.0, 2.0], [bad])
    optimizer = AdamW(parameters, lr=0.1)
    optimizer._lay_out(optimizer.param_groups[0])
    members = [(p, optimizer.param_groups[0]) for p in parameters]
    with emulator.enabled("checked"):
        table = chunks.table([chunks.Row(p.grad.data) for p in parameters])
        result = clip.measure(table, 1.0)
        assert optimizer._by_kernel(members, result) == []
    assert np.isnan(result[1])
    for p in parameters:
        assert not p.numpy().any()
        assert not optimizer._states[p].arrays["exp_avg"].any()
