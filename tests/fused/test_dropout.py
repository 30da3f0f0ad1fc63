"""Dropout: a mask that is a function of two integers, its statistics, and every derivative."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import dropout, dropout_add
from gpugrad.ops.philox import keep_mask

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(), (0,), (1,), (7,), (3, 5, 2), (1023,), (50000,)]


def drawn(shape, seed=0):
    return gg.Tensor(np.random.default_rng(seed).normal(3, 1, shape), requires_grad=True)


def mask_of(shape, p, seed, offset=0):
    return keep_mask(np, seed, offset, math.prod(shape), p).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_mask_of_the_generator_rounded_once(shape, p, dtype):
    x, g = drawn(shape).data.astype(dtype), drawn(shape, seed=1).data.astype(dtype)
    gg.manual_seed(5)
    t = gg.Tensor(x, requires_grad=True)
    out = dropout(t, p)
    out.backward(gg.Tensor(g))
    keep = mask_of(shape, p, 5)
    for found, full in ((out, x), (t.grad, g)):
        assert found.dtype == dtype
        assert found.shape == shape
        exact = full.astype(np.float64) / (1 - p)
        tiny = 2.0**-11 if dtype == "float16" else 2.0**-8 if dtype == "bfloat16" else 2.0**-22
        np.testing.assert_allclose(found.data.astype(np.float64)[keep], exact[keep], rtol=tiny)
        assert (found.data[~keep] == 0).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_and_the_mean(p):
    out = dropout(np.ones(100000, np.float32), p).data
    zeros = (out == 0).mean()
    assert abs(zeros - p) < 4 * math.sqrt(p * (1 - p) / out.size)
    assert out.mean() == pytest.approx((1 - zeros) / (1 - p), rel=1e-5)


def test_each_call_draws_a_new_mask_and_a_seed_repeats_them():
    x = gg.ones(1000)
    gg.manual_seed(3)
    a, b = dropout(x).data, dropout(x).data
    assert (a != b).any()
    gg.manual_seed(3)
    np.testing.assert_array_equal(dropout(x).data, a)
    np.testing.assert_array_equal(dropout(x).data, b)


def test_draws_never_overlap():
    gg.manual_seed(4)
    masks = [dropout(gg.ones(n)).data != 0 for n in (5, 3, 8)]
    starts = [0, 2, 3]  # ceil(5 / 4) blocks, then one
    for mask, start in zip(masks, starts, strict=True):
        np.testing.assert_array_equal(mask, mask_of(mask.shape, 0.5, 4, start))
    assert gg.random.get_state() == {"seed": 4, "offset": 5}


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (1.0, False)])
def test_nothing_to_drop_returns_the_tensor_itself(p, training):
    x = drawn((3,))
    before = gg.random.get_state()
    assert dropout(x, p, training) is x
    assert gg.random.get_state() == before


def test_p_of_one_drops_everything():
    x = drawn((50,))
    out = dropout(x, 1.0)
    out.sum().backward()
    assert (out.data == 0).all()
    assert (x.grad.data == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_dropped_is_zero_whatever_it_was(bad):
    gg.manual_seed(6)
    x = gg.Tensor(np.full((200,), bad, np.float32), requires_grad=True)
    out = dropout(x, 0.5)
    out.backward(x.detach())
    keep = mask_of((200,), 0.5, 6)
    for found in (out.data, x.grad.data):
        assert (found[~keep] == 0).all()
        np.testing.assert_array_equal(found[keep], bad)


def test_every_derivative_uses_the_same_mask():
    def same(x):
        gg.manual_seed(7)
        return dropout(x, 0.4)

    testing.gradcheck(same, [drawn((4, 3))])
    testing.gradgradcheck(lambda x: same(x) ** 3, [drawn((4, 3))])


def test_backward_keeps_no_array():
    out = dropout(drawn((1000,)), 0.5)
    assert not any(isinstance(saved, np.ndarray) for saved in out._node.saved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout_add_is_the_sum_bit_for_bit(shape, dtype):
    def run(added):
        gg.manual_seed(12)
        given = [gg.Tensor(drawn(shape, i).data.astype(dtype), requires_grad=True) for i in (0, 1)]
        out = dropout_add(*given, 0.3) if added else given[1] + dropout(given[0], 0.3)
        grads = gg.grad(out, given, gg.Tensor(drawn(shape, 2).data.astype(dtype)))
        assert gg.random.get_state()["offset"] == -(-math.prod(shape) // 4)
        return [t.data for t in (out.detach(), *grads)]

    for found, expected in zip(run(True), run(False), strict=True):
        assert found.dtype == dtype
        assert found.tobytes() == expected.tobytes()


def test_dropout_add_keeps_no_array():
    out = dropout_add(drawn((1000,)), drawn((1000,), 1), 0.5)
    assert not any(isinstance(saved, np.ndarray) for saved in out._node.saved)


def test_every_derivative_of_dropout_add_uses_the_same_mask():
    def same(x, residual):
        gg.manual_seed(7)
        return dropout_add(x, residual, 0.4)

    inputs = [drawn((4, 3)), drawn((4, 3), 1)]
    testing.gradcheck(same, inputs)
    testing.gradgradcheck(lambda *given: same(*given) ** 3, inputs)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (1.0, False)])
def test_dropout_add_with_nothing_to_drop_is_a_sum(p, training):
    x, residual = drawn((3,)), drawn((3,), 1)
    before = gg.random.get_state()
    np.testing.assert_array_equal(
        dropout_add(x, residual, p, training).data, x.data + residual.data
    )
    assert gg.random.get_state() == before


def test_dropout_add_has_the_common_dtype():
    x, residual = gg.ones(3, dtype="bfloat16"), gg.ones(3, dtype="float32")
    assert dropout_add(x, residual).dtype == dropout_add(residual, x).dtype == gg.float32
    assert dropout_add([1, 2], [3, 4]).dtype == gg.float32


def test_dropout_add_refuses_other_shapes():
    with pytest.raises(
        ValueError, match=r"dropout_add: residual has shape \(3,\) but x has \(2, 3"
    ):
        dropout_add(gg.ones(2, 3), gg.ones(3))


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_the_mask_follows_the_elements_not_the_memory(layout):
    x = drawn((4, 5, 7)).data
    results = []
    for name in ("contiguous", layout):
        gg.manual_seed(8)
        t = gg.Tensor(dict(testing.layouts(x))[name], requires_grad=True)
        out = dropout(t, 0.3)
        out.backward(t.detach())
        results.append(out.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


def test_integers_become_float32():
    assert dropout([1, 2, 3], 0.5).dtype == gg.float32


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("training", [True, False])
def test_p_outside_zero_to_one_is_refused(p, training):
    with pytest.raises(ValueError, match=f"dropout: p is a probability, .* got {p}"):
        dropout(gg.ones(3), p, training)
    with pytest.raises(ValueError, match=f"dropout_add: p is a probability, .* got {p}"):
        dropout_add(gg.ones(3), gg.ones(3), p, training)
