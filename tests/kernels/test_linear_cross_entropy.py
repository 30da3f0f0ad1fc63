"""linear_cross_entropy on the way of the GPU, in the emulator: values, chunks, launches, memory."""

from __future__ import annotations

import contextlib
import functools
import tracemalloc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.fused import FUSED, cross_entropy, linear_cross_entropy
from gpugrad.ops import linear

dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
reductions = pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
SIZES = [(1, 1, 1), (7, 5, 13), (12, 8, 96), (37, 3, 1031)]  # rows, C, V


def drawn(rows, features, classes, seed=0, ignored=()):
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(rows, features)), rng.normal(size=(classes, features))
    target = rng.integers(0, classes, rows)
    target[list(ignored)] = -100
    tensors = [gg.Tensor(a, requires_grad=True) for a in (x, weight / np.sqrt(features))]
    return [*tensors, gg.tensor(target)]


def spec(x, weight, target, chunk=None, **statics):
    """The definition without chunks."""
    return cross_entropy(linear(x, weight), target, **statics)


def results(inputs, dtype="float32", wanted=(True, True), upstream=None, **statics):
    """Return the loss and the gradients that are wanted, as arrays."""
    given = [
        gg.Tensor(x.data.astype(dtype), requires_grad=w)
        for x, w in zip(inputs[:2], wanted, strict=True)
    ]
    loss = linear_cross_entropy(*given, inputs[2], **statics)
    g = np.cos(np.arange(loss.size)).reshape(loss.shape) if upstream is None else upstream
    asked = [x for x in given if x.requires_grad]
    grads = gg.grad(loss, asked, gg.Tensor(np.asarray(g, np.float32))) if asked else []
    return [t.data for t in (loss, *grads)]


def check(inputs, dtype, **statics):
    before = FUSED["linear_cross_entropy"].launches.copy()
    with emulator.enabled():
        testing.assert_implements(
            functools.partial(linear_cross_entropy, **statics),
            functools.partial(spec, **statics),
            inputs,
            dtype,
        )
    assert FUSED["linear_cross_entropy"].launches - before == {"cuda": 1}
    return emulator.sweep(lambda: results(inputs, dtype, **statics), emulator.SWEEP[:2])


@reductions
@dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_the_spec(size, dtype, reduction):
    check(drawn(*size), dtype, reduction=reduction)


@dtypes
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("chunk", [1, 5, 11])
def test_chunks_agree_with_the_spec(chunk, reduction, dtype):
    check(drawn(12, 8, 31, ignored=(0, 7)), dtype, reduction=reduction, chunk=chunk)


@dtypes
@pytest.mark.parametrize("chunk", [None, 4])
def test_ids_that_are_ignored_and_smooth_labels(chunk, dtype):
    inputs = drawn(12, 8, 31)
    statics = {"ignore_index": int(inputs[2].data[3]), "label_smoothing": 0.2, "chunk": chunk}
    check(inputs, dtype, **statics)


@dtypes
def test_chunks_without_reduction_are_computed_again(dtype):
    inputs = drawn(9, 4, 11, ignored=(2,))
    with emulator.enabled():
        chunked = results(inputs, dtype, reduction="none", chunk=4)
        whole = results(inputs, dtype, reduction="none")
    for a, b in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0.05, atol=0.02)


def test_a_chunk_of_everything_is_no_chunk():
    inputs = drawn(9, 4, 11)
    with emulator.enabled():
        expected = [a.tobytes() for a in results(inputs, "bfloat16")]
        for chunk in (9, 10, 10**9):
            found = results(inputs, "bfloat16", chunk=chunk)
            assert [a.tobytes() for a in found] == expected


@pytest.mark.parametrize(
    "statics", [{}, {"chunk": 4}, {"reduction": "none"}], ids=["whole", "chunks", "none"]
)
@dtypes
def test_a_gradient_alone_has_the_same_bits(dtype, statics):
    inputs = drawn(9, 4, 11)
    with emulator.enabled():
        loss, dx, dweight = results(inputs, dtype, **statics)
        for wanted, expected in (((True, False), [loss, dx]), ((False, True), [loss, dweight])):
            found = results(inputs, dtype, wanted, **statics)
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


# float16: what is too small or too large for it


@pytest.mark.parametrize("chunk", [None, 1000])
def test_gradients_of_many_rows_do_not_vanish_in_float16(chunk):
    """A likelihood of 1e-4 divided by the number of rows is 3e-8: nothing in float16."""
    rows, classes = 4000, 300
    x = gg.ones((rows, 1))
    weight = gg.tensor(np.where(np.arange(classes) == 0, 0.0, -9.0)[:, None])
    inputs = [x, weight, gg.zeros(rows, dtype="int64")]
    exact = np.exp(-9.0) / (1 + (classes - 1) * np.exp(-9.0))  # of each class but the first
    assert np.float16(exact / rows) == 0
    scale = 256.0  # of the loss; dweight itself has to be representable
    with emulator.enabled():
        _, _, dweight = results(inputs, "float16", upstream=scale, chunk=chunk)
    np.testing.assert_allclose(dweight[1:, 0], exact * scale, rtol=2e-3)


@dtypes
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_one_row_with_the_largest_gradient_there_is(reduction, dtype):
    """softmax - q is 1: scaled it must not overflow."""
    inputs = [gg.ones((1, 1)), gg.tensor(np.array([[90.0], [-90.0]])), gg.tensor([1])]
    with emulator.enabled():
        loss, dx, dweight = results(
            inputs,
            dtype,
            reduction=reduction,
            upstream=np.ones((1,) if reduction == "none" else ()),
        )
    assert loss.reshape(()) == 180
    np.testing.assert_array_equal(dx.astype(float), [[180.0]])
    np.testing.assert_array_equal(dweight.astype(float), [[1.0], [-1.0]])


# The edges


@pytest.mark.parametrize("chunk", [None, 2])
@dtypes
def test_all_ignored(dtype, chunk):
    inputs = drawn(3, 4, 5, ignored=(0, 1, 2))
    with emulator.enabled():
        mean, *gradients = results(inputs, dtype, reduction="mean", chunk=chunk)
        total, *_ = results(inputs, dtype, reduction="sum", chunk=chunk)
    assert np.isnan(mean)
    assert total == 0
    assert not any(g.astype(float).any() for g in gradients)


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_id_out_of_range_is_nan(chunk):
    """Ids on a CPU are refused before; the kernels, which see them on a GPU, write NaN."""
    inputs = drawn(5, 4, 7)
    inputs[2] = gg.tensor([1, 7, 2, -1, 3])
    statics = {"ignore_index": -100, "label_smoothing": 0.0, "chunk": chunk, "needs": (True, True)}
    given = [gg.Tensor(x.data, "float32", requires_grad=True) for x in inputs[:2]]
    op = FUSED["linear_cross_entropy"]
    with emulator.enabled("checked"):
        loss = op(*given, inputs[2], reduction="sum", **statics)
        dx, dweight = gg.grad(loss, given)
    assert np.isnan(loss.data)
    assert np.isnan(dx.data).all(1).tolist() == [False, True, False, True, False]
    assert np.isfinite(dx.data[[0, 2, 4]]).all()
    assert np.isnan(dweight.data).all()
    with emulator.enabled(), pytest.raises(IndexError, match=r"target\[1\] is 7"):
        linear_cross_entropy(*given, inputs[2])


@dtypes
def test_logits_beyond_every_exponential(dtype):
    inputs = drawn(6, 4, 9)
    inputs[1].data *= 1000
    check(inputs, dtype)


@pytest.mark.parametrize("kind", ["uint8", "int32", "uint16"])
def test_ids_of_any_integer_type(kind):
    inputs = drawn(6, 4, 9)
    with emulator.enabled():
        expected = results(inputs)
        found = results([*inputs[:2], gg.tensor(inputs[2].data.astype(kind))])
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_layouts_change_no_bit():
    inputs = drawn(6, 4, 9)
    with emulator.enabled("checked"):
        expected = results(inputs)
        for k in range(2):
            turned = list(inputs)
            turned[k] = gg.Tensor(np.asfortranarray(inputs[k].data), requires_grad=True)
            assert [a.tobytes() for a in results(turned)] == [a.tobytes() for a in expected]


# Launches and memory


def step(inputs, **statics):
    given = [gg.Tensor(x.data, "bfloat16", requires_grad=True) for x in inputs[:2]]
    loss = linear_cross_entropy(*given, inputs[2], **statics)
    loss.backward()


@pytest.mark.parametrize(
    ("chunk", "shapes", "kernels"),
    [
        (None, [(64, 32, 16), (64, 16, 32), (32, 16, 64)], 1),
        (
            32,
            [(32, 32, 16), (32, 16, 32), (32, 16, 32)] * 2,
            2,
        ),
    ],
)
def test_a_step_is_three_products_and_one_kernel_for_each_chunk(chunk, shapes, kernels, products):
    before = cuda.launches.copy()
    with emulator.enabled():
        step(drawn(64, 16, 32), chunk=chunk)
    assert [(p.m, p.n, p.k) for p in products] == shapes
    found = {"cross_entropy_in_place": kernels, "cross_entropy_count": 1, "cross_entropy_sum": 1}
    assert cuda.launches - before == found
    if chunk is None:  # by the upstream gradient, where it lies
        assert [p.device_alpha for p in products] == [False, True, True]
    else:  # in float32, onto what is there
        assert [p.out_dtype for p in products] == ["bfloat16", "float32", "float32"] * 2
        assert [p.beta for p in products] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("chunk", [None, 32])
def test_without_gradients_there_is_the_loss_alone(chunk, products):
    x, weight, target = drawn(64, 16, 32)
    frozen = x.detach().astype("bfloat16"), weight.detach().astype("bfloat16")
    before = cuda.launches.copy()
    with emulator.enabled():
        expected = results([x, weight, target], "bfloat16")[0]
        seen, products[:] = len(products), []
        losses = [linear_cross_entropy(*frozen, target, chunk=chunk)]
        with gg.no_grad():
            given = [gg.Tensor(a.data, requires_grad=True) for a in frozen]
            losses.append(linear_cross_entropy(*given, target, chunk=chunk))
    assert seen == 3
    assert len(products) == 2 * (1 if chunk is None else 2)
    assert (cuda.launches - before)["cross_entropy_in_place"] == 1
    for loss in losses:
        assert not loss.requires_grad
        assert loss.data == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_memory_is_bounded_by_the_chunk(reduction, emulated):
    rows, classes, features = 512, 4096, 4
    inputs = [x.astype("float32") for x in drawn(rows, features, classes)[:2]]
    inputs = [gg.Tensor(x.data, requires_grad=True) for x in inputs]
    target = gg.zeros(rows, dtype="int64")

    def peak(chunk):
        tracemalloc.start()
        loss = linear_cross_entropy(*inputs, target, reduction=reduction, chunk=chunk)
        gg.grad(loss.sum(), inputs)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with emulator.enabled() if emulated else contextlib.nullcontext():
        assert peak(None) > rows * classes * 4
        assert peak(32) < 8 * 32 * classes * 4 < rows * classes * 4 / 1.9
