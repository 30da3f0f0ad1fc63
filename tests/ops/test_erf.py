"""erf: accuracy against 40-digit and standard library values, special values, layouts."""

from __future__ import annotations

import math
import sys
from decimal import Decimal, localcontext
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from gpugrad.ops.erf import BLOCK, erf

bfloat16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float16), bfloat16, np.dtype(np.float32), np.dtype(np.float64)]
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def erf_to_40_digits(value: float) -> Decimal:
    """2 / sqrt(pi) exp(-x^2) (x + 2 x^3 / 3 + 4 x^5 / 15 + ...): no term cancels another."""
    with localcontext() as context:
        context.prec = 45
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097")
        x = Decimal(value)
        term = total = x
        k = 1
        while abs(term) > abs(total) * Decimal("1e-42"):
            k += 2
            term *= 2 * x * x / k
            total += term
        return 2 / pi.sqrt() * (-x * x).exp() * total


def test_the_reference_agrees_with_the_standard_library():
    for value in (1e-300, 0.3, -1.0, 2.5, 5.5):
        assert float(erf_to_40_digits(value)) == pytest.approx(math.erf(value), rel=3e-16)


def places(y: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|y - expected| in units of the last place of expected, rounded to y's dtype."""
    digits, smallest = {2: (11, -24), 4: (24, -149)}[y.itemsize]
    if y.dtype == bfloat16:
        digits, smallest = 8, -133
    exponent = np.frexp(expected)[1] - digits
    return np.abs(y.astype(np.float64) - expected) / np.exp2(np.maximum(exponent, smallest))


def test_float64_within_one_and_a_half_places():
    r = np.random.default_rng(0)
    x = np.concatenate(
        [
            r.uniform(-6.1, 6.1, 700),
            r.uniform(0.9, 1.1, 400),  # where the two formulas meet
            10 ** r.uniform(-15, 0, 100),
            [1.0, -1.0, np.nextafter(1, 0), np.nextafter(1, 2), 5.9, 6.0],
        ]
    )
    for value, result in zip(x.tolist(), erf(x).tolist(), strict=True):
        exact = erf_to_40_digits(value)
        assert abs(Decimal(result) - exact) <= Decimal(1.5 * math.ulp(float(exact))), value


def test_float64_against_the_standard_library():
    x = np.random.default_rng(1).uniform(-6.5, 6.5, 200_001)
    expected = np.array([math.erf(value) for value in x.tolist()])
    assert (np.abs(erf(x) - expected) <= 2.5 * np.spacing(np.abs(expected))).all()


def test_float32_is_rounded_almost_correctly():
    x = np.random.default_rng(2).uniform(-4.2, 4.2, 200_001).astype(np.float32)
    expected = np.array([math.erf(value) for value in x.tolist()])
    assert places(erf(x), expected).max() <= 0.6


def test_float32_over_the_whole_range_of_bit_patterns():
    infinity = int(np.float32(np.inf).view(np.int32))
    x = np.arange(0, infinity, 4093, dtype=np.int32).view(np.float32)
    y = erf(x)
    assert places(y, erf(x.astype(np.float64))).max() <= 0.6
    assert (np.diff(y) >= 0).all()
    assert y[-1] == 1


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
def test_every_16_bit_number(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    wide = np.array([float(value) for value in x])
    quiet = ~np.isnan(wide)
    y = erf(x[quiet])
    assert y.dtype == dtype
    expected = np.array([math.erf(value) for value in wide[quiet].tolist()])
    assert places(y, expected).max() <= 0.501


@each_dtype
def test_special_values(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -3e4], dtype=dtype)
    with np.errstate(all="raise"):
        y = erf(x)
    assert y.dtype == dtype
    assert [float(value) for value in y[1:]] == [1, -1, 0, 0, 1, -1]
    assert np.isnan(float(y[0]))
    assert np.signbit(y.astype(np.float64)).tolist()[3:5] == [False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_and_denormal_numbers(dtype):
    limits = np.finfo(dtype)
    tiny = np.arange(1, 2000, dtype=dtype) * limits.smallest_subnormal
    y = erf(np.concatenate([tiny, -tiny, [limits.max, -limits.max]]).astype(dtype))
    expected = tiny.astype(np.longdouble) * (2 / np.sqrt(np.pi))
    assert (np.abs(y[: len(tiny)] - expected) <= limits.smallest_subnormal).all()
    np.testing.assert_array_equal(y[len(tiny) : -2], -y[: len(tiny)])
    assert y[-2:].tolist() == [1, -1]


@each_dtype
def test_odd_and_never_beyond_one(dtype):
    x = (3 * np.random.default_rng(3).normal(size=100_003)).astype(dtype)
    y = erf(x)
    np.testing.assert_array_equal(erf(-x), -y)
    assert np.abs(y.astype(np.float64)).max() == 1


@each_dtype
@pytest.mark.parametrize("size", [0, 1, 2, 7, 1023, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_each_element_is_independent_of_its_place(dtype, size):
    x = np.random.default_rng(4).normal(size=size + 1).astype(dtype)
    np.testing.assert_array_equal(erf(x[1:]), erf(x)[1:])
    np.testing.assert_array_equal(erf(x)[-1:], erf(x[-1:]))


LAYOUTS = {
    "scalar": lambda x: x[0, 0, 0, ...],
    "transposed": lambda x: x.T,
    "negative-strides": lambda x: x[::-1, ::-2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "empty": lambda x: x[:0],
}


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(dtype, layout):
    base = np.random.default_rng(5).normal(size=(3, 5, 7)).astype(dtype)
    x = layout(base.copy())
    y = erf(x)
    assert isinstance(y, np.ndarray)
    assert y.shape == x.shape
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, layout(erf(base)))


@each_dtype
def test_the_input_is_left_alone_and_out_may_be_the_input(dtype):
    x = np.random.default_rng(6).normal(size=(2, BLOCK + 3)).astype(dtype)
    kept = x.copy()
    y = erf(x)
    np.testing.assert_array_equal(x, kept)
    out = np.empty_like(x)
    assert erf(x, out=out) is out
    np.testing.assert_array_equal(out, y)
    assert erf(x, out=x) is x
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "out",
    [np.empty(4), np.empty(3, np.float32), np.empty(6)[::2]],
    ids=["shape", "dtype", "strided"],
)
def test_an_out_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match=r"erf: out must be C-contiguous with shape \(3,\)"):
        erf(np.zeros(3), out=out)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128", "longdouble"])
def test_other_dtypes_are_refused(dtype):
    x = np.ones(2, dtype)
    with pytest.raises(TypeError, match=f"erf: x must be .*, got {x.dtype}"):
        erf(x)


@each_dtype
def test_another_array_library_brings_its_own_erf(dtype, monkeypatch):
    """Cupy's stands in cupyx.scipy.special; it has no bfloat16, so 16 bits go by way of 32."""
    seen = []

    def library_erf(x):
        seen.append(x.dtype)
        return erf(x)

    library = ModuleType("library")
    library.__dict__.update(np.__dict__)
    special = ModuleType("cupyx.scipy.special")
    special.erf = library_erf
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", special)
    x = np.random.default_rng(7).normal(size=(3, 4)).astype(dtype)
    y = erf(x, library)
    assert seen == [dtype if dtype.itemsize >= 4 else np.float32]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, erf(x))
