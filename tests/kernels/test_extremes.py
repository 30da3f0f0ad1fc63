"""The CUDA kernel in the emulator: no fault, the same bits in any order, and what NumPy finds."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import backend, emulator
from gpugrad.cuda import extremes

FLOATS = [backend.float32, backend.bfloat16, backend.float16, backend.float64]


def by_kernel(x: np.ndarray) -> extremes.Extremes:
    def run() -> np.ndarray:
        row = np.zeros(extremes.ROW, np.uint64)
        extremes.queue(x, row)
        return row

    return extremes.read(emulator.sweep(run))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1, 31, 1023])
def test_finds_what_numpy_finds(dtype, n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=n).astype(dtype)
    assert by_kernel(x) == extremes.of_numpy(x)
    for value in (np.nan, np.inf, -np.inf, -np.nan):
        x[rng.integers(n, size=1 + n // 500)] = value
    found = by_kernel(x)
    assert found == extremes.of_numpy(x)
    assert found.nan + found.infinite == (~np.isfinite(x.astype(float))).sum()
    assert found.first == np.flatnonzero(~np.isfinite(x.astype(float)))[0]


def test_more_elements_than_threads():
    x = np.ones(140_001, np.float32)
    x[[140_000, 135_000]] = np.inf, np.nan
    row = np.zeros(extremes.ROW, np.uint64)
    with emulator.enabled("plain"):
        extremes.queue(x, row)
    assert extremes.read(row) == extremes.Extremes(1, 1, 0, 135_000, 1.0, 1.0)


def test_a_thread_with_two_bad_elements_names_the_first():
    stride = extremes._BLOCKS * extremes._THREADS
    x = np.ones(stride + 101, np.float32)
    x[[100, 100 + stride]] = np.nan
    row = np.zeros(extremes.ROW, np.uint64)
    with emulator.enabled("plain"):
        extremes.queue(x, row)
    assert extremes.read(row) == extremes.Extremes(2, 0, 0, 100, 1.0, 1.0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_ends_of_the_range(dtype):
    limits = np.array([0, -0.0, 1], dtype)
    limits = np.concatenate([limits, np.nextafter(limits[:1], limits[2:]), -limits[2:]])
    for x in (limits, limits[3:4], -limits[3:4], limits[:1], np.full(5, np.nan, dtype)):
        assert by_kernel(x) == extremes.of_numpy(x)
    assert by_kernel(limits[3:4]).low > 0  # a denormal is no zero


def test_any_layout_and_nothing_at_all():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x[1, 2] = np.inf
    for view in (x, x.T, x[:, ::2], x[::-1]):
        assert by_kernel(view) == extremes.of_numpy(np.ascontiguousarray(view))
    row = np.zeros(extremes.ROW, np.uint64)
    extremes.queue(x[:0], row)
    assert extremes.read(row) == extremes.Extremes(0, 0, 0, None, None, None)
