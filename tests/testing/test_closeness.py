"""The 2x/3x rule: what it lets through, and what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing import assert_close, assert_implements, tolerance

EXACT = np.array([1.0, 2.0, 4.0])
EPS = float(np.finfo(np.float32).eps)


def off(by: float) -> np.ndarray:
    """Return EXACT in float32 with one element moved by a number of units of 1."""
    return (EXACT + np.array([0.0, by, 0.0])).astype(np.float32)


def test_tolerance_is_twice_the_error_of_the_spec() -> None:
    spec = off(0.5)
    assert tolerance(EXACT, spec) == pytest.approx(1.0, abs=1e-5)
    assert tolerance(EXACT, spec, factor=3.0) == pytest.approx(1.5, abs=1e-5)


def test_the_floor_is_one_unit_in_the_last_place_of_the_largest() -> None:
    assert tolerance(EXACT, off(0.0)) == 4 * EPS
    assert tolerance(EXACT, off(0.0), scale=100.0) == 100 * EPS
    assert tolerance(EXACT, EXACT.astype(np.float16)) == 4 * float(np.finfo(np.float16).eps)
    assert tolerance(EXACT, gg.tensor(EXACT, gg.bfloat16)) == 4 * 2.0**-7
    assert tolerance(np.zeros(0), np.zeros(0, np.float32)) == 0.0


def test_close_enough() -> None:
    assert_close(off(0.9), EXACT, off(0.5))
    assert_close(off(-0.9), EXACT, off(0.5))
    assert_close(off(1.4), EXACT, off(0.5), factor=3.0)
    assert_close(gg.tensor(off(0.9)), gg.tensor(EXACT), gg.tensor(off(0.5)))


def test_too_far() -> None:
    with pytest.raises(AssertionError, match=r"dx at \[1\] is 3.25 in float32 but 2.0 in float64"):
        assert_close(off(1.25), EXACT, off(0.5), name="dx")
    with pytest.raises(AssertionError, match="1 of 3 values differ"):
        assert_close(off(1e-5), EXACT, off(0.0))


def test_an_error_of_many_behind_a_large_one_is_found() -> None:
    exact = np.array([1000.0, *[1.0] * 99])
    spec = exact.astype(np.float16)
    spec[0] += 1.0
    actual = spec.copy()
    actual[1:] += 0.5
    with pytest.raises(AssertionError, match=r"root mean square error in float16 is 0\.5"):
        assert_close(actual, exact, spec)


def test_shape_and_dtype_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"is float64\[3\] but should be float32\[3\]"):
        assert_close(EXACT, EXACT, off(0.0))
    with pytest.raises(AssertionError, match=r"is float32\[2\] but should be float32\[3\]"):
        assert_close(off(0.0)[:2], EXACT, off(0.0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300], ids=str)
def test_nan_and_infinity_must_be_in_the_same_places(value: float) -> None:
    exact = np.array([1.0, value])
    with np.errstate(over="ignore"):
        actual = exact.astype(np.float32)
    assert_close(actual, exact, actual)
    for wrong in (np.array([1.0, 2.0], np.float32), np.array([np.nan, value], np.float64)):
        with np.errstate(over="ignore"), pytest.raises(AssertionError, match="differ"):
            assert_close(wrong.astype(np.float32), exact, actual)
    with pytest.raises(AssertionError, match="differ"):
        assert_close(-actual if not np.isnan(value) else off(0.0)[:2], exact, actual)


def spec(x: gg.Tensor, y: gg.Tensor, power: int) -> tuple[gg.Tensor, gg.Tensor]:
    return (x * y) ** power, gg.exp(x)


def inputs() -> list[Any]:
    rng = np.random.default_rng(0)
    x, y = (gg.tensor(rng.standard_normal((5, 7)), requires_grad=True) for _ in range(2))
    return [x, y, 2]


DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])


@DTYPES
def test_an_equal_implementation_passes(dtype: str) -> None:
    assert_implements(spec, spec, inputs(), dtype)
    assert_implements(lambda x, y, n: (x**n * y**n, gg.exp(x)), spec, inputs(), dtype)


class Rough(gg.Function):
    """exp, whose result or gradient is off by a hundredth."""

    result = gradient = 1.0

    @classmethod
    def forward(cls, ctx: Any, x: gg.Tensor) -> gg.Tensor:
        out = gg.exp(x)
        ctx.save_for_backward(out)
        return out * cls.result

    @classmethod
    def backward(cls, ctx: Any, g: gg.Tensor) -> gg.Tensor:
        return g * ctx.saved_tensors[0] * cls.gradient


class RoughResult(Rough):
    result = 1.1


class RoughGradient(Rough):
    gradient = 1.1


@DTYPES
@pytest.mark.parametrize(
    ("rough", "message"), [(RoughResult, "output 1"), (RoughGradient, "the gradient of input 0")]
)
def test_a_rough_implementation_fails(dtype: str, rough: type[Rough], message: str) -> None:
    def f(x: gg.Tensor, y: gg.Tensor, power: int) -> tuple[gg.Tensor, gg.Tensor]:
        return (x * y) ** power, rough.apply(x)

    with pytest.raises(AssertionError, match=f"^f: {message}.* in {dtype} "):
        assert_implements(f, spec, inputs(), dtype)


def test_other_inputs_are_passed_on() -> None:
    def lookup(weight: gg.Tensor, ids: gg.Tensor, shift: gg.Tensor) -> gg.Tensor:
        assert (ids.dtype, shift.dtype, shift.requires_grad) == (gg.int64, weight.dtype, False)
        return weight[ids] + shift

    weight = gg.ones(5, 2, requires_grad=True)
    assert_implements(lookup, lookup, [weight, gg.tensor([1, 1]), gg.ones(2)], gg.float16)
    assert_implements(gg.exp, gg.exp, [gg.ones(2)])


def test_a_different_number_of_results_fails() -> None:
    with pytest.raises(AssertionError, match="do not return equally many"):
        assert_implements(lambda x, y, n: spec(x, y, n)[0], spec, inputs())
