"""The CUDA kernels of dropout in the emulator: the bits of NumPy, and no mask anywhere."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, nn, testing
from gpugrad.fused import dropout, dropout_add
from gpugrad.fused.dropout import SOURCE, _dropout, _dropout_add
from gpugrad.ops.philox import keep_mask, philox_uint32
from gpugrad.ops.random import Draw

DTYPES = ["float32", "bfloat16", "float16"]
# A thread's turn is 4 or 8 elements, a block of threads does 1024 turns: the last has several
# blocks and an incomplete turn.
SHAPES = [(), (1,), (3,), (7,), (8,), (3, 5, 11), (1023,), (9001,)]

dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _numpy_outside(monkeypatch):
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)


def drawn(shape, dtype="float32", seed=0):
    return np.asarray(np.random.default_rng(seed).normal(3, 2, shape)).astype(dtype)


def results(arrays, p=0.3, upstream=None, seed=2**40 + 5):
    """Return dropout of one array or dropout_add of two, and the gradients."""
    if seed is not None:
        gg.manual_seed(seed)
    given = [gg.Tensor(a, requires_grad=True) for a in arrays]
    out = (dropout if len(given) == 1 else dropout_add)(*given, p=p)
    g = drawn(out.shape, out.dtype, 9) if upstream is None else upstream
    return [t.detach() for t in (out, *gg.grad(out, given, gg.Tensor(g)))]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def inputs(shape, dtype, count):
    return [drawn(shape, dtype, i) for i in range(count)]


@dtypes
@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_numpy(shape, count, dtype):
    arrays = inputs(shape, dtype, count)
    before = cuda.launches.copy()
    found = emulator.sweep(lambda: results(arrays))
    moved = dict(cuda.launches - before)
    runs = len(emulator.SWEEP)
    assert moved == (
        {"dropout": 2 * runs} if count == 1 else {"dropout_add": runs, "dropout": runs}
    )
    assert_equal(found, results(arrays))


@dtypes
@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
def test_agrees_with_the_definition_in_float64(count, dtype):
    shape = (3, 257)
    keep = keep_mask(np, 7, 0, math.prod(shape), 0.3).reshape(shape)

    def spec(x, residual=None):
        out = gg.where(gg.tensor(keep), x.astype("float64") / 0.7, 0.0).astype(x.dtype)
        return out if residual is None else residual + out

    def kernel(*given):
        statics = {"p": 0.3, "draw": Draw(7, 0)}
        with emulator.enabled():
            return (_dropout if count == 1 else _dropout_add)(*given, **statics)

    given = [gg.Tensor(a, requires_grad=True) for a in inputs(shape, "float64", count)]
    testing.assert_implements(kernel, spec, given, dtype)


@pytest.mark.parametrize("p", [1e-12, 2.0**-32, 0.1, 0.5, 0.9, 1 - 2.0**-32, 1.0])
@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
def test_probabilities(count, p):
    arrays = inputs((1023,), "float32", count)
    with emulator.enabled("checked"):
        found = results(arrays, p)
    assert_equal(found, results(arrays, p))
    zeros = (found[1].data == 0).mean()  # the gradient of x
    assert abs(zeros - p) < 4 * math.sqrt(p * (1 - p) / 1023) + 1e-3


def test_a_word_equal_to_the_threshold_is_kept():
    p = int(philox_uint32(np, 4, 0, 6)[5]) / 2**32
    x = np.ones(6, np.float32)
    with emulator.enabled("checked"):
        found = results([x], p, seed=4)
    assert found[0].data[5] > 0
    assert_equal(found, results([x], p, seed=4))


@pytest.mark.parametrize(
    ("seed", "offset"),
    [(2**64 - 1, 2**32 - 1), (0x123456789ABCDEF0, 2**63 + 7), (3, 2**64 - 6)],
    ids=["carry-into-high-word", "large", "last-blocks"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_range_of_seeds_and_offsets(seed, offset, dtype):
    x = gg.Tensor(drawn((23,), dtype))
    with emulator.enabled("checked"):
        found = _dropout(x, p=0.3, draw=Draw(seed, offset))
    assert_equal([found], [_dropout(x, p=0.3, draw=Draw(seed, offset))])


@dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_what_is_dropped_is_zero_whatever_it_was(p, bad, dtype):
    x, residual = (
        np.full(203, bad, np.float32).astype(dtype),
        np.ones(203, np.float32).astype(dtype),
    )
    with emulator.enabled("checked"):
        out, g = results([x], p, upstream=x, seed=6)
        added, _, g_residual = results([x, residual], p, upstream=x, seed=6)
    keep = keep_mask(np, 6, 0, 203, p)
    for found, dropped in ((out, 0), (g, 0), (added, 1)):
        assert (found.data[~keep] == dropped).all()
        np.testing.assert_array_equal(found.data[keep].astype(np.float32), bad)
    np.testing.assert_array_equal(g_residual.data.astype(np.float32), bad)


@dtypes
@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided", "unaligned"])
@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
def test_the_mask_follows_the_elements_not_the_memory(count, layout, dtype):
    def laid(a):
        if layout != "unaligned":
            return dict(testing.layouts(a))[layout]
        moved = np.empty(a.size + 1, a.dtype)[1:].reshape(a.shape)
        moved[...] = a
        return moved

    arrays, g = inputs((4, 5, 7), dtype, count), drawn((4, 5, 7), dtype, 5)
    expected = results(arrays, upstream=g)
    found = emulator.sweep(lambda: results([laid(a) for a in arrays], upstream=laid(g)))
    assert_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
def test_a_state_on_the_device_moves_the_draw(count, dtype):
    """Forward and backward take the numbers of the state at the time they run."""
    arrays = inputs((3, 71), dtype, count)
    seed, start = 2**63 + 5, 2**32 - 40
    expected = []
    for offset in (start, start + 2 * 54):
        with emulator.enabled("checked"):
            gg.random.set_state({"seed": seed, "offset": offset})
            expected.append([results(arrays, seed=None) for _ in range(2)])
    state = np.array([seed, start], np.uint64)
    with emulator.enabled("checked"):
        for run in range(2):
            with gg.random.recording(state) as draws:
                found = [results(arrays, seed=None) for _ in range(2)]
            assert draws.blocks == 2 * 54
            for a, b in zip(found, expected[run], strict=True):
                assert_equal(a, b)
            state[1] += draws.blocks


def test_one_unaligned_array_of_several():
    """Each address counts: no pack is read or written where one of them does not suit."""
    x, residual = inputs((41,), "float32", 2)
    expected = results([x, residual])
    for i in range(3):
        arrays = [x, residual, np.empty(41, np.float32)]
        moved = np.empty(42, np.float32)[1:]
        moved[...] = arrays[i]
        arrays[i] = moved
        with emulator.enabled("checked"):
            if i < 2:
                assert_equal(results(arrays[:2]), expected)
            args = (*arrays, 41, 2**40 + 5, 0, None, round(0.3 * 2**32), 1 / 0.7)
            SOURCE.launch("dropout_add", (1,), (256,), args, GPUGRAD_DTYPE=0)
        np.testing.assert_array_equal(arrays[2], expected[0].data)


@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
def test_a_gradient_that_is_one_number_for_all(count):
    arrays = inputs((3, 70), "float32", count)
    g = np.broadcast_to(np.float32(2.5), (3, 70))
    with emulator.enabled("checked"):
        assert_equal(results(arrays, upstream=g), results(arrays, upstream=g))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["x", "residual"])
def test_one_gradient_of_two(wanted):
    x, residual = (
        gg.Tensor(a, requires_grad=w)
        for a, w in zip(inputs((33,), "float32", 2), wanted, strict=True)
    )
    with emulator.enabled():
        out = dropout_add(x, residual, 0.5)
        before = cuda.launches.copy()
        out.backward(gg.ones(33))
        moved = dict(cuda.launches - before)
    assert moved == ({"dropout": 1} if wanted[0] else {})
    assert (x.grad is None, residual.grad is None) == (not wanted[0], not wanted[1])


def test_the_second_derivative_draws_the_same_mask():
    gg.manual_seed(8)
    x = gg.Tensor(drawn((300,)), requires_grad=True)
    keep = keep_mask(np, 8, 0, 300, 0.5)
    with emulator.enabled():
        out = dropout(x, 0.5)
        (first,) = gg.grad((out**3).sum(), x, create_graph=True)
        (second,) = gg.grad(first.sum(), x)
    np.testing.assert_allclose(first.data, 24 * x.data**2 * keep, rtol=1e-6)
    np.testing.assert_allclose(second.data, 48 * x.data * keep, rtol=1e-6)


def test_neither_a_mask_nor_an_array_is_kept():
    x, residual = (gg.Tensor(a, requires_grad=True) for a in inputs((100,), "float32", 2))
    with emulator.enabled():
        outs = dropout(x, 0.5), dropout_add(x, residual, 0.5)
    for out in outs:
        assert not any(isinstance(saved, np.ndarray) for saved in out._node.saved)


def test_float64_and_empty_arrays_take_the_numpy_path():
    for shape, dtype in (((5,), "float64"), ((0, 3), "float32")):
        arrays = inputs(shape, dtype, 2)
        before = cuda.launches.copy()
        with emulator.enabled():
            assert_equal(results(arrays), results(arrays))
        assert not {"dropout", "dropout_add"} & set(cuda.launches - before)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
def test_a_transformer_block_adds_the_second_branch_in_the_kernel(norm_first):
    gg.manual_seed(2)
    block = nn.TransformerBlock(16, 2, dropout=0.3, norm_first=norm_first)
    x = gg.random.normal(size=(2, 5, 16))

    def run():
        gg.manual_seed(3)
        return block(x).detach().numpy()

    expected, before = run(), cuda.launches.copy()
    with emulator.enabled():
        found = run()
    moved = cuda.launches - before
    assert (moved["dropout"], moved["dropout_add"]) == ((1, 1) if norm_first else (2, 0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.gpu
@dtypes
@pytest.mark.parametrize("count", [1, 2], ids=["dropout", "dropout_add"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 10**6 + 1)], ids=str)
def test_a_gpu_equals_numpy(shape, count, dtype):
    arrays = inputs(shape, dtype, count)
    upstream = drawn(shape, dtype, 9)
    move = functools.partial(backend.to_device, device="cuda")
    found = results([move(a) for a in arrays], upstream=move(upstream))
    assert_equal(found, results(arrays, upstream=upstream))
