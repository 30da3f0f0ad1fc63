"""Rows in blocks: every row once, sums over rows whatever the blocks, one rounding at the end."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import threads
from gpugrad.fused import _rows
from gpugrad.nn import functional as F


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (15, 7), (16, 7), (1000, 7), (3, 99999)])
@pytest.mark.parametrize("block", [1, 100, 32768])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_cover_every_row_once(count, block, shape, monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", block)
    monkeypatch.setattr(_rows, "ALONE", block)
    rows, parts = np.empty(shape), []
    with threads.num_threads(count):
        _rows.for_blocks(rows, parts.append)
    parts.sort(key=lambda part: part.start)
    covered = [i for part in parts for i in range(part.start, part.stop)]
    assert covered == (list(range(shape[0])) if rows.size else [])
    assert all(part.start % _rows.CHUNK == 0 for part in parts)
    largest = max((part.stop - part.start for part in parts), default=0)
    assert largest <= max(block / max(shape[1], 1) + _rows.CHUNK, _rows.CHUNK)


@pytest.mark.parametrize(
    ("shape", "lengths"), [((512, 128), [512]), ((768, 128), [384] * 2), ((3072, 128), [768] * 4)]
)
def test_two_threads_have_equal_shares(shape, lengths):
    found = []
    _rows.for_blocks(np.empty(shape), found.append)
    assert [part.stop - part.start for part in found] == lengths


@pytest.mark.parametrize(("rows", "alone"), [(768, True), (2048, True), (2064, False)])
def test_a_single_pair_of_light_blocks_wakes_no_thread(rows, alone, monkeypatch):
    woken, found, ask = [], [], threads._Pool.ask

    def noted(pool, helpers, job):
        woken.append(helpers)
        ask(pool, helpers, job)

    monkeypatch.setattr(threads._Pool, "ask", noted)
    with threads.num_threads(2):
        _rows.for_blocks(np.empty((rows, 128)), found.append, light=True)
    assert bool(woken) is not alone
    assert sum(part.stop - part.start for part in found) == rows
    assert len(found) == (2 if alone else 4)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_column_sums(count):
    rows = np.random.default_rng(0).integers(-9, 9, (count, 5)).astype(np.float64)
    sums = _rows.ColumnSums(rows, rows.dtype)
    _rows.for_blocks(rows, lambda part: sums.add(rows[part], part))
    np.testing.assert_array_equal(sums.total(rows.dtype), rows.sum(0))


def test_column_sums_of_many_rows_stay_exact():
    rows = np.full((1 << 18, 1), 1.1, np.float32)
    sums = _rows.ColumnSums(rows, rows.dtype)
    _rows.for_blocks(rows, lambda part: sums.add(rows[part], part))
    exact = float(rows[0, 0]) * len(rows)
    running = np.add.accumulate(rows[:, 0])[-1]
    assert abs(sums.total(rows.dtype)[0] - exact) < 0.1 * abs(running - exact)


def test_contiguous_rows_are_a_view():
    x = np.zeros((2, 3, 4))
    assert np.shares_memory(_rows.as_rows(x), x)
    assert _rows.as_rows(x.T).shape == (12, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, weight, _: F.rms_norm(x, (37,), weight), id="rms_norm"),
        pytest.param(lambda x, *affine: F.layer_norm(x, (37,), *affine), id="layer_norm"),
        pytest.param(lambda x, *_: F.softmax(x, -1), id="softmax"),
        pytest.param(lambda x, *_: F.log_softmax(x, -1), id="log_softmax"),
        pytest.param(lambda x, *_: F.gelu(x), id="gelu"),
        pytest.param(lambda x, *_: F.gelu(x, approximate="tanh"), id="gelu-tanh"),
    ],
)
def test_reduced_precision_is_rounded_once(function, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((40, 37), (37,), (37,))]
    g = np.cos(np.arange(40 * 37)).reshape(40, 37).astype(dtype)

    def results(made):
        inputs = [gg.Tensor(a, made, requires_grad=True) for a in arrays]
        out = function(*inputs)
        out.backward(gg.Tensor(g, made))
        return [t.data.astype(dtype) for t in (out, *(x.grad for x in inputs)) if t is not None]

    for reduced, wide in zip(results(dtype), results("float32"), strict=True):
        np.testing.assert_array_equal(reduced, wide)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_views_are_found_and_copies_made_without_another(dtype):
    x = np.ones((64, 32, 16, 8), dtype)
    turned = x.swapaxes(1, 2)
    assert np.shares_memory(_rows.reshaped(turned, (8, 8, 16, 32, 8)), x)
    tracemalloc.start()
    try:
        made = _rows.reshaped(turned, (64, 512 * 8), np.float32)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(made, turned.reshape(64, -1), strict=dtype is np.float32)
    assert most < made.nbytes + 2**14
