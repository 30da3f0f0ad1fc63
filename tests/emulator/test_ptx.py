"""The emulated bodies of the wrappers in kernels/ptx.cuh."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpugrad import cuda, emulator
from gpugrad.cuda import source, tensor_map
from gpugrad.cuda.compiler import compile_cubin

PTX = Path(__file__).with_name("ptx.cu")


@pytest.fixture(scope="module")
def module() -> emulator.Module:
    return emulator.Module(source.inline(PTX), name="ptx.cu")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_fragments_multiply(module: emulator.Module, dtype: type) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(16, 16)).astype("f"), rng.normal(size=(8, 16)).astype("f")
    args = (a, b, emulator.empty((16, 8)), int(dtype is ml_dtypes.bfloat16))
    after = emulator.check(module, "multiply", grid=(1,), block=(32,), args=args)
    expected = 1 + a.astype(dtype).astype("d") @ b.astype(dtype).astype("d").T
    np.testing.assert_allclose(after[2], expected, rtol=1e-6, atol=1e-6)


def test_ldmatrix(module: emulator.Module) -> None:
    x = np.random.default_rng(5).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    out = emulator.empty((32, 10), np.uint32)
    _, out = emulator.check(module, "fragments", grid=(1,), block=(32,), args=(x, out))
    halves = out.view(np.uint16).reshape(32, 10, 2)
    lane = np.arange(32)
    for matrix in range(4):
        for i in range(2):
            row, col = lane // 4, lane % 4 * 2 + i
            np.testing.assert_array_equal(halves[:, matrix, i], x[matrix, row, col])
            np.testing.assert_array_equal(halves[:, 4 + matrix, i], x[matrix, col, row])
            if matrix < 2:
                np.testing.assert_array_equal(halves[:, 8 + matrix, i], x[matrix, col, row])


@pytest.mark.parametrize(("tiles", "n"), [(1, 256), (4, 1024), (3, 700)])
def test_a_pipeline_of_copies(module: emulator.Module, tiles: int, n: int) -> None:
    x = np.random.default_rng(6).normal(size=n).astype(np.float32)
    args = (x, emulator.empty(256), tiles, n)
    after = emulator.check(module, "pipeline", grid=(1,), block=(64,), args=args)
    padded = np.concatenate([x, np.zeros(tiles * 256 - n, np.float32)]).reshape(tiles, 256)
    total = np.zeros(256, np.float32)
    for tile in padded:
        total += np.roll(tile, -4)
    np.testing.assert_array_equal(after[1], total)


def test_a_producer_warp(module: emulator.Module) -> None:
    x = np.arange(32, dtype=np.float32)
    args = (x, emulator.empty(32))
    after = emulator.check(module, "producer", grid=(1,), block=(96,), args=args)
    np.testing.assert_array_equal(after[1], x[::-1])


@pytest.mark.parametrize("tiles", [1, 2, 7])
def test_rings_of_buffers(module: emulator.Module, tiles: int) -> None:
    x = np.random.default_rng(8).normal(size=(tiles, 64)).astype(np.float32)
    args = (x, emulator.empty(64), tiles)
    after = emulator.check(module, "bulk_ring", grid=(1,), block=(64,), args=args)
    expected = np.zeros(64, np.float32)
    for tile in x[:, ::-1]:
        expected += tile
    np.testing.assert_array_equal(after[1], expected)
    x = x.reshape(-1)[: 32 * tiles].reshape(tiles, 32)
    args = (x, emulator.empty(32), tiles)
    after = emulator.check(module, "ring", grid=(1,), block=(64,), args=args)
    expected = np.zeros(32, np.float32)
    for tile in x[:, ::-1]:
        expected += tile
    np.testing.assert_array_equal(after[1], expected)


WARPGROUP = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    11,
    13,
    16,
    17,
    19,
    24,
    27,
    29,
    32,
    33,
    35,
    43,
)  # the cases of the kernel


@pytest.mark.parametrize("how", WARPGROUP)
def test_products_of_a_warpgroup(module: emulator.Module, how: int) -> None:
    dtype = ml_dtypes.bfloat16 if how & 1 else np.float16
    columns = 128 if how & 16 else 32 if how & 32 else 64
    rng = np.random.default_rng(9)
    a, b = (rng.normal(size=(n, 64)).astype(dtype) for n in (64, columns))
    args = (a.view(np.uint16), b.view(np.uint16), emulator.empty((64, columns)), how)
    after = emulator.check(module, "warpgroup", grid=(1,), block=(128,), args=args)
    expected = 1 + a.astype("d") @ b.astype("d").T
    np.testing.assert_allclose(after[2], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_warpgroups_and_a_producer(module: emulator.Module, tiles: int) -> None:
    x = np.random.default_rng(10).normal(size=(tiles, 64, 64)).astype(ml_dtypes.bfloat16)
    args = (x.view(np.uint16), emulator.empty(x.shape), tiles)
    after = emulator.check(module, "warpgroup_ring", grid=(1,), block=(384,), args=args)
    np.testing.assert_array_equal(after[1], 2 * x.astype(np.float32))


def boxes_of(x: np.ndarray, box: tuple[int, ...], place: tuple[int, ...]) -> np.ndarray:
    """Return the lines of a box, contiguous axis first in ``place``, zeros outside of the array."""
    width = [(n, n) for n in box]
    start = [p + n for p, n in zip(reversed(place), box, strict=True)]
    found = np.pad(x, width)[tuple(slice(s, s + n) for s, n in zip(start, box, strict=True))]
    return found.reshape(-1, box[-1])


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (8, 1, 1, 0), (40, 3, 2, 1), (-8, -2, -1, -1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_box_of_an_array(module: emulator.Module, dtype: type, place: tuple[int, ...]) -> None:
    x = np.random.default_rng(12).normal(size=(2, 3, 5, 80)).astype(dtype)
    box = (2, 2, 3, 128 // x.itemsize)
    args = (cuda.strided(x, box), emulator.empty((12, 64), np.uint16), *place, 12)
    after = emulator.check(module, "tensor_box", grid=(1,), block=(64,), args=args)
    parts = after[1].reshape(12, 8, 8)  # lines, parts of 16 bytes
    lines, part = np.arange(12)[:, None], np.arange(8)
    swizzled = parts[lines, part ^ lines % 8].reshape(12, 64)
    expected = boxes_of(x, box, place)
    np.testing.assert_array_equal(swizzled, expected.view(np.uint16))
    assert (parts.reshape(12, 64) != expected.view(np.uint16)).any()


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_products_of_boxes(module: emulator.Module, tiles: int) -> None:
    x = np.random.default_rng(10).normal(size=(1, tiles, 64, 64)).astype(ml_dtypes.bfloat16)
    args = (cuda.strided(x, (1, 1, 64, 64)), emulator.empty(x.shape), tiles)
    after = emulator.check(module, "tensor_ring", grid=(1,), block=(256,), args=args)
    np.testing.assert_array_equal(after[1], 2 * x.astype(np.float32))


def test_a_map_of_another_swizzle_is_refused(
    module: emulator.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1, 1, 64, 64), np.float16)
    args = (cuda.strided(x, (1, 1, 64, 64)), emulator.empty(x.shape), 1)
    monkeypatch.setattr(tensor_map, "SWIZZLE_128B", 0)
    with pytest.raises(emulator.Fault, match="swizzled"):
        emulator.check(module, "tensor_ring", grid=(1,), block=(256,), args=args)


def test_a_map_of_more_than_the_array(
    module: emulator.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1, 1, 4, 64), np.float16)
    args = (cuda.strided(x, (1, 1, 8, 64)), emulator.empty((8, 64), np.uint16), 0, 0, 0, 0, 8)
    emulator.check(module, "tensor_box", grid=(1,), block=(64,), args=args)
    right = tensor_map.in_the_open

    def wrong(*given: Any) -> np.ndarray:
        made = right(*given)
        made["lengths"][1] = 5
        return made

    monkeypatch.setattr(tensor_map, "in_the_open", wrong)
    with pytest.raises(emulator.OutOfBounds, match="128 bytes"):
        emulator.check(module, "tensor_box", grid=(1,), block=(64,), args=args)


def test_powers_of_two(module: emulator.Module) -> None:
    x = np.array([0, 1, -1.5, -126, -127, -np.inf, np.inf, np.nan], np.float32)
    after = emulator.check(module, "powers", grid=(1,), block=(8,), args=(x, emulator.empty(8)))
    expected = np.array([1, 2, 2**-1.5, 2.0**-126, 0, 0, np.inf, np.nan], np.float32)
    np.testing.assert_allclose(after[1], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_rounding_to_sixteen_bits(module: emulator.Module, dtype: type) -> None:
    """Products with an identity show what pack made of a: halves to even, overflow, subnormals."""
    a = np.zeros((16, 16), np.float32)
    a[0, :8] = [1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-12, 1e5, 3e-6, -0.1, 6e-8, 65519]
    b = np.eye(8, 16, dtype=np.float32)
    args = (a, b, emulator.empty((16, 8)), int(dtype is ml_dtypes.bfloat16))
    after = emulator.check(module, "multiply", grid=(1,), block=(32,), args=args)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = a[0, :8].astype(dtype).astype("f")
        finite = np.isfinite(narrow)
        expected = np.where(finite, 1 + narrow.astype("d"), np.nan).astype("f")
    if finite.all():
        np.testing.assert_array_equal(after[2][0], expected)
    else:  # an infinity times zero
        assert np.isnan(after[2][0]).sum() == 7


@pytest.mark.parametrize("word", [r"\basm\b", r"\b__CUDA_ARCH__\b"])
def test_only_ptx_depends_on_the_machine(word: str) -> None:
    files = sorted(source.folder().glob("*.cu*"))
    assert [f.name for f in files if re.search(word, f.read_text("utf-8"))] == ["ptx.cuh"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100a"])
def test_the_wrappers_compile_for_gpus(architecture: str) -> None:
    cubin = compile_cubin(source.inline(PTX), PTX.name, architecture)
    assert ("warpgroup" in cubin.resources) == (architecture == "sm_90a")
    assert "C7510" not in cubin.log
