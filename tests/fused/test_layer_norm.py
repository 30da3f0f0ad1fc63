"""Layer normalisation: shapes, dtypes, layouts, residual, extreme rows, blocks, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import _rows, layer_norm

SHAPES = [(1,), (1, 1), (3, 1), (7,), (7, 13), (2, 3, 17), (33, 64), (5, 1023), (1, 0), (0, 4)]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def tensors(*shapes, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        None if s is None else gg.Tensor(rng.normal(0.3, spread, s), requires_grad=True)
        for s in shapes
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, dtype, check):
    n = shape[-1:]
    check("layer_norm", layer_norm, tensors(shape, n, n, None), dtype, eps=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 13), (2, 3, 17), (0, 4)], ids=str)
def test_residual_is_added_first(shape, dtype, check):
    n = shape[-1:]
    check("layer_norm", layer_norm, tensors(shape, n, n, shape), dtype, eps=1e-5)


@pytest.mark.parametrize("given", ["neither", "weight", "bias"])
def test_weight_and_bias_are_optional(given, check):
    n = (13,)
    inputs = tensors(
        (7, 13), n if given == "weight" else None, n if given == "bias" else None, None
    )
    check("layer_norm", layer_norm, inputs, "float32", eps=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    x, weight, upstream = (t.data for t in tensors((6, 5, 7), (7,), (6, 5, 7)))
    results = []
    for array in (x, dict(testing.layouts(x))[layout]):
        t = gg.Tensor(array, requires_grad=True)
        out = layer_norm(t, weight)
        g = dict(testing.layouts(upstream))[layout if array is not x else "contiguous"]
        out.backward(gg.Tensor(g))
        results.append(out.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


def test_broadcast_input_and_gradient():
    row = np.array([1.0, 2.0, 4.0])
    x = gg.Tensor(np.broadcast_to(row, (4, 3)), requires_grad=True)
    out = layer_norm(x, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(out.data, np.broadcast_to(out.data[0], (4, 3)))
    (layer_norm(x) ** 2).sum().backward()
    assert x.grad.shape == (4, 3)


def test_one_tensor_as_everything():
    x = gg.Tensor(np.array([0.5, -1.0, 2.0]), requires_grad=True)
    testing.gradcheck(lambda x: layer_norm(x, x, x, x), x)
    testing.gradgradcheck(lambda x: layer_norm(x, x, x, x), x)


def test_only_the_sum_has_a_gradient():
    x, residual, weight = tensors((3, 4), (3, 4), (4,))
    _, total = layer_norm(x, weight, residual=residual)
    (total * 2).sum().backward()
    for t in (x, residual):
        np.testing.assert_array_equal(t.grad.data, np.full((3, 4), 2.0))
    assert weight.grad is None
    x.grad.fill_(7)
    assert (residual.grad.data == 2).all()  # memory of its own


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_paired_hands_the_input_on_and_takes_its_gradient(dtype, check):
    x, weight, bias = tensors((5, 3, 7), (7,), (7,))
    check("layer_norm", layer_norm, [x, weight, bias, None], dtype, paired=True, eps=1e-5)
    paired = layer_norm(x, weight, bias, paired=True)
    assert paired[1].data is x.data
    apart = layer_norm(x, weight, bias), x
    seeds = [gg.Tensor(t.data) for t in tensors((5, 3, 7), (5, 3, 7))]
    wanted = [x, weight, bias]
    for a, b in zip(gg.grad(paired, wanted, seeds), gg.grad(apart, wanted, seeds), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    (alone,) = gg.grad(layer_norm(x, weight, bias, paired=True)[1], x, seeds[1])
    np.testing.assert_array_equal(alone.data, seeds[1].data)


def test_every_derivative_of_a_pair():
    def function(x, weight):
        out, same = layer_norm(x, weight, paired=True)
        return out * same

    inputs = tensors((3, 4), (4,))
    testing.gradcheck(function, inputs)
    testing.gradgradcheck(function, inputs)


def test_second_derivative_without_parameters_is_not_that_of_constant_statistics():
    x = gg.Tensor(np.array([[0.5, -1.0, 2.0]]), requires_grad=True)
    weights = np.array([[1.0, 3.0, -2.0]])
    (g,) = gg.grad((layer_norm(x) * weights).sum(), x, create_graph=True)
    (second,) = gg.grad((g * g).sum(), x)
    assert np.abs(second.data).max() > 0.01  # mean and scale as constants would give 0
    testing.gradgradcheck(lambda x: layer_norm(x) * weights, x)


def test_blocks_and_threads_change_no_bit(splits):
    inputs = [t.data for t in tensors((1000, 17), (17,), (17,), (1000, 17))]
    results = []
    for _ in splits:
        args = [gg.Tensor(a, requires_grad=True) for a in inputs]
        out, total = layer_norm(*args)
        gg.backward([out, total], [out.detach(), total.detach()])
        results.append([t.data.tobytes() for t in (out, total, *(a.grad for a in args))])
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e15])
def test_small_and_huge_spreads(offset, spread, check):
    rng = np.random.default_rng(1)
    x = gg.Tensor(offset + spread * rng.standard_normal((4, 37)), requires_grad=True)
    check("layer_norm", layer_norm, [x, *tensors((37,), (37,), None)], "float32", eps=1e-5)


def test_constant_row_is_the_bias():
    out = layer_norm(gg.full((2, 5), 3.0), bias=[1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(out.data, [[1.0, 2.0, 3.0, 4.0, 5.0]] * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(bad):
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    x[1, 2] = bad
    t = gg.Tensor(x, requires_grad=True)
    out = layer_norm(t)
    assert np.isnan(out.data[1]).all()
    assert np.isfinite(out.data[[0, 2]]).all()
    out.backward(gg.ones(3, 4))
    assert np.isfinite(t.grad.data[[0, 2]]).all()


def test_zero_variance_and_zero_eps_is_nan_without_a_warning():
    assert np.isnan(layer_norm(gg.ones(2, 3), eps=0.0).data).all()


def test_statistics_of_half_precision_are_float32():
    x = np.full((1, 4096), 100.0)
    x[0, ::2] += 1  # sums of squares beyond float16, differences below its resolution of sums
    out = layer_norm(gg.Tensor(x.astype(np.float16)), eps=0.0)
    assert out.dtype == gg.float16
    np.testing.assert_array_equal(out.data[0, :4], np.array([1, -1, 1, -1], np.float16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_parameters_may_be_of_another_dtype(dtype):
    x, weight = tensors((3, 4), (4,))
    x = gg.Tensor(x.data.astype(gg.asarray([0.0]).astype(dtype).dtype), requires_grad=True)
    weight = gg.Tensor(weight.data.astype(np.float32), requires_grad=True)
    out = layer_norm(x, weight)
    out.sum().backward()
    assert out.dtype == x.dtype == x.grad.dtype
    assert weight.grad.dtype == gg.float32


def test_integers_become_float32():
    out = layer_norm(np.arange(6).reshape(2, 3))
    assert out.dtype == gg.float32
    np.testing.assert_allclose(out.data[0], [-1.2247357, 0, 1.2247357], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0,), r"layer_norm: x has no axes"),
        ((np.ones((2, 3)), np.ones(2)), r"weight has shape \(2,\).*\(2, 3\), needs \(3,\)"),
        ((np.ones((2, 3)), None, np.ones((1, 3))), r"bias has shape \(1, 3\)"),
        ((np.ones((2, 3)), None, None, np.ones(3)), r"residual has shape \(3,\) but x has \(2, 3"),
        ((np.ones((2, 3)), None, None, None, -1.0), r"eps must not be negative, got -1.0"),
        ((np.ones((2, 3)), None, None, None, np.nan), r"eps must not be negative, got nan"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_norm(*arguments)


def test_in_place_change_of_a_saved_input_is_found():
    x = gg.Tensor(np.ones((2, 3)), requires_grad=True)
    out = layer_norm(x)
    with gg.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="layer_norm saved 'x'"):
        out.sum().backward()


def test_variance_beyond_float32_gives_zero_and_no_nan():
    x = gg.Tensor(np.array([[1e30, -1e30, 0.0]], np.float32), requires_grad=True)
    out = layer_norm(x, bias=[1.0, 2.0, 3.0])
    out.sum().backward()
    np.testing.assert_array_equal(out.data, [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(x.grad.data, np.zeros((1, 3)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (1, 1, 127), (3, 1, 5), (63, 128), (1, 5000)])
@pytest.mark.parametrize("given", [(), ("weight",), ("weight", "bias", "residual")])
def test_few_rows_have_the_bits_they_have_in_blocks(given, shape, dtype, monkeypatch):
    rng = np.random.default_rng(3)
    sizes = {"x": shape, "weight": shape[-1:], "bias": shape[-1:], "residual": shape}

    def results():
        leaves = {n: gg.tensor(a, dtype=dtype, requires_grad=True) for n, a in arrays.items()}
        out, h = layer_norm(**leaves, paired=True)
        gradients = gg.grad(gg.sum(out * out + h), list(leaves.values()))
        return [t.numpy() for t in (out, h, *gradients)]

    arrays = {name: rng.normal(size=sizes[name]) for name in ("x", *given)}
    few = results()
    monkeypatch.setattr(_rows, "FEW", 0)
    for found, expected in zip(few, results(), strict=True):
        assert found.dtype == expected.dtype == dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
