"""Sorted ids by the kernels in the emulator: NumPy's stable order, without fault, in any order."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import launches
from gpugrad.fused import _sort_ids
from gpugrad.fused._sort_ids import as_ids, sorted_ids

LARGEST = 2**31 - 1


def expected(ids, rows, padding=-1):
    """Return the keys and positions that the kernels must give."""
    ids = ids.astype(object) if ids.dtype == np.uint64 else ids.astype(np.int64)
    outside = (ids < 0) | (ids >= rows)
    keys = np.where(outside, rows - 1, ids).astype(np.int64)
    order = keys.argsort(kind="stable")
    left_out = (outside | (ids == padding))[order]
    return keys[order], np.where(left_out, -1, order)


def check(ids, rows, padding=-1, settings=emulator.SWEEP):
    found = emulator.sweep(lambda: sorted_ids(as_ids(ids), rows, padding), settings)
    for a, b in zip(found, expected(ids.reshape(-1), rows, padding), strict=True):
        assert a.dtype == np.int32
        np.testing.assert_array_equal(a, b)


def drawn(count, rows, seed=0):
    return np.random.default_rng(seed).integers(0, rows, count)


@pytest.mark.parametrize("rows", [1, 2, 256, 257, 65537, LARGEST])
@pytest.mark.parametrize("count", [1, 31, 257, 1009])
def test_one_block_gives_the_stable_order(count, rows):
    before = launches["sort_ids_block"]
    check(drawn(count, rows), rows)
    assert launches["sort_ids_block"] == before + len(emulator.SWEEP)


# one full tile in one block; a part of a tile in each of several; several tiles in a block
@pytest.mark.parametrize(
    ("count", "rows", "most", "blocks"),
    [
        (4096, 300, 256, 1),
        (4099, 200, 256, 17),
        (4099, 70_000, 256, 17),
        (9001, 400, 2, 2),
        (4357, 2**17, 1, 1),
    ],
)
def test_several_blocks_give_the_stable_order(count, rows, most, blocks, monkeypatch):
    monkeypatch.setattr(_sort_ids, "_MOST_BLOCKS", most)
    grids, launch = set(), _sort_ids._launch

    def counted(kernel, grid, *args):
        grids.add(grid)
        launch(kernel, grid, *args)

    monkeypatch.setattr(_sort_ids, "_launch", counted)
    check(drawn(count, rows), rows, settings=emulator.SWEEP[1:4:2])
    assert grids == {blocks}


@pytest.mark.parametrize("count", [1000, 4500])
@pytest.mark.parametrize("kind", ["equal", "ascending", "descending", "last digit", "first digit"])
def test_orders_and_repetitions(kind, count):
    ids = {
        "equal": np.full(count, 777),
        "ascending": np.arange(count),
        "descending": np.arange(count)[::-1].copy(),
        "last digit": drawn(count, 256) + 256,
        "first digit": drawn(count, 18) * 256,
    }[kind]
    check(ids, 5000, settings=emulator.SWEEP[2:3])


def test_many_ids_of_a_large_vocabulary():
    before = launches.copy()
    check(drawn(70_001, 100_003), 100_003, settings=emulator.SWEEP[-1:])
    kernels = launches - before
    assert kernels == {"sort_ids_count": 1, "sort_ids_place": 3}


@pytest.mark.parametrize("count", [90, 4200])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_ids_out_of_range_and_the_padding_get_no_position(dtype, count):
    kind = np.iinfo(dtype)
    ids = drawn(count, 7).astype(dtype)
    ids[3::11], ids[4::17], ids[5::13] = 7, kind.max, kind.min
    check(ids.reshape(3, -1), 7, padding=5, settings=emulator.SWEEP[:1])
