"""The CUDA kernels in the emulator: no fault, the same bits in any order, float32 accumulation."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import backend, cuda, emulator, testing
from gpugrad.cuda import column_sums as module
from gpugrad.cuda.column_sums import add_partial, column_sums
from gpugrad.ops import linalg

FLOATS = [backend.float32, backend.bfloat16, backend.float16]


def _matrix(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    rng = np.random.default_rng(rows * columns)
    return rng.normal(0.5, 1, (rows, columns)).astype(dtype)


def _assert_sums(found: np.ndarray, x: np.ndarray) -> None:
    exact = x.astype(np.float64).sum(0)
    plain = x.sum(0, dtype=np.float32).astype(found.dtype)
    scale = float(np.abs(x.astype(np.float64)).sum(0).max())
    testing.assert_close(found, exact, plain, scale=scale, name="the sums")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 1023), (3, 5), (300, 64), (1031, 7), (70, 257), (37, 520), (2050, 16)],
    ids=str,
)
def test_adds_up_the_rows(shape, dtype):
    x = _matrix(*shape, dtype)
    for out in {backend.float32, dtype}:
        found = emulator.sweep(lambda out=out: column_sums(x, out))
        assert found.dtype == out
        _assert_sums(found, x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_rows_of_every_width(dtype):
    for columns in (1, 2, 3, 8, 9, 33, 64):
        x = _matrix(1500, columns, dtype)
        with emulator.enabled("plain"):
            _assert_sums(column_sums(x, backend.float32), x)


def test_more_rows_than_a_grid_has_in_y():
    x = np.ones((200_003, 3), backend.bfloat16)
    with emulator.enabled("plain"):
        assert column_sums(x, backend.float32).tolist() == [200_003] * 3


def test_few_rows_take_one_launch_and_many_two():
    before = cuda.launches.copy()
    with emulator.enabled("plain"):
        column_sums(_matrix(20, 300, backend.float32), backend.float32)
        assert cuda.launches - before == {"column_sums": 1}
        column_sums(_matrix(200, 300, backend.float32), backend.float32)
    assert cuda.launches - before == {"column_sums": 2, "column_sums_total": 1}


def _sums_of_stripes(x: np.ndarray, stripes: int) -> np.ndarray:
    partial = cuda.empty((stripes, x.shape[1]), backend.float32, like=x)
    args = (x, partial, None, *x.shape, 16)
    module.SOURCE.launch("column_sums", (1, stripes), (256,), args, GPUGRAD_DTYPE=0)
    return add_partial(partial, backend.float32)


@pytest.mark.parametrize("stripes", [2, 7, 20])
def test_stripes_of_unequal_length_and_without_rows(stripes):
    x = _matrix(11, 40, backend.float32)
    _assert_sums(emulator.sweep(lambda: _sums_of_stripes(x, stripes)), x)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided", "unaligned"])
def test_memory_layout_does_not_change_a_bit(layout):
    x = _matrix(50, 48, backend.float32)
    if layout == "unaligned":
        other = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
        other[...] = x
        assert other.ctypes.data % 16
    else:
        other = dict(testing.layouts(x))[layout]
    with emulator.enabled("checked"):
        expected, found = column_sums(x, x.dtype), column_sums(other, x.dtype)
    assert found.tobytes() == expected.tobytes()


def test_large_sums_of_narrow_numbers_are_exact_in_float32():
    x = np.full((3000, 9), 60000, np.float16)
    x[::2] = -60000
    x[0] = 1
    with emulator.enabled("checked"):
        assert (column_sums(x, x.dtype) == np.float16(60001)).all()
        assert (column_sums(np.abs(x), x.dtype) == np.inf).all()


def test_nan_and_infinity_stay_in_their_column():
    x = _matrix(100, 24, backend.float32)
    x[50, 3], x[99, 9], x[0, 17] = np.nan, np.inf, -np.inf
    with emulator.enabled("checked"):
        found = column_sums(x, x.dtype)
    assert np.isnan(found[3])
    assert found[9] == np.inf
    assert found[17] == -np.inf
    assert np.isfinite(np.delete(found, [3, 9, 17])).all()


@pytest.mark.parametrize(
    ("dtype", "rows", "launched"), [("float32", 3, 1), ("float64", 3, 0), ("float32", 0, 0)]
)
def test_adds_up_the_bias_gradient_of_linear_on_a_gpu(dtype, rows, launched):
    class OtherThanNumpy:
        sum = np.sum

    g = np.ones((rows, 5), dtype)
    before = cuda.launches["column_sums"]
    with emulator.enabled("checked"):
        found = linalg._sum_of_rows(g, OtherThanNumpy)
    assert cuda.launches["column_sums"] == before + launched
    assert found.dtype == dtype
    assert found.tolist() == [rows] * 5


def test_what_no_kernel_adds_up_is_refused():
    with emulator.enabled("plain"), pytest.raises(TypeError, match="not float64"):
        column_sums(np.ones((2, 2)), np.dtype(float))
    with pytest.raises(RuntimeError, match="emulator is off"):
        column_sums(np.ones((2, 2), np.float32), backend.float32)
