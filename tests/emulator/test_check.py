"""``check`` on files of a user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpugrad import cuda, emulator

RACY = """#include "helper.cuh"
extern "C" __global__ void smooth(const float* x, float* out, int n) {
    __shared__ float tile[256];
    const int i = threadIdx.x;
    tile[i] = x[i];
    // a __syncthreads() is missing here
    out[i] = middle(tile[i], tile[(i + 1) % n]);
}
"""
HELPER = "#pragma once\n__device__ float middle(float a, float b) { return 0.5f * (a + b); }\n"


@pytest.fixture
def smooth(tmp_path: Path) -> Path:
    (tmp_path / "helper.cuh").write_text(HELPER)
    path = tmp_path / "my.cu"
    path.write_text(RACY)
    return path


def test_a_race_is_caught(smooth: Path) -> None:
    x = np.ones(256, np.float32)
    with pytest.raises(emulator.Race) as caught:
        emulator.check(smooth, grid=(1,), block=(256,), args=(x, emulator.empty(256), 256))
    message = str(caught.value)
    assert message.startswith("data race in kernel 'smooth' at my.cu:5, block (0, 0, 0), thread")
    assert "shared 'tile', bytes" in message
    assert "the other access: my.cu:7, the same block, thread" in message


def test_a_helper_is_reported_with_its_caller(smooth: Path) -> None:
    (smooth.parent / "helper.cuh").write_text(
        "__device__ __forceinline__ float middle(const float& a, const float& b) {\n"
        "    return 0.5f * (a + b);\n}\n"
    )
    with pytest.raises(emulator.Race, match=r"helper\.cuh:2 called from my\.cu:7"):
        emulator.check(
            smooth, grid=(1,), block=(256,), args=(np.ones(256, "f"), emulator.empty(256), 256)
        )


def test_the_repaired_kernel_passes(smooth: Path) -> None:
    smooth.write_text(RACY.replace("// a __syncthreads() is missing here", "__syncthreads();"))
    x = np.arange(256, dtype=np.float32)
    out = np.zeros(256, np.float32)
    after = emulator.check(smooth, "smooth", grid=(1,), block=(256,), args=(x, out, 256))
    np.testing.assert_array_equal(after[1], (x + np.roll(x, -1)) / 2)
    assert (out == 0).all(), "the caller's arrays stay as they are"


def test_results_that_depend_on_the_order(tmp_path: Path) -> None:
    path = tmp_path / "order.cu"
    path.write_text(
        'extern "C" __global__ void k(int* n, int* out) { out[threadIdx.x] = atomicAdd(n, 1); }'
    )
    args = (np.zeros(1, np.int32), np.zeros(8, np.int32))
    with pytest.raises(emulator.OrderDependent, match="element 0 of 'out' is 0 in one run and 7"):
        emulator.check(path, grid=(1,), block=(8,), args=args)
    emulator.check(path, grid=(1,), block=(8,), args=args, bitwise=False)


def test_one_argument_passed_twice_stays_one_array(tmp_path: Path) -> None:
    path = tmp_path / "twice.cu"
    path.write_text(
        'extern "C" __global__ void k(const float* x, float* out) {\n'
        "    out[threadIdx.x] = x[threadIdx.x] + 1;\n}\n"
    )
    x = np.zeros(4, np.float32)
    after = emulator.check(path, grid=(1,), block=(4,), args=(x, x))
    assert after[0] is after[1]
    assert (after[0] == 1).all()


def test_several_kernels_need_a_name(tmp_path: Path) -> None:
    path = tmp_path / "two.cu"
    path.write_text('extern "C" __global__ void a() {}\nextern "C" __global__ void b() {}\n')
    with pytest.raises(ValueError, match=r"two\.cu has several kernels: kernel= one of a, b"):
        emulator.check(path, grid=(1,), block=(1,), args=())
    emulator.check(path, "b", grid=(1,), block=(1,), args=())


def test_an_array_just_behind_another(tmp_path: Path) -> None:
    """Copies are padded: a step beyond one array never lands in the next."""
    path = tmp_path / "far.cu"
    path.write_text(
        'extern "C" __global__ void k(const float* x, float* out, int step) {\n'
        "    out[0] = x[step];\n}\n"
    )
    memory = np.zeros(16, np.float32)
    args = (memory[:8], memory[8:], 8)
    with pytest.raises(emulator.OutOfBounds, match="array 'x', bytes 32 to 35 of 32"):
        emulator.check(path, grid=(1,), block=(1,), args=args)


def test_results_go_into_the_next_check(tmp_path: Path) -> None:
    """What a kernel wrote into an array from ``empty`` is known to be written, the rest not."""
    path = tmp_path / "double.cu"
    path.write_text(
        'extern "C" __global__ void k(const float* x, float* out, int n) {\n'
        "    if (threadIdx.x < n) out[threadIdx.x] = 2 * x[threadIdx.x];\n}\n"
    )
    x = np.arange(8, dtype=np.float32)
    first = emulator.check(path, grid=(1,), block=(8,), args=(x, emulator.empty(8), 6))[1]
    second = emulator.check(path, grid=(1,), block=(8,), args=(first, emulator.empty(8), 6))[1]
    np.testing.assert_array_equal(second[:6], 4 * x[:6])
    with pytest.raises(emulator.Uninitialised, match="array 'x', bytes 24 to 27 of 32"):
        emulator.check(path, grid=(1,), block=(8,), args=(first, emulator.empty(8), 7))


COPY = """extern "C" __global__ void copy(const float* x, float* out) {
    out[threadIdx.x] = x[threadIdx.x] + 1;
}
"""


def test_views_that_overlap_still_do():
    b = np.arange(64, dtype=np.float32)
    with pytest.raises(emulator.Race, match="data race in kernel 'copy'"):
        emulator.check(COPY, grid=(1,), block=(63,), args=(b[1:], b[:63]))
    assert (b == np.arange(64)).all()


def test_one_memory_in_two_shapes_stays_one_memory():
    b = np.zeros((8, 8), np.float32)
    x, out = emulator.check(COPY, grid=(1,), block=(64,), args=(b.reshape(-1), b))
    assert (x == 1).all()
    assert (out == 1).all()
    assert (x.shape, out.shape) == ((64,), (8, 8))
    assert not b.any()


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_copies_are_aligned_as_in_the_array_they_are_of(offset):
    text = """extern "C" __global__ void k(const float* x, float* out) {
        out[0] = reinterpret_cast<const float4*>(x)->w;
    }"""
    args = (np.arange(257, dtype=np.float32)[offset:], np.zeros(1, np.float32))
    if offset == 1:
        with pytest.raises(emulator.Misaligned):
            emulator.check(text, grid=(1,), block=(1,), args=args)
    else:
        assert emulator.check(text, grid=(1,), block=(1,), args=args)[1] == offset + 3


def test_views_of_empty_arrays_are_unwritten():
    whole, out = emulator.empty(128), np.zeros(64, np.float32)
    with pytest.raises(emulator.Uninitialised, match="array 'x', bytes 0 to 3 of 256"):
        emulator.check(COPY, grid=(1,), block=(64,), args=(whole[:64], out))
    written = emulator.check(COPY, grid=(1,), block=(32,), args=(out, whole[64:]))[1]
    emulator.check(COPY, grid=(1,), block=(32,), args=(written, out))
    with pytest.raises(emulator.Uninitialised, match="array 'x', bytes 128 to 131 of 256"):
        emulator.check(COPY, grid=(1,), block=(33,), args=(written, out))


@pytest.mark.parametrize("read_only", [False, True])
def test_strided_arrays_are_copied_too(read_only):
    text = """extern "C" __global__ void k(float* x, int stride, int n) {
        if (threadIdx.x < n) x[threadIdx.x * stride] = atomicAdd(x + 1, 1.0f);
    }"""
    base = np.zeros((8, 4), np.float32)
    base.flags.writeable = not read_only
    column = cuda.strided(base[:, 0])
    if read_only:
        with pytest.raises(emulator.ReadOnly):
            emulator.check(text, grid=(1,), block=(8,), args=(column, 4, 8))
    else:
        with pytest.raises(emulator.OrderDependent, match="element 0 of 'x' is 0"):
            emulator.check(text, grid=(1,), block=(8,), args=(column, 4, 8))
        found, *_ = emulator.check(text, grid=(1,), block=(8,), args=(column, 4, 8), bitwise=False)
        np.testing.assert_array_equal(found.array, np.arange(8))
        with pytest.raises(emulator.OutOfBounds, match="array 'x', bytes 128 to 131 of 128"):
            emulator.check(text, grid=(1,), block=(9,), args=(column, 4, 9))
    assert not base.any()


def test_the_source_itself_may_be_given():
    text = 'extern "C" __global__ void one(float* x) { x[threadIdx.x] = 1.0f; }'
    (x,) = emulator.check(text, grid=(1,), block=(4,), args=[emulator.empty(4)])
    assert (x == 1).all()
