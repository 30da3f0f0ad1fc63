"""The CUDA kernels of embedding in the emulator, through the operation."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.cuda import launches
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
    [
        *[((), 2, 3), ((7,), 1, 1), ((3, 5), 4, 16), ((32,), 3, 7), ((100,), 5, 264)],
        *[((131,), 50, 33), ((8,), 9, 600)],  # two warps for each row
    ],
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


@pytest.mark.parametrize(("rows", "features"), [(3000, 2), (3000, 4), (70_001, 1)])
def test_many_ids(rows, features):
    check(text(70_000, rows), table(rows, features), "float32", settings=())


def test_one_id_everywhere():
    ids, weight = np.zeros(20_000, np.int64), table(2, 8)
    check(ids, weight, "float32", settings=())


def gradient(ids, upstream, rows):
    """Return the gradient of the table by NumPy, exact for small whole numbers."""
    found = np.zeros((rows, upstream.shape[1]), np.float32)
    np.add.at(found, ids, upstream.astype(np.float32))
    return found


def whole(count, features, seed=5):
    return np.random.default_rng(seed).integers(-8, 9, (count, features)).astype(np.float32)


@pytest.mark.parametrize("kind", ["equal", "ascending", "descending", "last rows", "first rows"])
@pytest.mark.parametrize(("rows", "features"), [(997, 1), (997, 40)])
def test_rows_that_no_id_names_are_zero(kind, rows, features):
    """In tables of several digits, where the ids lie in one place or everywhere."""
    ids = {
        "equal": np.full(130, 501),
        "ascending": np.arange(0, 997, 3),
        "descending": np.arange(996, -1, -2),
        "last rows": np.array([996, 995, 996]),
        "first rows": np.array([0, 1, 0, 33]),
    }[kind]
    upstream, weight = whole(len(ids), features), table(rows, features)
    _, g = emulator.sweep(
        lambda: results(ids, weight, "float32", upstream=upstream), emulator.SWEEP[:2]
    )
    np.testing.assert_array_equal(g, gradient(ids, upstream, rows))


def test_few_ids_of_a_large_table():
    ids, upstream = np.array([65_535, 3, 69_999, 65_536, 3]), whole(5, 2)
    weight = gg.zeros(70_000, 2)
    with emulator.enabled("plain"):
        _, g = results(ids, weight, "float32", upstream=upstream)
    np.testing.assert_array_equal(g, gradient(ids, upstream, 70_000))


@pytest.mark.parametrize("count", [1, 7])
def test_a_table_of_one_row(count):
    upstream = whole(count, 3)
    ids = np.zeros(count, np.int64)
    _, g = emulator.sweep(lambda: results(ids, table(1, 3), "float32", upstream=upstream))
    np.testing.assert_array_equal(g, upstream.sum(0, keepdims=True))


@pytest.mark.parametrize(
    ("count", "rows", "kernels"),
    [
        (32, 1000, {"sort_ids_block": 1, "embedding_backward": 1}),
        (33, 1000, {"sort_ids_block": 1, "embedding_backward": 1, "embedding_join": 1}),
        (
            5000,
            1000,
            {
                "sort_ids_count": 1,
                "sort_ids_place": 2,
                "embedding_backward": 1,
                "embedding_join": 1,
            },
        ),
    ],
)
def test_launches_of_a_gradient(count, rows, kernels):
    before = launches.copy()
    with emulator.enabled("plain"):
        results(text(count, rows), table(rows, 2), "float32")
    assert launches - before == {"embedding_forward": 1, **kernels}


@pytest.mark.parametrize(("count", "rows"), [(50, 9), (4500, 300)])
def test_a_recorded_gradient_has_the_same_bits_for_other_ids(count, rows):
    weight = table(rows, 3).data.astype(np.float32)

    def run(ids, w):
        out = embedding(ids, w)
        return out, gg.grad(out * out, w, gg.ones_like(out))[0]

    w = gg.Tensor(weight, requires_grad=True)
    compiled = gg.compile(lambda ids: run(ids, w))
    with emulator.enabled("plain"):
        for seed in range(3):
            ids = gg.Tensor(text(count, rows, seed))
            for a, b in zip(run(ids, w), compiled(ids), strict=True):
                assert a.data.tobytes() == b.data.tobytes()
        ids.data[5] = rows
        assert np.isnan(compiled(ids)[0].data).any(1).tolist() == [i == 5 for i in range(count)]
    assert compiled.recordings == 1


# ids that nobody checked: on a GPU they are not looked at


@dtypes
@pytest.mark.parametrize("features", [3, 16])
@pytest.mark.parametrize("bad", [7, -1, 2**31 - 1, -(2**31), 2**40, -(2**63)])
def test_an_id_out_of_range_gives_a_row_of_nan_and_no_gradient(bad, features, dtype):
    wide = not -(2**31) <= bad < 2**31
    ids = text(70, 7).astype("int64" if wide else "int32")
    ids[::9] = bad
    implementation = FUSED["embedding"].implementations["cuda"]
    weight, upstream = table(7, features).data.astype(dtype), whole(70, features).astype(dtype)
    upstream[ids == bad] = np.nan

    def run():
        out, kept = implementation.forward(ids, weight, padding_idx=None)
        arrays = ids, weight
        return out, *implementation.backward((False, True), upstream, arrays, kept, None)[1:]

    out, g = emulator.sweep(run, emulator.SWEEP[:3])
    good = ids != bad
    np.testing.assert_array_equal(out[good], weight[ids[good]])
    assert np.isnan(out[~good].astype(np.float32)).all()
    np.testing.assert_array_equal(g, gradient(ids[good], upstream[good], 7).astype(dtype))


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_the_definition_says_the_same_of_ids_out_of_range(padding_idx):
    weight, ids = table(3, 2), np.array([2, 3, -1, 0, 1, 2])
    known = gg.Tensor(np.where((ids < 0) | (ids > 2), 0, ids))
    out = FUSED["embedding"].spec(gg.Tensor(ids), weight, padding_idx=padding_idx)
    expected = FUSED["embedding"].spec(known, weight, padding_idx=padding_idx).data.copy()
    expected[1:3] = np.nan
    np.testing.assert_array_equal(out.data, expected)
    upstream = whole(6, 2).astype(np.float64)
    (g,) = gg.grad(out, weight, gg.Tensor(upstream))
    counted = [0, 3, 5] if padding_idx == 1 else [0, 3, 4, 5]
    np.testing.assert_array_equal(g.data, gradient(ids[counted], upstream[counted], 3))


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
