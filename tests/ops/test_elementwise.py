"""Elementwise operations where rules usually break: kinks, zeros, infinities, scalars, dtypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.registry import OPS
from gpugrad.testing import gradcheck, gradgradcheck

inf, nan = math.inf, math.nan
BINARY = [op.name for op in OPS.values() if op.arguments == ("x", "y") and op.name != "matmul"]
SMOOTH = [name for name in BINARY if OPS[name].rules]


def slope(f: Callable[..., Any], *values: float, order: int = 1) -> list[float]:
    """Return the derivatives of f with respect to each argument at a point."""
    args = [gg.tensor(v, gg.float64, requires_grad=True) for v in values]
    out = f(*args)
    for _ in range(order - 1):
        out = gg.grad(out, args, create_graph=True)[0]
    return [g.item() for g in gg.grad(out, args)]


@pytest.mark.parametrize(
    "name", ["negative", "positive", "abs", "sign", "floor", "ceil", "trunc", "round", "square"]
)
def test_integers_stay_integers(name: str) -> None:
    x = np.array([-3, 0, 2**62 + 1 if name != "square" else 5])  # float64 has no such number
    out = getattr(gg, name)(gg.tensor(x))
    assert out.dtype == gg.int64
    np.testing.assert_array_equal(out.numpy(), getattr(np, name)(x))


@pytest.mark.parametrize("arguments", [1, 2])
def test_integers_become_float32_where_results_are_none(arguments: int) -> None:
    names = {
        1: "sqrt exp log sin tanh sigmoid softplus erf mean var std norm logsumexp",
        2: "divide atan2 hypot logaddexp",
    }
    x = gg.tensor([1, 2, 3])
    found = {name: getattr(gg, name)(*[x] * arguments).dtype for name in names[arguments].split()}
    assert found == dict.fromkeys(found, gg.float32)


@pytest.mark.parametrize("name", ["isfinite", "isinf", "isnan"])
def test_integers_are_finite(name: str) -> None:
    assert getattr(gg, name)(gg.tensor([-3, 0])).tolist() == [name == "isfinite"] * 2


# Where a derivative does not exist


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("relu", -0.0, 0.0),
        ("relu", inf, 1.0),
        ("relu", -inf, 0.0),
        ("abs", 0.0, 0.0),
        ("abs", -0.0, 0.0),
        ("abs", inf, 1.0),
        ("abs", -inf, -1.0),
        ("sign", 0.0, 0.0),
        ("sign", inf, 0.0),
        ("sign", -inf, 0.0),
        ("sqrt", 0.0, inf),
        ("square", 0.0, 0.0),
        ("sigmoid", 1000.0, 0.0),
        ("sigmoid", -1000.0, 0.0),
        ("sigmoid", -inf, 0.0),
        ("softplus", 1000.0, 1.0),
        ("softplus", -1000.0, 0.0),
        ("softplus", 0.0, 0.5),
        ("softplus", 1e8, 1.0),
        ("softplus", inf, 1.0),
        ("softplus", -inf, 0.0),
        ("tanh", inf, 0.0),
        ("erf", -inf, 0.0),
        ("exp", -inf, 0.0),
        ("atan", inf, 0.0),
        ("log1p", 0.0, 1.0),
        ("expm1", 0.0, 1.0),
    ],
)
def test_slope_at_special_points(name: str, x: float, expected: float) -> None:
    assert slope(OPS[name].function, x) == [expected]


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"),
    [
        ("maximum", 2.0, 2.0, [0.5, 0.5]),
        ("minimum", 2.0, 2.0, [0.5, 0.5]),
        ("maximum", inf, inf, [0.5, 0.5]),
        ("maximum", 1.0, 2.0, [0.0, 1.0]),
        ("minimum", 1.0, 2.0, [1.0, 0.0]),
        ("hypot", 0.0, 0.0, [0.0, 0.0]),
        ("hypot", 3.0, 0.0, [1.0, 0.0]),
        ("logaddexp", -inf, -inf, [0.0, 0.0]),
        ("logaddexp", -inf, 0.0, [0.0, 1.0]),
        ("logaddexp", 1000.0, 0.0, [1.0, 0.0]),
        ("logaddexp", 1e8, 1e8, [0.5, 0.5]),
        ("logaddexp", -1e300, -1e300, [0.5, 0.5]),
        ("logaddexp", inf, 0.0, [1.0, 0.0]),
        ("logaddexp", inf, -inf, [1.0, 0.0]),
        ("logaddexp", inf, inf, [nan, nan]),
        ("power", 0.0, 0.0, [0.0, 0.0]),
        ("power", 0.0, 1.0, [1.0, 0.0]),
        ("power", 0.0, 2.0, [0.0, 0.0]),
        ("power", -2.0, 2.0, [-4.0, nan]),
        ("power", 5.0, 0.0, [0.0, math.log(5.0)]),
        ("multiply", 0.0, 0.0, [0.0, 0.0]),
        ("atan2", 0.0, -1.0, [-1.0, -0.0]),
        ("atan2", 0.0, 0.0, [0.0, -0.0]),
        ("atan2", 2e-200, 0.0, [0.0, -5e199]),
        ("atan2", 2e200, 2e200, [2.5e-201, -2.5e-201]),
        ("remainder", -248.25, 0.25, [1.0, 993.0]),
        ("remainder", 1.0, 0.1, [1.0, -9.0]),  # 1 / 0.1 is 10, but 0.1 is above a tenth
    ],
)
def test_slopes_of_two_arguments(name: str, x: float, y: float, expected: list[float]) -> None:
    np.testing.assert_equal(slope(OPS[name].function, x, y), expected)


def test_logaddexp_of_infinity_gives_the_other_nothing() -> None:
    assert slope(gg.logaddexp, inf, 0.0)[1] == 0.0
    assert slope(gg.logaddexp, 0.0, inf)[0] == 0.0


def test_the_gradients_of_logaddexp_and_softplus_hide_no_nan() -> None:
    with np.errstate(invalid="ignore"):
        np.testing.assert_equal(slope(gg.logaddexp, -inf, nan), [nan, nan])
        np.testing.assert_equal(slope(gg.softplus, nan), [nan])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_logaddexp_of_large_numbers_shares_the_gradient_exactly(dtype: str) -> None:
    x, y = (gg.tensor([3e4, 3e4, 7.0, -3e4], dtype, requires_grad=True) for _ in range(2))
    assert [g.tolist() for g in gg.grad(gg.logaddexp(x, y).sum(), [x, y])] == [[0.5] * 4] * 2


@pytest.mark.parametrize("x", [-700.0, -3.0, 0.0, 3.0, 40.0])
def test_second_derivatives_of_softplus_and_logaddexp(x: float) -> None:
    s = 1 / (1 + math.exp(-x))
    np.testing.assert_allclose(slope(gg.softplus, x, order=2), [s * (1 - s)], rtol=1e-14)
    for shift in (0.0, 1e8):
        twice = slope(gg.logaddexp, x + shift, shift, order=2)
        np.testing.assert_allclose(twice, [s * (1 - s), -s * (1 - s)], rtol=1e-7)
    for far in (inf, -inf):
        assert slope(gg.softplus, far, order=2) == [0.0]
    assert slope(gg.logaddexp, -inf, -inf, order=2) == [0.0, 0.0]


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.0, 1.0, 2.0, 3.0])
def test_power_with_a_number_at_zero(exponent: float) -> None:
    n = exponent
    first = {0: 0.0, 1: 1.0}.get(n, 0.0)
    second = 2.0 if n == 2 else 0.0
    third = 6.0 if n == 3 else 0.0
    for f in (lambda x: x**exponent, lambda x: gg.power(x, exponent)):
        assert [slope(f, 0.0, order=order)[0] for order in (1, 2)] == [first, second]
        if n >= 3:
            assert slope(f, 0.0, order=3) == [third]


def test_power_of_zero_with_a_negative_exponent_is_infinite() -> None:
    with np.errstate(divide="ignore"):
        assert slope(lambda x: gg.power(x, -1.0), 0.0) == [-inf]
        assert slope(lambda x: gg.power(x, 0.5), 0.0) == [inf]


@pytest.mark.parametrize(
    ("x", "y", "expected"), [(0.0, -1.0, -inf), (-0.0, -1.0, inf), (0.0, -0.5, -inf)]
)
def test_powers_of_zero_fall_without_limit_as_their_exponent_grows(
    x: float, y: float, expected: float
) -> None:
    with np.errstate(divide="ignore"):
        assert slope(gg.power, x, y)[1] == expected
        assert slope(lambda y: x**y, y) == [expected]


@pytest.mark.parametrize("x", [2.0, 0.01])
def test_the_slopes_of_a_power_whose_exponent_is_zero(x: float) -> None:
    second = slope(lambda x, y: gg.grad(gg.power(x, y), [x], create_graph=True)[0], x, 0.0)
    np.testing.assert_allclose(second, [0.0, 1 / x], rtol=1e-15)  # d/dy of y x**(y - 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_power_whose_exponent_is_zero_has_no_slope_in_x(dtype: str) -> None:
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    x = gg.tensor([0.0, -0.0, least, -least, -2.0, 3.0, inf], dtype, requires_grad=True)
    (g,) = gg.grad(gg.power(x, gg.zeros_like(x)), [x], gg.ones_like(x))
    assert (g == 0).all()


def test_a_number_to_the_power_of_a_tensor() -> None:
    x = gg.tensor([-1.0, 0.0, 2.0], gg.float64, requires_grad=True)
    (g,) = gg.grad((2.0**x).sum(), [x])
    np.testing.assert_allclose(g.numpy(), 2.0 ** x.detach().numpy() * math.log(2), rtol=1e-15)


# clip and where


@pytest.mark.parametrize(
    ("x", "expected"), [(-1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (-1.5, 0.0), (1.5, 0.0), (nan, 0.0)]
)
def test_clip_passes_the_gradient_at_its_bounds(x: float, expected: float) -> None:
    assert slope(lambda t: gg.clip(t, -1.0, 1.0), x) == [expected]


@pytest.mark.parametrize(
    ("x", "low", "high", "expected"),
    [
        (0.0, -1.0, 1.0, [1.0, 0.0, 0.0]),
        (-2.0, -1.0, 1.0, [0.0, 1.0, 0.0]),
        (2.0, -1.0, 1.0, [0.0, 0.0, 1.0]),
        (-1.0, -1.0, 1.0, [1.0, 0.0, 0.0]),
        (1.0, -1.0, 1.0, [1.0, 0.0, 0.0]),
        (0.0, 2.0, 1.0, [0.0, 0.0, 1.0]),  # min > max: the result is max
        (5.0, 2.0, 1.0, [0.0, 0.0, 1.0]),
        (1.0, 1.0, 1.0, [1.0, 0.0, 0.0]),
        (0.0, 1.0, 1.0, [0.0, 1.0, 0.0]),
        (2.0, 1.0, 1.0, [0.0, 0.0, 1.0]),
        (nan, 1.0, 1.0, [0.0, 0.0, 0.0]),
    ],
)
def test_clip_with_tensor_bounds(x: float, low: float, high: float, expected: list[float]) -> None:
    assert slope(gg.clip, x, low, high) == expected


def test_clip_with_one_bound() -> None:
    x = gg.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    assert gg.clip(x, min=-1.0).tolist() == [-1.0, 0.0, 3.0]
    assert x.clip(max=1).tolist() == [-2.0, 0.0, 1.0]
    x.clip(None, 1.0).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(TypeError, match="clip: min and max are both None"):
        gg.clip(x)


def test_clip_bounds_broadcast() -> None:
    rng = np.random.default_rng(0)
    x, low = (gg.tensor(rng.uniform(-1, 1, s), requires_grad=True) for s in ((3, 4), (3, 1)))
    gradcheck(lambda x, low: gg.clip(x, low), [x, low])
    gradcheck(lambda x, high: gg.clip(x, None, high), [x, low])


def test_where_takes_numbers_and_keeps_the_dtype() -> None:
    x = gg.tensor([1.0, nan], requires_grad=True)
    out = gg.where(gg.isnan(x), 0.0, x)
    assert out.dtype == gg.float32
    assert out.tolist() == [1.0, 0.0]
    out.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
    assert gg.where(gg.tensor([True, False]), 1, 0).dtype == gg.int64


def test_nan_to_num() -> None:
    x = gg.tensor([nan, inf, -inf, 2.0], requires_grad=True)
    assert gg.nan_to_num(x, 1.0, 5.0, -5.0).tolist() == [1.0, 5.0, -5.0, 2.0]
    gg.nan_to_num(x, 1.0, 5.0, -5.0).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nan_to_num_makes_infinities_the_largest_numbers(dtype: str) -> None:
    x = gg.tensor([nan, inf, -inf, 2.0], dtype)
    out = gg.nan_to_num(x)
    largest = float(ml_dtypes.finfo(x.dtype).max)
    assert out.dtype == x.dtype
    assert out.tolist() == [0.0, largest, -largest, 2.0]
    assert gg.nan_to_num(x, neginf=-1.0).tolist() == [0.0, largest, -1.0, 2.0]
    assert gg.nan_to_num(x, posinf=inf).tolist()[1] == inf


def test_nan_to_num_leaves_integers_alone() -> None:
    x = gg.tensor([1, 2])
    out = gg.nan_to_num(x)
    assert (out.dtype, out.tolist()) == (gg.int64, [1, 2])
    out[0] = 5
    assert x.tolist() == [1, 2]
    assert gg.nan_to_num([True]).tolist() == [True]


# Values


def test_nothing_overflows_on_the_way() -> None:
    x = gg.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])  # warnings are errors
    assert gg.sigmoid(x).tolist()[::2] == [0.0, 0.5, 1.0]
    assert gg.softplus(x).tolist()[::2] == [0.0, pytest.approx(math.log(2)), 1e4]
    assert gg.logaddexp(x, x).tolist()[-1] == pytest.approx(1e4 + math.log(2))
    assert gg.hypot(gg.tensor(1e30), gg.tensor(1e30)).item() == pytest.approx(math.sqrt(2) * 1e30)


def test_the_slope_of_rsqrt_does_not_overflow_on_the_way() -> None:
    x = gg.tensor([0.0012], gg.float16, requires_grad=True)
    (g,) = gg.grad(gg.rsqrt(x), [x], gg.tensor([3.0], gg.float16))
    assert g.item() == pytest.approx(-1.5 * x.item() ** -1.5, rel=2e-3)


@pytest.mark.parametrize("dtype", [gg.uint8, gg.int8, gg.uint16, gg.int32, gg.uint32], ids=str)
@pytest.mark.parametrize("number", [-100, 300, 2**40])
def test_integers_compare_with_numbers_that_their_dtype_does_not_hold(
    dtype: Any, number: int
) -> None:
    x = np.array([0, 1, 100], dtype)
    for symbol in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
        out = getattr(gg.tensor(x), symbol)(number)
        assert out.dtype == gg.bool
        np.testing.assert_array_equal(out.numpy(), getattr(x.astype(np.int64), symbol)(number))
    assert gg.logical_and(gg.tensor(x), number).tolist() == [False, True, True]


def test_nan_and_infinity_are_found() -> None:
    x = gg.tensor([nan, inf, -inf, 0.0])
    assert gg.isnan(x).tolist() == [True, False, False, False]
    assert gg.isinf(x).tolist() == [False, True, True, False]
    assert gg.isfinite(x).tolist() == [False, False, False, True]
    for name in ("maximum", "minimum", "add", "power"):
        assert math.isnan(OPS[name].function(gg.tensor(nan), gg.tensor(2.0)).item())


def test_bits_and_truth() -> None:
    x, y = gg.tensor([0b1100, 5]), gg.tensor([0b1010, 0])
    assert (x & y).tolist() == [0b1000, 0]
    assert (x | y).tolist() == [0b1110, 5]
    assert (x ^ y).tolist() == [0b0110, 5]
    assert (~gg.tensor([True, False])).tolist() == [False, True]
    assert gg.logical_and(x, y).tolist() == [True, False]
    with pytest.raises(TypeError, match="bitwise_and"):
        gg.bitwise_and(gg.tensor(1.0), gg.tensor(2.0))


# Scalars and dtypes


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SMOOTH)
def test_a_python_number_as_one_argument(name: str, side: str) -> None:
    op = OPS[name]
    domains = op.samples[0].domains
    number = [sum(d) / 2 or 0.7 for d in domains][side == "right"]
    low, high = domains[side == "left"]
    x = gg.tensor(np.random.default_rng(0).uniform(low, high, (3, 2)), requires_grad=True)
    f = (lambda x: op.function(number, x)) if side == "left" else (lambda x: op.function(x, number))
    gradcheck(f, x)
    gradgradcheck(f, x)
    arguments = (number, x.detach().numpy()) if side == "left" else (x.detach().numpy(), number)
    np.testing.assert_array_equal(
        f(x).detach().numpy(), op.function(*map(gg.tensor, map(np.float64, arguments))).numpy()
    )


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float32", "int64", "float32"),
        ("float32", "bool", "float32"),
        ("float16", "int64", "float16"),
        ("bfloat16", "int32", "bfloat16"),
        ("float16", "float32", "float32"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "float16", "float32"),
        ("int32", "int64", "int64"),
        ("bool", "int64", "int64"),
        ("uint8", "int8", "int16"),
    ],
)
def test_promotion(x: str, y: str, expected: str) -> None:
    for a, b in ((x, y), (y, x)):
        out = gg.tensor([1.0, 2.0]).astype(a) + gg.tensor([1.0, 2.0]).astype(b)
        assert out.dtype == backend.as_dtype(expected)


FLOAT32_PARTNERS: dict[str, Any] = {
    "python-int": 2,
    "python-float": 0.5,
    "bool": True,
    "numpy-float64-scalar": np.float64(0.5),
    "numpy-float32-scalar": np.float32(0.5),
    "numpy-int64-scalar": np.int64(2),
    "list": [0.5],
    "int64-tensor": gg.tensor([2], device="cpu"),
    "int64-array": np.array([2]),
    "float32-array": np.array([0.5], np.float32),
}


@pytest.mark.parametrize("partner", FLOAT32_PARTNERS)
@pytest.mark.parametrize("name", SMOOTH)
def test_float32_never_becomes_float64(name: str, partner: str) -> None:
    value = FLOAT32_PARTNERS[partner]
    for swap in (False, True):
        x = gg.tensor([0.75, 1.5], requires_grad=True)
        args = (value, x) if swap else (x, value)
        out = OPS[name].function(*args)
        assert out.dtype == gg.float32
        (g,) = gg.grad(out.sum(), [x])
        assert g.dtype == gg.float32
        (recorded,) = gg.grad(OPS[name].function(*args).sum(), [x], create_graph=True)
        assert recorded.dtype == gg.float32


def test_each_argument_gets_its_gradient_in_its_own_dtype() -> None:
    x = gg.tensor([1.0, 2.0], gg.float16, requires_grad=True)
    y = gg.tensor([3.0, 4.0], gg.float32, requires_grad=True)
    out = x * y
    assert out.dtype == gg.float32
    out.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (gg.float16, gg.float32)


def test_integers_divide_as_float32() -> None:
    x = gg.tensor([1, 2]) / gg.tensor([2, 4])
    assert x.dtype == gg.float32
    assert x.tolist() == [0.5, 0.5]
    assert (gg.tensor([7]) // 2).tolist() == [3]
    assert (gg.tensor([-7]) % 3).tolist() == [2]


# Operators


@pytest.mark.parametrize(
    ("symbol", "f"),
    [
        ("+", lambda x, y: x + y),
        ("-", lambda x, y: x - y),
        ("*", lambda x, y: x * y),
        ("/", lambda x, y: x / y),
        ("**", lambda x, y: x**y),
        ("//", lambda x, y: x // y),
        ("%", lambda x, y: x % y),
        ("<", lambda x, y: x < y),
        ("<=", lambda x, y: x <= y),
        (">", lambda x, y: x > y),
        (">=", lambda x, y: x >= y),
        ("==", lambda x, y: x == y),
        ("!=", lambda x, y: x != y),
    ],
)
def test_operators_with_tensors_numbers_and_arrays(symbol: str, f: Callable[..., Any]) -> None:
    a, b = np.array([1.0, 2.0, 3.5]), np.array([2.0, 2.0, 0.5])
    expected = f(a, b)
    for x, y in itertools.product((a, gg.tensor(a)), (b, gg.tensor(b))):
        if isinstance(x, gg.Tensor) or isinstance(y, gg.Tensor):
            out = f(x, y)
            assert isinstance(out, gg.Tensor)
            np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(f(gg.tensor(a), 2.0).numpy(), f(a, 2.0))
    np.testing.assert_array_equal(f(2.0, gg.tensor(a)).numpy(), f(2.0, a))


@pytest.mark.parametrize(
    "data", [2.0, 2, [1.0, 2.0], np.array([1.0, 2.0]), np.float32(2.0)], ids=repr
)
def test_functions_take_numbers_lists_and_arrays(data: Any) -> None:
    for name, f in (("exp", np.exp), ("square", np.square), ("sum", np.sum)):
        out = OPS[name].function(data)
        assert isinstance(out, gg.Tensor)
        np.testing.assert_allclose(out.numpy(), f(np.asarray(data)), rtol=1e-6)
        assert out.dtype != gg.float64 or isinstance(data, np.ndarray)


@pytest.mark.parametrize("exponent", [2, 0.5, -1, 2.0, -1.0, 3, 4, 3.0, 1.5])
def test_powers_with_a_shortcut(exponent: float) -> None:
    x = gg.tensor([0.5, 1.0, 2.5], gg.float64, requires_grad=True)
    np.testing.assert_array_equal(gg.pow(x, exponent).detach(), (x**exponent).detach())
    np.testing.assert_allclose((x**exponent).detach().numpy(), x.detach().numpy() ** exponent)
    gradcheck(lambda x: x**exponent, x)
    gradgradcheck(lambda x: x**exponent, x)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("dtype", [gg.int64, gg.int8, gg.bool])
def test_integers_to_the_power_of_a_float_are_floats(dtype: Any, exponent: float) -> None:
    out = gg.tensor([0, 1], dtype=dtype) ** exponent
    assert out.dtype == gg.float32
    assert out.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16])
@pytest.mark.parametrize("name", ["cube", "sigmoid", "softplus", "logaddexp"])
def test_half_precision_is_rounded_once(name: str, dtype: Any) -> None:
    x = np.random.default_rng(0).uniform(-4, 4, (2, 1000)).astype(dtype)
    f, exact = {
        "cube": (lambda x, y: x**3, lambda x, y: x**3),
        "sigmoid": (lambda x, y: gg.sigmoid(x), lambda x, y: 1 / (1 + np.exp(-x))),
        "softplus": (lambda x, y: gg.softplus(x), lambda x, y: np.log1p(np.exp(x))),
        "logaddexp": (gg.logaddexp, np.logaddexp),
    }[name]
    out = f(*map(gg.tensor, x))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.numpy(), exact(*x.astype(np.float64)).astype(dtype))


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64])
def test_logaddexp_and_softplus_err_by_two_last_places(dtype: Any) -> None:
    x = np.random.default_rng(1).normal(0, 30, (2, 5000)).astype(dtype)
    wide = x.astype(np.longdouble)
    for out, exact, larger in (
        (gg.logaddexp(*map(gg.tensor, x)), np.logaddexp(*wide), wide.max(axis=0)),
        (gg.softplus(gg.tensor(x[0])), np.logaddexp(wide[0], 0), 0),
    ):
        scale = np.maximum(np.abs(exact), np.abs(larger))
        assert (np.abs(out.numpy() - exact) / np.spacing(scale.astype(dtype))).max() <= 2


def test_numpy_functions_on_tensors_are_recorded() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = np.exp(x)
    assert isinstance(y, gg.Tensor)
    np.add(y, 1.0).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.exp([1.0, 2.0]), rtol=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_shapes_that_do_not_fit_are_named(name: str) -> None:
    x, y = gg.ones(3, 4, dtype=gg.int64), gg.ones(5, dtype=gg.int64)
    with pytest.raises(ValueError, match=rf"^{name}: .*x: .*\[3, 4\].*y: .*\[5\]"):
        OPS[name].function(x, y)
    if name in SMOOTH:
        with pytest.raises(ValueError, match=rf"^{name}: .*x: float32\[3, 4\], y: float32\[5\]"):
            OPS[name].function(gg.ones(3, 4), gg.ones(5))


def test_a_value_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="add: argument 'y'"):
        gg.add(gg.ones(2), object())
    with pytest.raises(TypeError, match=r"add: argument 'y'.*complex"):
        gg.add(gg.ones(2), np.array([1j, 2j]))
