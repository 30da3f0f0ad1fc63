"""Embedding: every kind of ids, duplicates summed, padding, and ids that are refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.backend import as_dtype
from gpugrad.fused import FUSED, embedding

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [
    ((), 2, 3),
    ((7,), 1, 1),
    ((3, 5), 4, 17),
    ((2, 0), 3, 2),
    ((1023,), 5, 7),
    ((50,), 997, 1),
]
SHAPES += [((4,), 3, 0)]


def table(rows, features, seed=0):
    weight = np.random.default_rng(seed).standard_normal((rows, features))
    return gg.Tensor(weight, requires_grad=True)


def drawn(shape, rows, seed=1):
    """Return ids of which the small ones occur often, as in text."""
    return (rows * np.random.default_rng(seed).random(shape) ** 4).astype(np.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize(("shape", "rows", "features"), SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, rows, features, padding_idx, dtype, launching):
    ids, weight = drawn(shape, rows), table(rows, features)

    def fast(w):
        return embedding(ids, w, padding_idx)

    def spec(w):
        return FUSED["embedding"].spec(gg.Tensor(ids), w, padding_idx=padding_idx)

    with launching("embedding"):
        out = fast(weight.astype(dtype))
    assert out.shape == (*shape, features)
    scale = 1e3 if dtype == "float64" else 0.0  # the float64 spec is its own reference
    testing.assert_implements(fast, spec, [weight], dtype, scale=scale)


def test_rows_and_summed_gradients_by_hand():
    weight = gg.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], requires_grad=True)
    out = embedding([2, 0, 2, 2, 0, 1], weight)
    np.testing.assert_array_equal(out.data, [[5, 6], [1, 2], [5, 6], [5, 6], [1, 2], [3, 4]])
    out.backward(
        gg.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0], [8.0, 0.0], [16.0, 0.0], [32.0, 0.0]])
    )
    np.testing.assert_array_equal(weight.grad.data, [[18, 0], [32, 0], [13, 1], [0, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_has_the_same_bits_every_time(dtype):
    ids, weight = (
        drawn((2000,), 61),
        gg.Tensor(table(61, 33).data.astype(dtype), requires_grad=True),
    )
    upstream = gg.Tensor(table(2000, 33, seed=2).data.astype(dtype))
    first, again = (gg.grad(embedding(ids, weight), weight, upstream)[0].data for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_reduced_precision_sums_in_float32():
    weight = gg.Tensor(np.zeros((2, 1), np.float16), requires_grad=True)
    out = embedding(np.zeros(4096, int), weight)
    out.backward(gg.Tensor(np.ones((4096, 1), np.float16)))  # float16 itself stops at 2048
    assert weight.grad.data[0, 0] == 4096


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [40, 65_536, 65_537])
def test_each_gradient_is_the_sum_in_the_order_of_the_ids(rows, dtype):
    ids = drawn((600,), 40, seed=3) * ((rows - 1) // 39)
    weight = gg.Tensor(np.zeros((rows, 3), as_dtype(dtype)), requires_grad=True)
    upstream = table(600, 3, seed=4).data.astype(weight.dtype)
    embedding(ids, weight).backward(gg.Tensor(upstream))
    expected = np.zeros(weight.shape, np.float64 if dtype == "float64" else np.float32)
    np.add.at(expected, ids, upstream)  # one after the other
    np.testing.assert_array_equal(weight.grad.data, expected.astype(weight.dtype))


def test_two_uses_of_one_table_add_up():
    weight = table(5, 3)
    (embedding([0, 1], weight) * embedding([1, 1], weight)).sum().backward()
    w = weight.data
    expected = np.zeros_like(w)
    expected[0], expected[1] = w[1], w[0] + 2 * w[1]
    np.testing.assert_allclose(weight.grad.data, expected, rtol=1e-14)


@pytest.mark.parametrize("padding_idx", [2, -2])
def test_the_padding_row_gets_no_gradient(padding_idx):
    ids, weight = np.array([2, 0, 2, 3]), table(4, 3)
    out = embedding(ids, weight, padding_idx)
    np.testing.assert_array_equal(out.data, weight.data[ids])
    for create_graph in (False, True):
        again = embedding(ids, weight, padding_idx)
        (g,) = gg.grad(again, weight, gg.ones_like(out), create_graph=create_graph)
        np.testing.assert_array_equal(g.data[:, 0], [1, 0, 0, 1])


def test_derivatives_of_every_order():
    ids, weight = drawn((4,), 3), table(3, 2)
    testing.gradcheck(functools.partial(embedding, ids), [weight])
    testing.gradgradcheck(lambda w: embedding(ids, w) ** 3, [weight])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int32", "uint32", "uint64"])
def test_ids_of_any_integer_dtype(dtype):
    ids, weight = drawn((3, 4), 7), table(7, 2)
    a, b = (embedding(i, weight) for i in (ids, ids.astype(dtype)))
    np.testing.assert_array_equal(a.data, b.data)
    upstream = gg.ones_like(a)
    a, b = (gg.grad(out, weight, upstream)[0].data for out in (a, b))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    ids, weight = drawn((20, 6), 5), table(5, 7).data
    upstream = np.random.default_rng(3).standard_normal((20, 6, 7))
    results = []
    for name in ("contiguous", layout):
        w = gg.Tensor(dict(testing.layouts(weight))[name], requires_grad=True)
        out = embedding(dict(testing.layouts(ids))[name], w)
        out.backward(gg.Tensor(dict(testing.layouts(upstream))[name]))
        results.append(out.data.tobytes() + w.grad.data.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("bad", [-1, 5, 50257, -(2**40)])
@pytest.mark.parametrize(
    ("position", "text"),
    [((0, 0), r"ids\[0, 0\]"), ((1, 2), r"ids\[1, 2\]")],
    ids=["first", "last"],
)
def test_an_id_out_of_range_is_refused_with_its_position(position, text, bad):
    ids = np.ones((2, 3), np.int64)
    ids[position] = bad
    with pytest.raises(IndexError, match=rf"embedding: {text} is {bad}, .* 5: .* \[0, 5\)"):
        embedding(ids, table(5, 2))


def test_an_id_out_of_range_without_dimensions():
    with pytest.raises(IndexError, match="embedding: ids is 5, but the number of rows"):
        embedding(5, table(5, 2))


@pytest.mark.parametrize(
    ("ids", "weight", "padding_idx", "error", "message"),
    [
        ([0.0, 1.0], np.ones((2, 2)), None, TypeError, r"integer ids, got float32\[2\]"),
        ([True], np.ones((2, 2)), None, TypeError, r"integer ids, got bool\[1\]"),
        ([0], np.ones(2), None, ValueError, r"weight must be \(rows, features\), got float64\[2\]"),
        ([0], np.ones((2, 2)), 2, IndexError, "padding_idx 2 names none of 2 rows"),
        ([0], np.ones((2, 2)), -3, IndexError, "padding_idx -3 names none of 2 rows"),
    ],
)
def test_bad_arguments(ids, weight, padding_idx, error, message):
    with pytest.raises(error, match=f"embedding: .*{message}"):
        embedding(ids, weight, padding_idx)
