"""The CUDA kernels in the emulator: no fault, the same bits in any order, the NumPy path's norm."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.optim import SGD, AdamW, chunks, clip_grad_norm_

pytestmark = pytest.mark.usefixtures("without_openblas")

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
        x, p = x.astype(np.float64), p.astype(np.float64)
        # NumPy scales float32 in float32: as in test_float32_of_any_size
        np.testing.assert_allclose(x, p, rtol=2e-7 if dtype == "float32" else 0)


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


def stepped(kind, parameters, max_norm):
    optimizer = kind(parameters, lr=0.1)
    norm = optimizer.step(max_norm=max_norm)
    assert (norm.shape, norm.dtype) == ((), np.float64)
    return norm.numpy(), [p.numpy() for p in parameters], optimizer


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize("max_norm", [0.5, 1e-38, 1e9, math.inf], ids="{:g}".format)
def test_a_step_takes_the_factor_from_memory(kind, max_norm):
    gradients = drawn()

    def fused():
        parameters = with_gradients(*gradients)
        norm, moved, _ = stepped(kind, parameters, max_norm)
        for p, g in zip(parameters, gradients, strict=True):
            np.testing.assert_array_equal(p.grad.numpy(), g.astype(np.float32))
        return norm, moved

    before = cuda.launches.copy()
    norm, found = emulator.sweep(fused)
    launches = cuda.launches - before
    assert launches["grad_norm_partial"] == launches[kind.kernel] > 0
    assert not launches["grad_scale"]
    expected, plain, _ = stepped(kind, with_gradients(*gradients), max_norm)
    parameters = with_gradients(*gradients)
    np.testing.assert_allclose(norm, clip_grad_norm_(parameters, max_norm), rtol=1e-14)
    np.testing.assert_allclose(norm, expected, rtol=1e-14)
    kind(parameters, lr=0.1).step()
    for x, y, p in zip(found, plain, parameters, strict=True):
        np.testing.assert_allclose(x, p.numpy(), rtol=1e-6, atol=1e-44)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_clipped_step_in_half_precision_is_that_of_numpy(dtype):
    gradients = drawn(1000.0)
    norm, found, optimizer = emulator.sweep(lambda: kept(gradients, dtype))
    expected, plain, masters = kept(gradients, dtype)
    np.testing.assert_allclose(norm, expected, rtol=1e-14)
    for a, b in zip(optimizer, masters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-44)
    for x, y in zip(found, plain, strict=True):
        eps = 2**-7 if dtype == "bfloat16" else 2**-10
        np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=eps, atol=1e-7)


def kept(gradients, dtype):
    """Return norm, parameters and their float32 master copies after a clipped step."""
    parameters = with_gradients(*gradients, dtype=dtype)
    norm, moved, optimizer = stepped(SGD, parameters, 1.0)
    return norm, moved, [optimizer._states[p].arrays["master"] for p in parameters]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_no_step_where_the_norm_is_not_finite(bad):
    for emulated in (True, False):
        parameters = with_gradients([1.0, 2.0], [bad])
        if emulated:
            with emulator.enabled("checked"):
                norm, moved, optimizer = stepped(AdamW, parameters, 1.0)
        else:
            norm, moved, optimizer = stepped(AdamW, parameters, 1.0)
        np.testing.assert_equal(float(norm), bad)
        for p, x in zip(parameters, moved, strict=True):
            assert not x.any()
            assert not optimizer._states[p].arrays["exp_avg"].any()
            assert optimizer._states[p].step == 0


def test_one_norm_of_what_kernels_take_and_what_they_do_not():
    """A float64 parameter beside; one gradient under two names; a transposed gradient."""
    with emulator.enabled("checked"):
        wide, narrow = with_gradients([3.0], dtype="float64") + with_gradients([4.0])
        before = cuda.launches["sgd"]
        norm, _, _ = stepped(SGD, [wide, narrow], 1.0)
        assert cuda.launches["sgd"] == before + 1
        assert norm == 5
        np.testing.assert_allclose([wide.item(), narrow.item()], [-0.06, -0.08], rtol=1e-6)
        shared = with_gradients([3.0], [3.0], np.zeros((4, 3)))
        shared[1].grad = shared[0].grad
        shared[2].grad.data = np.arange(12, dtype=np.float32).reshape(3, 4).T
        norm, moved, _ = stepped(SGD, shared, 1.0)
    np.testing.assert_allclose(norm, math.sqrt(18 + 506), rtol=1e-14)
    for x, p in zip(moved, shared, strict=True):
        np.testing.assert_allclose(x, p.grad.numpy() * (-0.1 / norm), rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_clipped_step_on_a_gpu_is_that_of_numpy(monkeypatch, kind):
    before = cuda.launches.copy()
    norm, found, _ = stepped(kind, with_gradients(*drawn()), 0.5)
    launches = cuda.launches - before
    assert launches["grad_norm_finish"] == launches[kind.kernel] == 1
    monkeypatch.setenv("GPUGRAD_DEVICE", "cpu")
    expected, plain, _ = stepped(kind, with_gradients(*drawn()), 0.5)
    np.testing.assert_allclose(norm, expected, rtol=1e-14)
    for x, y in zip(found, plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-44)
