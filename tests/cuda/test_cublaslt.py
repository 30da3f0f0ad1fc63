"""Matrix products of CuPy arrays through cublasLt's stand-in: what is set means the right thing."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
from typing import Any

import numpy as np
import pytest

from gpugrad import backend, cuda, testing
from gpugrad.cuda import cublaslt, gemm_plans
from gpugrad.cuda._gemm_problem import Matrix, Problem

FLOATS = (backend.float32, backend.bfloat16, backend.float16)
gemm = importlib.import_module("gpugrad.cuda.gemm")


def stored(rng: np.random.Generator, dtype: Any, shape: tuple, transposed: bool, gap: int) -> Any:
    """Return small integers in memory by rows or by columns, with gaps between them."""
    *batch, rows, columns = shape
    inner = (columns, rows) if transposed else (rows, columns)
    values = rng.integers(-4, 5, (*batch, inner[0], inner[1] + gap))
    x = values.astype(dtype)[..., : inner[1]]
    return x.swapaxes(-1, -2) if transposed else x


CASES = [
    pytest.param(*case, id="-".join(map(str, case)))
    for case in itertools.product(
        FLOATS, ((), (3,), (2, 3)), (False, True), (False, True), (0, 8), (0.0, 1.0)
    )
]


@pytest.mark.parametrize(("dtype", "batch", "a_turned", "b_turned", "gap", "beta"), CASES)
def test_every_layout(gpu, dtype, batch, a_turned, b_turned, gap, beta):
    gpu.lt.seconds = [1.0]
    rng = np.random.default_rng(0)
    a = stored(rng, dtype, (*batch, 5, 7), a_turned, gap)
    b = stored(rng, dtype, (*batch, 7, 3), b_turned, gap)
    for kind in {dtype, backend.float32}:
        out = stored(rng, kind, (*batch, 5, 3), False, gap)
        whole = out.base if gap else out
        before = whole.copy()
        exact = a.astype(float) @ b.astype(float) + beta * out.astype(float)
        cuda.gemm(*map(gpu.array, (a, b, out)), beta=beta)
        assert not gpu.lt.failures
        np.testing.assert_array_equal(out.astype(float), exact)
        np.testing.assert_array_equal(whole[..., 3:], before[..., 3:])  # the gap


@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_every_epilogue(gpu, dtype, a_turned, b_turned):
    gpu.lt.seconds = [1.0]
    rng = np.random.default_rng(0)
    a = (stored(rng, dtype, (5, 7), a_turned, 8) / 4).astype(dtype)
    b = (stored(rng, dtype, (7, 16), b_turned, 0) / 4).astype(dtype)
    on = gpu.array
    z = a.astype(np.float64) @ b.astype(np.float64)
    bias = rng.integers(-8, 9, 16).astype(dtype)
    shifted = z + bias.astype(np.float64)

    def check(found: Any, exact: np.ndarray) -> None:
        assert not gpu.lt.failures
        testing.assert_close(found, exact, exact.astype(dtype))

    for beta in (0.0, 1.0):
        out = rng.integers(-4, 5, (5, 16)).astype(dtype)
        exact = shifted + beta * out.astype(np.float64)
        cuda.gemm(on(a), on(b), on(out), epilogue="bias", bias=on(bias), beta=beta)
        check(out, exact)
    for given in (bias, None):
        # aux and out with gaps between their rows
        out, aux = (np.zeros((5, n), dtype)[:, :16] for n in (19, 24))
        shift = None if given is None else on(given)
        cuda.gemm(on(a), on(b), on(out), epilogue="gelu", bias=shift, aux=on(aux))
        before = z if given is None else shifted
        check(aux, before)
        check(out, _gelu(before))
    aux = rng.normal(0, 2, (5, 16)).astype(dtype)
    for epilogue in ("dgelu", "dgelu_bgrad"):
        out, sums = np.zeros((5, 16), dtype), np.zeros(16, dtype)
        given = {"bias": on(sums)} if epilogue == "dgelu_bgrad" else {}
        cuda.gemm(on(a), on(b), on(out), epilogue=epilogue, aux=on(aux), **given)
        check(out, z * _slope(aux))
        if given:
            check(sums, (z * _slope(aux)).sum(0))
    for beta in (0.0, 1.0):
        out, sums = np.ones((5, 16), dtype), np.zeros(5, dtype)
        cuda.gemm(on(a), on(b), on(out), epilogue="bgrad", bias=on(sums), beta=beta)
        check(out, z + beta)
        check(sums, a.astype(np.float64).sum(1))
    assert not cuda.launches["gemm_bias"] + cuda.launches["gemm_gelu"] + cuda.launches["gemm_dgelu"]


@pytest.fixture(autouse=True)
def _no_launches() -> None:
    cuda.launches.clear()


def _gelu(h: np.ndarray) -> np.ndarray:
    return h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2


def _slope(h: np.ndarray) -> np.ndarray:
    h, e = h.astype(np.float64), 1e-6
    return (_gelu(h + e) - _gelu(h - e)) / (2 * e)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_alpha(gpu, dtype):
    rng = np.random.default_rng(0)
    a, b = stored(rng, dtype, (4, 3), False, 0), stored(rng, dtype, (3, 8), False, 0)
    for beta in (0.0, 1.0):
        for alpha in (0.5, gpu.array(np.array(0.5, np.float32)), gpu.array(np.float32([0.5]))):
            out = np.full((4, 8), 2, dtype)
            cuda.gemm(*map(gpu.array, (a, b, out)), alpha=alpha, beta=beta)
            exact = 0.5 * (a.astype(float) @ b.astype(float)) + 2 * beta
            np.testing.assert_array_equal(out.astype(float), exact)


def test_alignment_is_told(gpu):
    """The stand-in refuses addresses that are aligned less than the search was told."""
    gpu.lt.seconds = [1.0]
    dtype = backend.bfloat16
    for shifts in itertools.product((0, 1, 2, 4), repeat=3):
        a, b, out = (at(shift, dtype, (8, 8)) for shift in shifts)
        a[...], b[...] = np.eye(8), np.arange(64).reshape(8, 8)
        cuda.gemm(*map(gpu.array, (a, b, out)))
        assert not gpu.lt.failures
        np.testing.assert_array_equal(out, b)
    problem = next(problem for _, problem in gemm_plans._plans if problem.a.alignment == 2)
    assert problem.b.alignment == problem.out.alignment == 16
    for shift in (0, 1, 4):  # a bias and an aux too
        aux, bias = at(shift, dtype, (8, 8)), at(shift, dtype, (8,))
        bias[...] = 1
        cuda.gemm(*map(gpu.array, (a, b, out)), epilogue="bias", bias=gpu.array(bias))
        np.testing.assert_array_equal(out, b + bias)
        if not shift:
            cuda.gemm(*map(gpu.array, (a, b, out)), epilogue="gelu", aux=gpu.array(aux))
            np.testing.assert_array_equal(aux, b)


def at(shift: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array that begins some elements after a multiple of 16 bytes."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 32, dtype)
    first = -memory.ctypes.data % 16 // memory.itemsize + shift
    return memory[first : first + size].reshape(shape)


def test_a_batch_with_one_b_is_a_taller_matrix(gpu):
    rng = np.random.default_rng(0)
    a, b = stored(rng, np.float32, (2, 3, 4, 5), False, 0), stored(rng, np.float32, (5, 6), True, 0)
    out = np.zeros((2, 3, 4, 6), np.float32)
    cuda.gemm(*map(gpu.array, (a, b, out)))
    np.testing.assert_array_equal(out, a @ b)
    (problem,) = {problem for _, problem in gemm_plans._plans}
    assert (problem.m, problem.batch) == (24, 1)


def test_axes_without_a_single_stride_take_several_calls(gpu):
    rng = np.random.default_rng(0)
    gpu.lt.seconds = [1.0]
    packed = stored(rng, np.float32, (2, 5, 3, 4), False, 0)  # (B, T, H, D)
    a, b = packed.transpose(0, 2, 1, 3), packed.transpose(0, 2, 3, 1)
    out = np.zeros((2, 3, 5, 5), np.float32)
    cuda.gemm(*map(gpu.array, (a, b, out)))
    np.testing.assert_array_equal(out, a @ b)
    assert len(gpu.lt.ran) == 2  # one for each element of B; the heads are a batch
    b = stored(rng, np.float32, (3, 4, 7), False, 0)  # the same for all of B
    out = np.zeros((2, 3, 5, 7), np.float32)
    cuda.gemm(gpu.array(a), gpu.array(b), gpu.array(out))
    np.testing.assert_array_equal(out, a @ b)


# Choosing an algorithm


def product(gpu, **how: Any) -> np.ndarray:
    a, b = np.ones((4, 8), np.float32), np.ones((8, 8), np.float32)
    out = np.zeros((4, 8), np.float32)
    cuda.gemm(*map(gpu.array, (a, b, out)), **how)
    assert (out == 8).all()
    return out


def test_the_fastest_algorithm_is_timed_once_and_remembered(gpu, tmp_path):
    product(gpu)
    assert [number for number, _ in gpu.lt.ran] == [*range(3)] * 6 + [1]  # interleaved
    gpu.lt.ran.clear()
    product(gpu)
    assert [number for number, _ in gpu.lt.ran] == [1]
    gpu.restart()  # another process
    product(gpu)
    assert [number for number, _ in gpu.lt.ran] == [1]
    (path,) = (tmp_path / "gemm").glob("*.json")
    entry = json.loads(path.read_bytes().partition(b"\n")[2][32:])
    assert entry["device"] == "stand-in"
    assert entry["milliseconds"] == [3000, 1000, 2000]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_made_anew(gpu, tmp_path, damage):
    product(gpu)
    (path,) = (tmp_path / "gemm").glob("*.json")
    good = path.read_bytes()
    if damage == "foreign":  # whole, but of an algorithm that this library does not know
        cache = importlib.import_module("gpugrad.cuda.cache")
        body = {"algorithm": (b"\1" * 64).hex()}
        cache.write(path, gemm_plans._MAGIC, json.dumps(body).encode())
    else:
        flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
        path.write_bytes({"cut": good[:-5], "flipped": flipped, "empty": b""}[damage])
    gpu.restart()
    product(gpu)
    assert len(gpu.lt.ran) == 19
    assert path.read_bytes() == good


def test_other_versions_choose_for_themselves(gpu, tmp_path, monkeypatch):
    product(gpu)
    gpu.restart()
    gpu.lt.version += 1
    other = cublaslt.Library(gpu.lt, "stand-in")
    monkeypatch.setattr(gemm_plans, "library", lambda: other)
    product(gpu)
    assert len(gpu.lt.ran) == 19
    assert len([*(tmp_path / "gemm").glob("*.json")]) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path / "file"))
    product(gpu)
    assert gpu.lt.ran[-1][0] == 1


def test_nothing_is_timed_or_allocated_while_a_stream_is_captured(gpu, tmp_path):
    product(gpu)  # makes the workspace
    gpu.allocated.clear()
    gpu.lt.ran.clear()
    gpu.stream.capturing = True
    product(gpu)
    assert [number for number, _ in gpu.lt.ran] == [1]
    a, out = np.ones((2, 8), np.float32), np.zeros((2, 8), np.float32)
    b = np.ones((8, 8), np.float32)
    cuda.gemm(*map(gpu.array, (a, b, out)))  # a new problem: what cublasLt thinks best
    assert [number for number, _ in gpu.lt.ran] == [1, 0]
    gpu.stream.capturing = False
    cuda.gemm(*map(gpu.array, (a, b, out)))  # and it stays, for the same bits
    assert [number for number, _ in gpu.lt.ran] == [1, 0, 0]
    assert not gpu.allocated
    assert len([*(tmp_path / "gemm").glob("*.json")]) == 1


def test_timing_adds_nothing_and_spares_operands(gpu):
    a, b = np.ones((8, 8), np.float32), np.ones((8, 8), np.float32)
    out = np.full((8, 8), 5, np.float32)
    cuda.gemm(*map(gpu.array, (a, b, out)), beta=1)
    assert (out == 13).all()
    assert sum(address == out.ctypes.data for _, address in gpu.lt.ran) == 1
    gpu.lt.ran.clear()
    cuda.gemm(gpu.array(a), gpu.array(b), gpu.array(a))  # in place
    assert (a == 8).all()
    assert sum(address == a.ctypes.data for _, address in gpu.lt.ran) == 1


def test_without_room_to_time_the_first_algorithm_runs(gpu):
    gpu.room = False
    out = np.full((8, 8), 5, np.float32)
    x = np.ones((8, 8), np.float32)
    cuda.gemm(*map(gpu.array, (x, x, out)), beta=1)
    assert (out == 13).all()
    assert [number for number, _ in gpu.lt.ran] == [0]


def test_an_algorithm_that_fails_is_passed_over(gpu):
    gpu.lt.seconds = [3.0, None, 2.0]
    product(gpu)
    assert gpu.lt.ran[-1][0] == 2


def test_every_stream_has_a_workspace_of_its_own(gpu):
    product(gpu)
    product(gpu)
    assert gpu.allocated == [32 << 20]
    gpu.stream.ptr = 78
    product(gpu)
    assert gpu.allocated == [32 << 20] * 2


# What cublasLt cannot do


def test_errors_name_library_version_function_status_and_problem(gpu):
    gpu.lt.seconds = []
    with pytest.raises(cublaslt.CublasLtError) as caught:
        product(gpu)
    text = str(caught.value)
    for part in (
        "cublasLtMatmulAlgoGetHeuristic",
        "130100",
        "stand-in",
        "CUBLAS_STATUS_NOT_SUPPORTED (15)",
        "(4, 8) @ (8, 8), 1 times",
        "float32 with rows 8 apart",
    ):
        assert part in text
    gpu.lt.seconds = [None]
    with pytest.raises(cublaslt.CublasLtError, match=r"cublasLtMatmul of .*NOT_SUPPORTED"):
        product(gpu)


def test_an_epilogue_without_algorithm_becomes_several_launches(gpu, monkeypatch):
    gpu.lt.unknown = {164}
    launched = []
    monkeypatch.setattr(gemm, "_launch", lambda kernel, aux, out: launched.append(kernel))
    x = np.ones((8, 8), backend.bfloat16)
    out, aux, bias = np.zeros_like(x), np.zeros_like(x), np.ones(8, x.dtype)
    args = map(gpu.array, (x, x, out))
    cuda.gemm(*args, epilogue="gelu", bias=gpu.array(bias), aux=gpu.array(aux))
    assert launched == ["gemm_gelu"]
    assert (aux == 9).all()  # a product with epilogue "bias"


def test_missing_library(monkeypatch):
    def load(name: str) -> Any:
        raise RuntimeError("nowhere")

    pathfinder = importlib.import_module("cuda.pathfinder")
    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", load)
    cublaslt.library.cache_clear()
    with pytest.raises(RuntimeError, match=r"need cublasLt \(nowhere\).*gpugrad\[cuda13\]"):
        cublaslt.library()


# The library itself, which makes descriptors without a GPU


@pytest.fixture
def real() -> cublaslt.Library:
    cublaslt.library.cache_clear()
    try:
        return cublaslt.library()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_the_library_keeps_what_is_set(real):
    problem = Problem(
        m=48,
        n=32,
        k=16,
        batch=3,
        a=Matrix(False, 20, 1000, 16),
        b=Matrix(True, 24, 2000, 8),
        out=Matrix(False, 40, 1920, 16),
        dtype="bfloat16",
        out_dtype="bfloat16",
        epilogue="gelu",
        bias_dtype="bfloat16",
        aux=Matrix(False, 40, 0, 16),
        device_alpha=True,
    )
    operation = cublaslt.Operation(real, problem)
    operation.point(0x1230, 0x4560)
    expected = [
        *cublaslt.attributes(problem),
        (cublaslt.BIAS_POINTER, ctypes.c_uint64(0x1230)),
        (cublaslt.AUX_POINTER, ctypes.c_uint64(0x4560)),
        (0, ctypes.c_int32(68)),
        (1, ctypes.c_int32(0)),
    ]
    get = real.functions.cublasLtMatmulDescGetAttribute
    for attribute, value in expected:
        assert attribute_of(get, operation.descriptor, attribute, type(value)) == value.value
    get = real.functions.cublasLtMatrixLayoutGetAttribute
    kinds = (0, 2, 3, 4, 5, 6)  # type, rows, columns, leading dimension, batch count and offset
    types = (
        ctypes.c_uint32,
        *[ctypes.c_uint64] * 2,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_int64,
    )
    for made, layout in zip(
        (operation.a, operation.b, operation.d), cublaslt.layouts(problem), strict=True
    ):
        found = [attribute_of(get, made, k, t) for k, t in zip(kinds, types, strict=True)]
        assert found == [*layout]
    operation.close()


def attribute_of(get: Any, descriptor: Any, attribute: int, kind: Any) -> int:
    value, written = kind(), ctypes.c_size_t()
    size = ctypes.sizeof(value)
    status = get(
        descriptor, attribute, ctypes.byref(value), ctypes.c_size_t(size), ctypes.byref(written)
    )
    assert status == 0
    assert written.value == size
    return int(value.value)
