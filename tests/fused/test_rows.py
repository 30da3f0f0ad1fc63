"""Rows in blocks: every row once, sums over rows whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.fused import _rows


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (15, 7), (16, 7), (1000, 7), (3, 99999)])
@pytest.mark.parametrize("block", [1, 100, 65536])
def test_blocks_cover_every_row_once(block, shape, monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", block)
    rows = np.empty(shape)
    parts = list(_rows.row_blocks(rows))
    covered = [i for part in parts for i in range(part.start, part.stop)]
    assert covered == (list(range(shape[0])) if rows.size else [])
    assert all(part.start % _rows.CHUNK == 0 for part in parts)
    assert len(_rows.scratch(rows, np.float32)) == max((p.stop - p.start for p in parts), default=0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_column_sums(count):
    rows = np.random.default_rng(0).integers(-9, 9, (count, 5)).astype(np.float64)
    sums = _rows.ColumnSums(rows, rows.dtype)
    for part in _rows.row_blocks(rows):
        sums.add(rows[part], part)
    np.testing.assert_array_equal(sums.total(rows.dtype), rows.sum(0))


def test_column_sums_of_many_rows_stay_exact():
    rows = np.full((1 << 18, 1), 1.1, np.float32)
    sums = _rows.ColumnSums(rows, rows.dtype)
    for part in _rows.row_blocks(rows):
        sums.add(rows[part], part)
    exact = float(rows[0, 0]) * len(rows)
    running = np.add.accumulate(rows[:, 0])[-1]
    assert abs(sums.total(rows.dtype)[0] - exact) < 0.1 * abs(running - exact)


def test_contiguous_rows_are_a_view():
    x = np.zeros((2, 3, 4))
    assert np.shares_memory(_rows.as_rows(x), x)
    assert _rows.as_rows(x.T).shape == (12, 2)
