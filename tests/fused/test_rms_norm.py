"""Root-mean-square normalisation: shapes, dtypes, layouts, residual, extreme rows, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import rms_norm

SHAPES = [(1,), (1, 1), (3, 1), (7,), (7, 13), (2, 3, 17), (33, 64), (5, 1023), (1, 0), (0, 4)]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def tensors(*shapes, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        None if s is None else gg.Tensor(rng.normal(0.3, spread, s), requires_grad=True)
        for s in shapes
    ]


def test_values_by_hand():
    out = rms_norm(gg.tensor([[3.0, 4.0], [0.0, 0.0]], dtype="float64"), [1.0, 10.0], eps=0.5)
    np.testing.assert_allclose(out.data, [[3 / 13**0.5, 40 / 13**0.5], [0, 0]], rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, dtype, check):
    eps = 1e-6 if shape[-1] > 1 else 0.1  # with one element eps is all that does not cancel
    check("rms_norm", rms_norm, tensors(shape, shape[-1:], None), dtype, eps=eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 13), (2, 3, 17), (0, 4)], ids=str)
def test_residual_is_added_first(shape, dtype, check):
    check("rms_norm", rms_norm, tensors(shape, shape[-1:], shape), dtype, eps=1e-6)


def test_weight_is_optional(check):
    check("rms_norm", rms_norm, tensors((7, 13), None, None), "float32", eps=1e-6)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    x, weight, upstream = (t.data for t in tensors((6, 5, 7), (7,), (6, 5, 7)))
    results = []
    for name in ("contiguous", layout):
        t = gg.Tensor(dict(testing.layouts(x))[name], requires_grad=True)
        out = rms_norm(t, weight)
        out.backward(gg.Tensor(dict(testing.layouts(upstream))[name]))
        results.append(out.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


def test_broadcast_input_and_gradient():
    x = gg.Tensor(np.broadcast_to([1.0, 2.0, 4.0], (4, 3)), requires_grad=True)
    out = rms_norm(x)
    np.testing.assert_array_equal(out.data, np.broadcast_to(out.data[0], (4, 3)))
    out.sum().backward()  # a gradient without memory of its own
    assert x.grad.shape == (4, 3)


def test_one_tensor_as_everything():
    x = gg.Tensor(np.array([0.5, -1.0, 2.0]), requires_grad=True)
    testing.gradcheck(lambda x: rms_norm(x, x, x), x)
    testing.gradgradcheck(lambda x: rms_norm(x, x, x), x)


def test_only_the_sum_has_a_gradient():
    x, residual, weight = tensors((3, 4), (3, 4), (4,))
    _, total = rms_norm(x, weight, residual)
    (total * 2).sum().backward()
    for t in (x, residual):
        np.testing.assert_array_equal(t.grad.data, np.full((3, 4), 2.0))
    assert weight.grad is None


def test_blocks_and_threads_change_no_bit(splits):
    inputs = [t.data for t in tensors((1000, 17), (17,), (1000, 17))]
    results = []
    for _ in splits:
        args = [gg.Tensor(a, requires_grad=True) for a in inputs]
        out, total = rms_norm(*args)
        gg.backward([out, total], [out.detach(), total.detach()])
        results.append([t.data.tobytes() for t in (out, total, *(a.grad for a in args))])
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e15])
def test_small_and_huge_spreads(spread, check):
    x = tensors((4, 37), spread=spread)
    check("rms_norm", rms_norm, [*x, *tensors((37,), None)], "float32", eps=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(bad):
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    x[1, 2] = bad
    t = gg.Tensor(x, requires_grad=True)
    out = rms_norm(t)
    assert np.isnan(out.data[1, 2])
    assert np.isfinite(out.data[[0, 2]]).all()
    out.backward(gg.ones(3, 4))
    assert np.isfinite(t.grad.data[[0, 2]]).all()


def test_zero_row_and_zero_eps_is_nan_without_a_warning():
    assert np.isnan(rms_norm(gg.zeros(2, 3), eps=0.0).data).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weight_may_be_of_another_dtype(dtype):
    x = gg.Tensor(np.ones((3, 4)), dtype, requires_grad=True)
    weight = gg.ones(4, requires_grad=True)
    out = rms_norm(x, weight)
    out.sum().backward()
    assert out.dtype == x.dtype == x.grad.dtype
    assert weight.grad.dtype == gg.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0,), r"rms_norm: x has no axes"),
        ((np.ones((2, 3)), np.ones(2)), r"weight has shape \(2,\).*\(2, 3\), needs \(3,\)"),
        ((np.ones((2, 3)), None, np.ones(3)), r"residual has shape \(3,\) but x has \(2, 3"),
        ((np.ones((2, 3)), None, None, -1.0), r"eps must not be negative, got -1.0"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(*arguments)
