"""Launches: what they refuse, what they cast, which device they choose, what they count."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.cuda import kernel
from gpugrad.cuda.arguments import MAX_SHARED

TEXT = """
#include "common.cuh"
extern "C" __global__ void scale(const T* x, T* out, int n, float factor, int64_t step) {
    const int64_t i = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) * step;
    if (i < n) out[i] = from_float(factor * to_float(x[i]));
}
extern "C" __global__ void add_rows(float* const* rows, float* out, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; i++) sum += rows[i][threadIdx.x];
    out[threadIdx.x] = sum;
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cuda.Source:
    monkeypatch.setattr(kernel, "SOURCES", {})
    header = Path(__file__).parents[2] / "kernels" / "common.cuh"
    (tmp_path / "common.cuh").write_text(header.read_text())
    (tmp_path / "own.cu").write_text(TEXT)
    return cuda.Source(tmp_path / "own.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1)))


def run(source: cuda.Source, x: np.ndarray, factor: object = 2, **more: object) -> np.ndarray:
    out = cuda.empty(x.shape, x.dtype, like=x)
    args = (x, out, x.size, factor, 1)
    defines = {"GPUGRAD_DTYPE": cuda.dtype_code(x.dtype)} | more
    source.launch("scale", (-(-x.size // 32),), (32,), args, **defines)
    return out


@pytest.mark.parametrize("mode", ["plain", "checked"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_launch(source, mode, dtype):
    x = np.arange(70).astype(dtype)
    before = cuda.launches["scale"]
    with emulator.enabled(mode):
        np.testing.assert_array_equal(run(source, x), 2 * x)
        np.testing.assert_array_equal(run(source, x, 0.5), dtype(0.5) * x)
    assert cuda.launches["scale"] == before + 2


def test_not_without_the_emulator(source, monkeypatch):
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)
    with pytest.raises(RuntimeError, match="kernel 'scale' got numpy arrays while the emulator is"):
        run(source, np.ones(3, np.float32))
    monkeypatch.setenv("GPUGRAD_EMULATE", "plain")
    run(source, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="its arrays are on no device"):
        source.launch("scale", (1,), (32,), (None, None, 0, 1.0, 1))


ONES = np.ones(6, np.float32)


@pytest.mark.parametrize(
    ("grid", "block", "args", "shared", "error", "words"),
    [
        ((0,), (32,), None, 0, ValueError, r"grid \(0,\) is not possible"),
        ((1, 65536), (32,), None, 0, ValueError, r"grid \(1, 65536\) is not possible"),
        ((1,), (1025,), None, 0, ValueError, r"block \(1025,\) is not possible"),
        ((1,), (32, 1, 65), None, 0, ValueError, r"block \(32, 1, 65\) is not possible"),
        ((1,), (32,), None, MAX_SHARED + 1, ValueError, "bytes of dynamic shared memory"),
        ((1,), (32,), (ONES[::2], ONES, 6, 1.0, 1), 0, ValueError, "'x'.*not C-contiguous"),
        ((1,), (32,), (ONES, ONES, 6, 1.0), 0, TypeError, "takes 5 arguments"),
        ((1,), (32,), (ONES, ONES, 6.0, 1.0, 1), 0, TypeError, "'n': int is needed, not float"),
        ((1,), (32,), (ONES, ONES, 2**31, 1.0, 1), 0, OverflowError, "'n': 2147483648 does not"),
        ((1,), (32,), (ONES, ONES, True, 1.0, 1), 0, TypeError, "'n': int is needed, not bool"),
        ((1,), (32,), (ONES.astype("d"), ONES, 6, 1.0, 1), 0, TypeError, "'x': float32 is needed"),
        ((1,), (32,), ([1.0], ONES, 6, 1.0, 1), 0, TypeError, "'x': an array or None is needed"),
    ],
)
def test_refusals(source, grid, block, args, shared, error, words):
    args = args or (ONES, ONES.copy(), 6, 1.0, 1)
    with emulator.enabled(), pytest.raises(error, match=words) as caught:
        source.launch("scale", grid, block, args, shared, GPUGRAD_DTYPE=0)
    assert "kernel 'scale'" in str(caught.value)
    assert "own.cu, arguments: " in str(caught.value)


def test_large_arrays_need_a_declaration(source):
    huge = np.broadcast_to(np.float32(1), (2**31,))
    args = (cuda.strided(huge), np.ones(1, np.float32), 1, 1.0, 1)
    with emulator.enabled(), pytest.raises(ValueError, match=r"indexes with 32 bits.*2147483648"):
        source.launch("scale", (1,), (32,), args, GPUGRAD_DTYPE=0)


def test_strided_arrays_are_checked_as_far_as_their_memory(source):
    x = np.arange(12, dtype=np.float32)
    out = np.zeros(6, np.float32)
    with emulator.enabled("checked"):
        args = (cuda.strided(x[2::2]), out, 6, 1.0, 2)
        source.launch("scale", (1,), (32,), args, GPUGRAD_DTYPE=0)
        np.testing.assert_array_equal(out, [2, 0, 4, 0, 6, 0])
        args = (cuda.strided(x[8::2]), out, 6, 1.0, 2)
        with pytest.raises(emulator.OutOfBounds, match=r"own\.cu, arguments: float32"):
            source.launch("scale", (1,), (32,), args, GPUGRAD_DTYPE=0)


def test_arrays_behind_addresses(source):
    rows = [np.full(4, i, np.float32) for i in range(3)]
    table = np.array([cuda.address(row) for row in rows], np.uint64)
    out = np.empty(4, np.float32)
    with emulator.enabled("checked"):
        source.launch("add_rows", (1,), (4,), (table, out, 3), reachable=rows)
        np.testing.assert_array_equal(out, [3, 3, 3, 3])
        with pytest.raises(emulator.Fault):
            source.launch("add_rows", (1,), (4,), (table, out, 3))


def test_an_output_is_uninitialised_until_written(source):
    x = np.ones(8, np.float32)
    with emulator.enabled("checked"):
        unwritten = cuda.empty(8, np.float32, like=x)
        with pytest.raises(emulator.Uninitialised, match="x"):
            source.launch("scale", (1,), (32,), (unwritten, x, 8, 1.0, 1), GPUGRAD_DTYPE=0)


def test_unknown_kernels_and_dtypes(source):
    with emulator.enabled(), pytest.raises(KeyError, match="has no kernel 'scales'"):
        source.launch("scales", (1,), (32,), (ONES,))
    with pytest.raises(KeyError, match="has no kernel 'scales'"):
        source.launch("scales", (1,), (32,), ())
    with pytest.raises(TypeError, match="compute with float32, bfloat16, float16, not float64"):
        cuda.dtype_code(np.dtype("float64"))
    assert cuda.fits(ONES, None, np.arange(3))
    assert not cuda.fits(ONES, ONES.astype(np.float16))
    assert not cuda.fits(ONES.astype("d"))


def test_variants():
    made = cuda.variants(A=(0, 1), B=("x",))
    assert made == ({"A": 0, "B": "x"}, {"A": 1, "B": "x"})


def test_sizes_may_be_numbers_and_tensors_are_named(source):
    x, out = np.ones(6, np.float32), np.zeros(6, np.float32)
    with emulator.enabled():
        source.launch("scale", 1, 32, (x, out, 6, 3.0, 1), GPUGRAD_DTYPE=0)
        assert (out == 3).all()
        with pytest.raises(TypeError, match=r"not Tensor; pass its \.data\n.*Tensor float32\[6\]"):
            source.launch("scale", 1, 32, (gg.tensor(x), out, 6, 3.0, 1), GPUGRAD_DTYPE=0)


@pytest.mark.parametrize(
    ("capability", "since", "expected"),
    [(90, 80, True), (75, 80, False), (75, 75, True), (70, 75, False)],
)
def test_a_gpu_too_old_for_a_kernel_does_without(capability, since, expected, monkeypatch):
    class Old:
        dtype = np.dtype("float32")
        device = type(
            "Device", (), {"id": 0, "compute_capability": str(capability), "__hash__": None}
        )()

    monkeypatch.setattr(kernel, "_capabilities", {})
    if capability < 80:
        told = "attention need 8.0, CuPy's operations take" if capability == 75 else "need 7.5, and"
        with pytest.warns(UserWarning, match=f"GPU 0 has .* {capability / 10}: gpugrad's .*{told}"):
            assert cuda.fits(Old(), since=since) == expected
    else:
        assert cuda.fits(Old(), since=since) == expected
