"""Reductions and scans where rules usually break: ties, zeros, one element, nothing at all."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing import gradcheck, gradgradcheck

inf, nan = math.inf, math.nan
REDUCTIONS = ("sum", "mean", "prod", "max", "min", "var", "std", "norm", "logsumexp")


def leaf(data: Any, dtype: Any = gg.float64) -> gg.Tensor:
    return gg.tensor(data, dtype, requires_grad=True)


def gradient(out: gg.Tensor, x: gg.Tensor) -> list:
    return gg.grad(out.sum(), [x])[0].tolist()


# Ties, zeros, one element


@pytest.mark.parametrize("name", ["max", "min"])
def test_ties_share_the_gradient(name: str) -> None:
    x = leaf([[3.0, 1.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    out = getattr(gg, name)(x, axis=1)
    first = [0.5, 0.0, 0.5, 0.0] if name == "max" else [0.0, 0.5, 0.0, 0.5]
    assert gradient(out, x) == [first, [0.25] * 4]
    everything = getattr(x, name)()
    assert sum(sum(row) for row in gradient(everything, x)) == 1.0


@pytest.mark.parametrize("name", ["max", "min"])
def test_extremes_of_infinities_and_nan(name: str) -> None:
    x = leaf([inf, -inf, inf])
    assert sum(gradient(getattr(gg, name)(x), x)) == 1.0
    assert math.isnan(getattr(gg, name)(leaf([1.0, nan])).item())


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)], ids=str)
@pytest.mark.parametrize(
    "data",
    [
        [[0.0, 2.0, 3.0], [1.5, 2.0, 0.5]],
        [[0.0, 0.0, 3.0], [1.5, 0.0, 0.5]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[-1.0, 2.0, -0.0], [1.5, -2.0, 0.5]],
    ],
    ids=["one", "two", "all", "negative"],
)
def test_product_with_zeros(data: list, axis: Any) -> None:
    x = leaf(data)
    gradcheck(lambda x: gg.prod(x, axis=axis), x)
    gradgradcheck(lambda x: gg.prod(x, axis=axis, keepdims=True), x)


def test_product_with_a_zero_among_many_needs_little_memory() -> None:
    x = np.ones(100_000)
    x[777] = 0.0
    t = leaf(x)
    (g,) = gg.grad(gg.prod(t), [t])
    np.testing.assert_array_equal(np.flatnonzero(g.numpy()), [777])


@pytest.mark.parametrize(
    "data",
    [[0.0, 2.0, 3.0], [2.0, 0.0, 3.0, 0.0, 1.5], [0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0], []],
    ids=str,
)
def test_running_product_with_zeros(data: list) -> None:
    x = leaf(data)
    gradcheck(gg.cumulative_prod, x)
    gradgradcheck(gg.cumulative_prod, x)


def test_running_product_with_zeros_along_a_middle_axis() -> None:
    x = np.random.default_rng(0).uniform(0.5, 2.0, (2, 3, 2))
    x[0, 1, 1] = x[1, 0, 0] = x[1, 2, 0] = 0.0
    gradcheck(lambda x: gg.cumulative_prod(x, axis=1), leaf(x))
    gradgradcheck(lambda x: gg.cumulative_prod(x, axis=-2), leaf(x))


def test_a_zero_ends_what_overflows_behind_it_in_the_gradient_of_cumulative_prod() -> None:
    x = leaf(np.array([3.0, 2.0, 0.0] + [1e30] * 20))
    gg.cumulative_prod(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[[0, 1, 2, 3, 22]], [3, 3, inf, 0, 0])


def test_gradient_of_a_long_cumulative_prod_with_a_zero_takes_little_memory() -> None:
    n = 5000
    values, g = np.random.default_rng(0).uniform(0.5, 1.5, n), np.zeros(n)
    values[[3, 4000]], g[:20] = 0, 1
    x = leaf(values)
    tracemalloc.start()
    try:
        gg.cumulative_prod(x).backward(g)
        assert tracemalloc.get_traced_memory()[1] < 100 * x.nbytes
    finally:
        tracemalloc.stop()
    expected = np.zeros(n)  # product by product
    for i in range(4):
        for j in range(i, 20):
            expected[i] += np.prod(np.delete(values[: j + 1], i))
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 17])
def test_spread_of_equal_elements(size: int) -> None:
    x = leaf(np.full(size, 3.0))
    assert gg.var(x).item() == gg.std(x).item() == 0.0
    assert gradient(gg.var(x), x) == [0.0] * size
    assert gradient(gg.std(x), x) == [0.0] * size


def test_a_spread_of_one_is_like_any_other() -> None:
    x = leaf([-1.0, 1.0])
    assert gradient(gg.std(x), x) == [-0.5, 0.5]


@pytest.mark.parametrize("name", ["var", "std"])
def test_unbiased_spread_of_one_element_is_nan(name: str) -> None:
    x = leaf([[1.0], [2.0]])
    out = getattr(gg, name)(x, axis=1, correction=1)  # warnings are errors
    assert np.isnan(out.detach().numpy()).all()
    assert np.isnan(gradient(out, x)).all()


def test_spread_of_large_equal_elements_does_not_cancel() -> None:
    x = gg.tensor([1e4, 1e4 + 1, 1e4 + 2], gg.float32)
    assert gg.var(x).item() == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("order", [0.5, 1, 1.5, 2, 3, inf])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_norm_of_zero_has_gradient_zero(shape: tuple[int, ...], order: float) -> None:
    x = leaf(np.zeros(shape))
    assert gg.norm(x, ord=order).item() == 0.0
    assert not np.any(gradient(gg.norm(x, ord=order), x))


@pytest.mark.parametrize("order", [0.5, 1.5, 2, 3])
def test_norm_of_rows_with_zeros(order: float) -> None:
    x = leaf([[0.0, 0.0], [0.0, -4.0]])
    out = gg.norm(x, axis=1, ord=order)
    np.testing.assert_allclose(out.detach().numpy(), [0, 4], rtol=1e-15)
    np.testing.assert_allclose(gradient(out, x), [[0, 0], [0, -1]], rtol=1e-15)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e30, "float32"), (1e-30, "float32"), (1e200, "float64"), (1e-200, "float64")],
)
def test_norm_neither_overflows_nor_vanishes(scale: float, dtype: str) -> None:
    x = leaf([3 * scale, 4 * scale], dtype)
    out = gg.norm(x)
    assert out.item() == pytest.approx(5 * scale, rel=1e-6)
    np.testing.assert_allclose(gradient(out, x), [0.6, 0.8], rtol=1e-6)


def test_norm_of_infinity() -> None:
    assert gg.norm(gg.tensor([1.0, inf])).item() == inf
    assert gg.norm(gg.tensor([[1.0, -inf], [3.0, 4.0]]), axis=1).tolist() == [inf, 5.0]
    assert math.isnan(gg.norm(gg.tensor([1.0, nan])).item())


@pytest.mark.parametrize("order", [1, 2, 3, 2.5, inf])
def test_norms_of_any_order(order: float) -> None:
    x = np.random.default_rng(0).uniform(0.5, 2.0, (3, 4)) * np.array([1, -1, 1, -1])
    t = leaf(x)
    for axis in (0, 1, -1):
        out = gg.norm(t, axis=axis, ord=order)
        np.testing.assert_allclose(
            out.detach().numpy(), np.linalg.norm(x, ord=order, axis=axis), rtol=1e-14
        )
        gradcheck(lambda t, axis=axis: gg.norm(t, axis=axis, ord=order), t)
    with pytest.raises(ValueError, match="norm: ord must be positive"):
        gg.norm(t, ord=0)


# logsumexp


def test_logsumexp_of_minus_infinity() -> None:
    x = leaf([[-inf, -inf], [-inf, 0.0]])
    out = gg.logsumexp(x, axis=1)
    assert out.tolist() == [-inf, 0.0]
    assert gradient(out, x) == [[0.0, 0.0], [0.0, 1.0]]


def test_logsumexp_of_huge_values() -> None:
    x = leaf([1e5, 1e5, -1e5])
    out = gg.logsumexp(x)
    assert out.item() == pytest.approx(1e5 + math.log(2))
    assert gradient(out, x) == pytest.approx([0.5, 0.5, 0.0])
    assert gg.logsumexp(leaf([0.0, inf])).item() == inf
    assert gradient(gg.logsumexp(leaf_inf := leaf([0.0, inf])), leaf_inf)[0] == 0.0


# Nothing to reduce


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sum", 0.0), ("prod", 1.0), ("mean", nan), ("var", nan), ("std", nan), ("norm", 0.0)],
)
def test_reduction_over_nothing(name: str, expected: float) -> None:
    x = leaf(np.zeros((3, 0)))  # warnings are errors
    out = getattr(gg, name)(x, axis=1)
    np.testing.assert_array_equal(out.detach().numpy(), [expected] * 3)
    assert gg.grad(out.sum(), [x])[0].shape == (3, 0)
    np.testing.assert_equal(getattr(gg, name)(x).item(), expected)
    assert getattr(gg, name)(x, axis=0).shape == (0,)


def test_logsumexp_over_nothing_is_minus_infinity() -> None:
    x = leaf(np.zeros((2, 0)))
    out = gg.logsumexp(x, axis=-1)
    assert out.tolist() == [-inf, -inf]
    assert gg.grad(out.sum(), [x])[0].shape == (2, 0)


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_the_extreme_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*x: float32.*0"):
        getattr(gg, name)(gg.zeros(3, 0), axis=1)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_empty_result(name: str) -> None:
    x = leaf(np.zeros((0, 3)))
    out = getattr(gg, name)(x, axis=1)
    assert out.shape == (0,)
    assert gg.grad(out, [x], gg.zeros(0))[0].shape == (0, 3)


# Forms


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (-1, 0), [1, 2], ()], ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_axes(name: str, axis: Any, keepdims: bool) -> None:
    x = np.random.default_rng(1).uniform(0.5, 2.0, (2, 3, 4))
    axes = tuple(axis) if isinstance(axis, list) else axis
    if name == "norm":
        expected = np.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))
    elif name == "logsumexp":
        expected = np.log(np.sum(np.exp(x), axis=axes, keepdims=keepdims))
    else:
        expected = getattr(np, name)(x, axis=axes, keepdims=keepdims)
    out = getattr(gg, name)(leaf(x), axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-13, atol=1e-15)
    gradcheck(lambda x: getattr(gg, name)(x, axis=axis, keepdims=keepdims), leaf(x[:, :2, :3]))


@pytest.mark.parametrize("name", ["argmax", "argmin", "any", "all", "count_nonzero"])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_without_gradient(name: str, axis: Any, keepdims: bool) -> None:
    x = np.random.default_rng(2).integers(0, 3, (3, 4, 5))
    out = getattr(gg, name)(gg.tensor(x), axis=axis, keepdims=keepdims)
    expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    np.testing.assert_array_equal(out.numpy(), expected)
    plain = getattr(leaf(x.astype(float)), name)()  # over all axes, none of them kept
    assert plain.item() == getattr(np, name)(x)
    assert plain.shape == ()
    assert not plain.requires_grad


def test_sum_in_another_dtype() -> None:
    x = leaf([1.0, 2.0], gg.float16)
    out = gg.sum(x, dtype=gg.float64)
    assert out.dtype == gg.float64
    assert gg.grad(out, [x])[0].dtype == gg.float16
    assert gg.sum(gg.tensor([True, True])).dtype == gg.int64
    assert gg.mean(gg.tensor([1, 2])).dtype == gg.float32


@pytest.mark.parametrize("x", [gg.arange(200), gg.ones(3), gg.tensor([True, True])], ids=repr)
def test_sum_refuses_dtypes_in_which_it_may_overflow(x: gg.Tensor) -> None:
    for dtype in ("int8", gg.int16, "int32", "uint8", "uint32", bool):
        with pytest.raises(TypeError, match=r"sum: a sum in .* may overflow; take int64"):
            gg.sum(x, dtype=dtype)
    for dtype in (gg.int64, gg.uint64, gg.float64):
        total = x.sum(dtype=dtype)
        assert total.dtype == dtype
        assert total.item() == x.numpy().sum()


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", ["sum", "mean", "cumulative_sum", "norm"])
def test_narrow_dtypes_accumulate_in_float32(name: str, dtype: Any) -> None:
    x = gg.ones(4096).astype(dtype) * 0.25
    exact = {"sum": 1024.0, "mean": 0.25, "norm": 16.0, "cumulative_sum": 1024.0}[name]
    assert float(getattr(gg, name)(x).numpy().reshape(-1)[-1]) == exact


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=str)
@pytest.mark.parametrize("zero", [False, True])
def test_narrow_products_accumulate_in_float32(dtype: Any, zero: bool) -> None:
    wide = np.random.default_rng(4).uniform(0.9, 1.1, 300).astype(dtype).astype(np.float32)
    wide[200] *= not zero
    x = gg.tensor(wide.astype(dtype), requires_grad=True)
    out = gg.cumulative_prod(x)
    np.testing.assert_array_equal(out.detach().numpy(), np.cumprod(wide).astype(dtype))
    others = gg.grad(gg.prod(x), [x])[0].numpy()
    assert others.dtype == dtype
    expected = float(np.delete(wide.astype(np.float64), 200).prod())
    assert float(others[200]) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_prod"])
def test_scans_without_an_axis_flatten(name: str) -> None:
    x = np.random.default_rng(3).uniform(0.5, 2.0, (2, 3))
    expected = {"cumulative_sum": np.cumsum, "cumulative_prod": np.cumprod}[name](x)
    np.testing.assert_allclose(getattr(gg, name)(leaf(x)).detach().numpy(), expected)
    gradcheck(getattr(gg, name), leaf(x))


@pytest.mark.parametrize("name", ["sum", "prod", "mean", "max", "min", "std", "var", "all", "any"])
def test_numpys_functions_reduce_tensors(name: str) -> None:
    x, function = np.array([[1.0, 2.0], [0.0, 5.0]]), getattr(np, name)
    for options in ({}, {"axis": 0}, {"axis": 1, "keepdims": True}):
        out = function(gg.tensor(x), **options)
        assert isinstance(out, gg.Tensor)
        np.testing.assert_allclose(out.numpy(), function(x, **options))
    with pytest.raises(TypeError, match=f"{name}: .*out"):
        function(gg.tensor(x), out=np.zeros(()))


def test_ddof_is_the_correction() -> None:
    x = gg.tensor([1.0, 4.0], requires_grad=True)
    assert np.var(x, ddof=1).item() == x.var(ddof=1).item() == 4.5
    assert np.sum(x).requires_grad
    with pytest.raises(TypeError, match="'correction' is given twice"):
        x.var(correction=0, ddof=1)


def test_an_axis_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="sum: "):
        gg.sum(gg.ones(2, 3), axis=(0, -2))


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=str)
def test_a_mean_does_not_overflow_where_its_sum_would(dtype: Any) -> None:
    assert gg.full((5000,), 60.0, dtype=dtype).mean().item() == 60.0


_TALL = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "var": lambda x: x.var(0),
    "norm": lambda x: gg.norm(x, axis=0),
    "two axes": lambda x: x.reshape(-1, 511, 3).sum((0, 1)),
    "first and last": lambda x: x.reshape(-1, 73, 3).sum((0, 2)),
    "expanded": lambda x: gg.broadcast_to(x[0], x.shape).sum(0),
    "not contiguous": lambda x: gg.transpose(x).sum(1),
    "cumulative_sum": lambda x: gg.cumulative_sum(x, axis=0)[-1],
    "bias": lambda x: _gradient(lambda b: x + b, x),
    "linear": lambda x: _gradient(lambda b: gg.linear(x, gg.ones(3, 3), b), x),
    "layer_norm": lambda x: _gradient(lambda b: gg.fused.layer_norm(x, gg.ones(3), b), x),
}


def _gradient(f, g):
    parameter = gg.zeros(3, requires_grad=True)
    return gg.grad(f(parameter), parameter, g)[0]


@pytest.mark.parametrize("name", _TALL)
def test_sums_of_many_rows_are_exact(name):
    """One after the other, 280,000 numbers near 100 are off by a part in 500."""
    values = (np.random.default_rng(0).random((511 * 73 * 7, 3)) + 100).astype(np.float32)
    exact = _TALL[name](gg.tensor(values.astype(np.float64))).numpy()
    found = _TALL[name](gg.tensor(values))
    assert found.dtype == gg.float32
    np.testing.assert_allclose(found.numpy(), exact, rtol=2e-6)
    recorded = gg.compile(_TALL[name])
    np.testing.assert_array_equal(recorded(gg.tensor(values)).numpy(), found.numpy())


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("name", ["mean", "var", "std", "max", "min"])
def test_gradients_over_more_elements_than_float16_counts(
    name: str, offset: float, dtype: Any
) -> None:
    """float16 ends at 65504: a count, a sum or a number of ties above it is infinite there."""
    data = np.arange(70_000) % 5 * (name not in ("max", "min")) + offset
    x = leaf(data, dtype)
    exact = leaf(x.detach().numpy().astype(np.float64))
    expected = gg.grad(getattr(gg, name)(exact) * 100, exact)[0].numpy()
    for recorded in (False, True):
        found = gg.grad(getattr(gg, name)(x) * 100, x, create_graph=recorded)[0]
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found.detach().numpy().astype(np.float64), expected, rtol=2e-2, atol=6e-8
        )


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=str)
def test_norms_of_any_order_are_computed_in_float32(dtype: Any) -> None:
    x = leaf([100.0, 0.0, -100.0], dtype)
    out = gg.norm(x, ord=3)
    assert out.dtype == dtype
    assert out.item() == pytest.approx(2 ** (1 / 3) * 100, rel=5e-3)
    assert gradient(out, x) == pytest.approx([2 ** (-2 / 3), 0.0, -(2 ** (-2 / 3))], rel=5e-3)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("value", [3.0, 0.0])
def test_a_number_without_axes_is_one_element(name: str, keepdims: bool, value: float) -> None:
    x, one = leaf(value), leaf([value])
    for axis in (0, -1):
        out = getattr(gg, name)(x, axis=axis, keepdims=keepdims)
        assert out.shape == ()
        assert out.item() == getattr(gg, name)(one).item()
        assert [gradient(out, x)] == gradient(getattr(gg, name)(one), one)
    with pytest.raises(IndexError, match=f"{name}: axis 1 .* 0"):
        getattr(gg, name)(x, axis=1)


@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_prod"])
def test_a_number_without_axes_has_none_to_scan(name: str) -> None:
    with pytest.raises(IndexError, match=f"{name}: axis 0 is out of range for 0 dimensions"):
        getattr(gg, name)(leaf(3.0), axis=0)
