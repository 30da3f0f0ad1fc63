"""Rotary positions: values by formula, offsets, shapes, dtypes, layouts, errors."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import FUSED, rotary

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(1, 2), (3, 8), (0, 4), (5, 0), (2, 7, 6), (2, 3, 17, 10), (2, 1, 3, 4, 2), (0, 2, 3, 4)]


def tables(length, half):
    """Return the cosines and sines of angles position / 100^(i / half)."""
    angles = np.arange(length)[:, None] * 100.0 ** (-np.arange(half) / max(half, 1))
    return gg.Tensor(np.cos(angles)), gg.Tensor(np.sin(angles))


def drawn(shape, seed=0):
    rng = np.random.default_rng(seed)
    return gg.Tensor(rng.standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("start", [0, 3])
def test_values_by_complex_numbers(start):
    x = drawn((2, 5, 6)).data
    cos, sin = tables(9, 3)
    turned = (x[..., :3] + 1j * x[..., 3:]) * (cos.data + 1j * sin.data)[start : start + 5]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotary(x, cos, sin, start).data, expected, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, start, dtype, check):
    inputs = [drawn(shape), *tables(shape[-2] + 3, shape[-1] // 2)]
    check("rotary", rotary, inputs, dtype, start=start)


def test_float32_has_the_bits_of_the_plain_operations():
    x, cos, sin = (t.astype("float32").detach() for t in (drawn((3, 4, 9, 10)), *tables(9, 5)))
    plain = FUSED["rotary"].spec(x, cos, sin, start=0)
    np.testing.assert_array_equal(rotary(x, cos, sin).data, plain.data)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_is_rounded_once(dtype):
    x, cos, sin = (t.detach().astype(dtype) for t in (drawn((50, 8)), *tables(50, 4)))
    wide = rotary(*(t.astype("float32") for t in (x, cos, sin)))
    np.testing.assert_array_equal(rotary(x, cos, sin).data, wide.data.astype(dtype))


def test_the_gradient_turns_back():
    x, (cos, sin) = drawn((2, 5, 6)), tables(5, 3)
    out = rotary(x, cos, sin)
    (g,) = gg.grad(out, x, out.detach())
    np.testing.assert_allclose(g.data, x.data, rtol=0, atol=1e-15)


def test_derivatives_of_every_order():
    x, (cos, sin) = drawn((3, 4)), tables(4, 2)
    testing.gradcheck(lambda x: rotary(x, cos, sin, 1), x)
    testing.gradgradcheck(lambda x: rotary(x, cos, sin, 1) ** 3, x)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    x, upstream = drawn((2, 3, 5, 6)).data, drawn((2, 3, 5, 6), 1).data
    arrays = [t.data for t in tables(5, 3)]
    results = []
    for name in ("contiguous", layout):
        args = [gg.Tensor(dict(testing.layouts(a))[name]) for a in arrays]
        t = gg.Tensor(dict(testing.layouts(x))[name], requires_grad=True)
        out = rotary(t, *args)
        out.backward(gg.Tensor(dict(testing.layouts(upstream))[name]))
        results.append(out.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


def test_missing_and_infinite_values_stay_in_their_pairs():
    x = np.ones((2, 6), np.float32)
    x[0, 1], x[0, 2], x[1, 5] = np.nan, np.inf, np.inf  # at 0 an infinity is times 0
    out = rotary(x, *(t.astype("float32") for t in tables(2, 3))).data
    assert np.argwhere(~np.isfinite(out)).tolist() == [
        [0, 1],
        [0, 2],
        [0, 4],
        [0, 5],
        [1, 2],
        [1, 5],
    ]


@pytest.mark.parametrize(
    ("shape", "table", "start", "message"),
    [
        ((4,), (4, 2), 0, r"x must be \(\.\.\., T, D\) with D even, got float64\[4\]"),
        ((2, 3), (4, 1), 0, r"D even, got float64\[2, 3\]"),
        ((2, 4), (4, 3), 0, r"alike and \(length, 2\), got float64\[4, 3\]"),
        ((2, 4), (4,), 0, r"alike and \(length, 2\)"),
        ((2, 4), (4, 2), 3, "positions 3 to 4 are not all among the 4"),
        ((2, 4), (4, 2), -1, "positions -1 to 0 are not all among the 4"),
        ((5, 4), (4, 2), 0, "positions 0 to 4 are not all among the 4"),
    ],
)
def test_bad_arguments(shape, table, start, message):
    cos = np.ones(table)
    with pytest.raises(ValueError, match=f"rotary: .*{message}"):
        rotary(np.ones(shape), cos, cos, start)


def test_tables_must_be_alike_and_constant():
    x, table = np.ones((2, 4)), np.ones((2, 2))
    with pytest.raises(ValueError, match=r"alike .* got float64\[2, 2\] and float64\[3, 2\]"):
        rotary(x, table, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"alike .* got float64\[2, 2\] and float32\[2, 2\]"):
        rotary(x, table, table.astype(np.float32))
    with pytest.raises(ValueError, match="get no gradient"):
        rotary(x, gg.Tensor(table, requires_grad=True), table)


def test_integers_become_float32():
    run = functools.partial(rotary, [[1, 0]])
    assert run(gg.ones(1, 1), gg.ones(1, 1)).dtype == gg.float32
