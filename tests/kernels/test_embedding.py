"""The CUDA kernels of embedding in the emulator, through the operation."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.fused import FUSED, embedding

DTYPES = ["float32", "bfloat16", "float16"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def table(rows, features, seed=0):
    weight = np.random.default_rng(seed).standard_normal((rows, features))
    return gg.Tensor(weight, requires_grad=True)


def text(count, rows, seed=1):
    """Return ids of which the small ones occur often, as in text."""
    return (rows * np.random.default_rng(seed).random(count) ** 4).astype(np.int64)


def results(ids, weight, dtype, padding_idx=None, upstream=None):
    """Return the rows and the gradient of the table, as arrays."""
    w = gg.Tensor(weight.data.astype(dtype), requires_grad=True)
    out = embedding(ids, w, padding_idx)
    if upstream is None:
        upstream = np.cos(np.arange(out.size)).reshape(out.shape).astype(dtype)
    return out.data, gg.grad(out, w, gg.Tensor(upstream))[0].data


def check(ids, weight, dtype, padding_idx=None, settings=emulator.SWEEP):
    def spec(w):
        return FUSED["embedding"].spec(gg.Tensor(ids), w, padding_idx=padding_idx)

    before = FUSED["embedding"].launches["cuda"]
    with emulator.enabled():
        testing.assert_implements(lambda w: embedding(ids, w, padding_idx), spec, [weight], dtype)
    assert FUSED["embedding"].launches["cuda"] == before + 1
    return emulator.sweep(lambda: results(ids, weight, dtype, padding_idx), settings)


# one id; less than a chunk; chunks that end in the middle; packs and none; several tiles of columns
@dtypes
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize(
    ("shape", "rows", "features"),
    [((), 2, 3), ((7,), 1, 1), ((3, 5), 4, 16), ((32,), 3, 7), ((100,), 5, 264), ((131,), 50, 33)],
    ids=str,
)
def test_obeys_the_tolerance_rule(shape, rows, features, padding_idx, dtype):
    check(text(shape, rows), table(rows, features), dtype, padding_idx)


@pytest.mark.parametrize(
    "lengths",
    [
        [32, 32, 32],  # every segment is a chunk
        [31, 33, 32],
        [33, 31, 32, 1],
        [1, 62, 1, 64, 1],
        [16, 32, 16, 64],
        [5, 300, 3],
        [700],
        [1] * 70,
    ],
    ids=str,
)
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_every_way_an_id_meets_the_chunks(lengths, padding_idx):
    ids = np.repeat(np.arange(len(lengths)), lengths)
    np.random.default_rng(4).shuffle(ids)
    if len(lengths) == 1:
        padding_idx = padding_idx and 0
    # numbers whose sums are exact in any order
    upstream = np.random.default_rng(5).integers(-8, 9, (len(ids), 5)).astype(np.float32)
    weight = table(len(lengths) + 1, 5)
    _, g = emulator.sweep(lambda: results(ids, weight, "float32", padding_idx, upstream))
    expected = np.zeros_like(g)
    np.add.at(expected, ids, upstream)
    if padding_idx is not None:
        expected[padding_idx] = 0
    np.testing.assert_array_equal(g, expected)


@pytest.mark.parametrize("features", [2, 4])
def test_many_ids(features):
    check(text(70_000, 3000), table(3000, features), "float32", settings=())


def test_one_id_everywhere():
    ids, weight = np.zeros(20_000, np.int64), table(2, 8)
    check(ids, weight, "float32", settings=())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_in_float32(dtype):
    weight = gg.Tensor(np.zeros((2, 8)).astype(dtype), requires_grad=True)
    with emulator.enabled():
        out = embedding(np.zeros(4096, int), weight)
        (g,) = gg.grad(out, weight, gg.ones_like(out))
    np.testing.assert_array_equal(g.data, [[4096] * 8, [0] * 8])  # float16 itself stops at 2048


def test_infinite_and_missing_values_stay_in_their_rows():
    weight = table(4, 8)
    weight.data[1, 2], weight.data[2, 3] = np.inf, np.nan
    ids = text(100, 4)
    upstream = np.ones((100, 8), np.float32)
    upstream[np.flatnonzero(ids == 3)[0], 5] = np.nan
    out, g = emulator.sweep(lambda: results(ids, weight, "float32", upstream=upstream))
    np.testing.assert_array_equal(out, weight.data.astype(np.float32)[ids])
    assert np.argwhere(np.isnan(g)).tolist() == [[3, 5]]


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    ids, weight = text((20, 6), 5), table(5, 8).data.astype(np.float32)
    upstream = np.random.default_rng(3).standard_normal((20, 6, 8)).astype(np.float32)
    found = []
    for name in ("contiguous", layout):
        i, w, g = (dict(testing.layouts(a))[name] for a in (ids, weight, upstream))
        with emulator.enabled("checked"):
            found.append([a.tobytes() for a in results(i, gg.Tensor(w), "float32", upstream=g)])
    assert found[0] == found[1]


@dtypes
def test_arrays_that_begin_anywhere(dtype):
    memory = np.random.default_rng(6).standard_normal(1 + 6 * 16).astype(dtype)
    ids, g = text(40, 6), np.random.default_rng(7).standard_normal(1 + 40 * 16).astype(dtype)
    found = []
    for copy in (False, True):
        w, u = memory[1:].reshape(6, 16), g[1:].reshape(40, 16)
        given = gg.Tensor(w.copy() if copy else w, requires_grad=True)
        with emulator.enabled("checked"):
            out = embedding(ids, given)
            (grad,) = gg.grad(out, given, gg.Tensor(u.copy() if copy else u))
        found.append([out.data.tobytes(), grad.data.tobytes()])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint64"])
def test_ids_of_any_integer_dtype(dtype):
    ids, weight = text((3, 40), 7), table(7, 4)
    with emulator.enabled("checked"):
        expected = results(ids, weight, "float32")
        found = results(ids.astype(dtype), weight, "float32")
    for a, b in zip(expected, found, strict=True):
        assert a.tobytes() == b.tobytes()


def test_what_the_kernels_do_not_know_takes_another_way():
    before = FUSED["embedding"].launches["cuda"]
    with emulator.enabled():
        embedding([1, 0], table(2, 3))  # float64
        embedding(np.zeros((2, 0), int), gg.zeros(2, 3))
    assert FUSED["embedding"].launches["cuda"] == before
