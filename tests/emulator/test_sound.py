"""Correct kernels: silent in the checked build, equal in every order, and right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import source

SOUND = Path(__file__).with_name("sound.cu")


@pytest.fixture(scope="module")
def module() -> emulator.Module:
    return emulator.Module(source.inline(SOUND), name="sound.cu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 127, 1000])
def test_reduction(module: emulator.Module, rng: np.random.Generator, n: int) -> None:
    x = rng.normal(size=n).astype(np.float32)
    out = emulator.empty(2)
    _, out, _ = emulator.check(module, "reduction", grid=(1,), block=(128,), args=(x, out, n))
    close(out, np.array([x.sum(), (x * (np.arange(n) % 4 + 1)).sum()]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (33, 70), (64, 31)])
def test_transpose(
    module: emulator.Module, rng: np.random.Generator, rows: int, columns: int
) -> None:
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    grid = (-(-columns // 32), -(-rows // 32))
    args = (x, emulator.empty((columns, rows)), rows, columns)
    after = emulator.check(module, "transpose", grid=grid, block=(32, 8), args=args)
    np.testing.assert_array_equal(after[1], x.T)


@pytest.mark.parametrize(("n", "threads"), [(1, 32), (77, 96), (300, 320), (100, 1024)])
def test_scan(module: emulator.Module, rng: np.random.Generator, n: int, threads: int) -> None:
    x = rng.integers(-5, 9, n, dtype=np.int32)
    args = (x, emulator.empty(n, np.int32), n)
    after = emulator.check(module, "scan", grid=(1,), block=(threads,), args=args)
    np.testing.assert_array_equal(after[1], np.cumsum(x))


def test_histogram(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.integers(0, 16, 1000, dtype=np.uint8)
    args = (x, np.zeros(16, np.int32), x.size)
    after = emulator.check(module, "histogram", grid=(5,), block=(64,), args=args)
    np.testing.assert_array_equal(after[1], np.bincount(x, minlength=16))


@pytest.mark.parametrize("blocks", [1, 2, 13])
def test_last_block(module: emulator.Module, rng: np.random.Generator, blocks: int) -> None:
    x = rng.normal(size=5000).astype(np.float32)
    args = (x, emulator.empty(blocks), np.zeros(1, np.uint32), emulator.empty(1), x.size)
    after = emulator.check(module, "last_block", grid=(blocks,), block=(128,), args=args)
    close(after[3][0], x.sum())
    assert after[2] == 0


def test_last_block_of_all(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.normal(size=64).astype(np.float32)
    args = (x, emulator.empty(7 * 64), np.zeros(1, np.uint32), emulator.empty(64))
    after = emulator.check(module, "last_block_of_all", grid=(7,), block=(64,), args=args)
    close(after[3], 14 * x)


def test_narrow_elements(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.integers(0, 200, 64).astype(np.float32)
    args = (x, emulator.empty(64, np.uint8), emulator.empty(64, np.uint16), emulator.empty(64))
    after = emulator.check(module, "narrow", grid=(1,), block=(64,), args=args)
    for result in after[1:3]:
        np.testing.assert_array_equal(result, np.arange(64))
    np.testing.assert_array_equal(after[3], 2 * x[::-1])


def test_packs_in_place(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.normal(size=100).astype(np.float32)
    after = emulator.check(
        module, "packed", grid=(1,), block=(32,), args=(x, x.size), shared_mem=400
    )
    expected = x.reshape(25, 4)[::-1].copy()
    expected[:, 0] += 1
    np.testing.assert_array_equal(after[0].reshape(25, 4), expected)


def test_exchange_in_warps(module: emulator.Module) -> None:
    i = np.arange(64)
    x = (i + 1).astype(np.float32)
    after = emulator.check(module, "warp_exchange", grid=(1,), block=(64,), args=(x,))
    np.testing.assert_array_equal(after[0], np.where(i % 32 < 16, x[i ^ 2], -x[i ^ 4]))


@pytest.mark.parametrize("n", [0, 40, 64])
def test_compact(module: emulator.Module, rng: np.random.Generator, n: int) -> None:
    x = rng.normal(size=64).astype(np.float32)
    args = (x, np.zeros(64, np.float32), np.zeros(2, np.int32), n)
    after = emulator.check(module, "compact", grid=(1,), block=(64,), args=args)
    kept = x[:n][x[:n] > 0]
    assert after[2][0] == len(kept)
    np.testing.assert_array_equal(after[1][: len(kept)], kept)


def test_double_buffer(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.normal(size=64).astype(np.float32)
    args = (x, emulator.empty(64), 5)
    after = emulator.check(module, "double_buffer", grid=(1,), block=(64,), args=args)
    close(after[1], 5 * x[::-1] + 10)


def test_no_thread_waits(module: emulator.Module, rng: np.random.Generator) -> None:
    x, y = (rng.normal(size=1000).astype(np.float32) for _ in range(2))
    args = (2.5, x, y, x.size, True)
    after = emulator.check(module, "saxpy", grid=(3, 2, 5), block=(16, 3), args=args)
    close(after[2], y - 2.5 * x)


@pytest.mark.parametrize("n", [1, 32, 45, 64])
def test_early_exit(module: emulator.Module, n: int) -> None:
    x = np.arange(64, dtype=np.float32)
    after = emulator.check(module, "early_exit", grid=(1,), block=(64,), args=(x, n))
    i = np.arange(64)
    last = np.minimum(i // 32 * 32 + 31, n - 1)
    np.testing.assert_array_equal(after[0], np.where(i < n, last + i // 32 * 32, i))


def test_last_warp(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.normal(size=128).astype(np.float32)
    after = emulator.check(
        module, "last_warp", grid=(1,), block=(128,), args=(x, emulator.empty(1))
    )
    close(after[1], x.sum())


def test_dynamic_shared_memory_at_file_scope(module: emulator.Module) -> None:
    for n in (32, 96, 64):  # it begins elsewhere in every launch
        x = np.arange(n, dtype=np.float32)
        after = emulator.check(
            module, "file_scope", grid=(1,), block=(n,), args=(x,), shared_mem=16 * n
        )
        np.testing.assert_array_equal(after[0], x[::-1])


def test_padding_of_structs_is_copied(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.normal(size=64)
    args = (x, emulator.empty(1, np.int32))
    after = emulator.check(module, "argmax", grid=(1,), block=(64,), args=args)
    assert after[1] == x.argmax()


def test_warps_meet_at_several_lines(module: emulator.Module) -> None:
    i = np.arange(32)
    x = i.astype(np.float32) ** 2
    after = emulator.check(module, "several_lines", grid=(1,), block=(32,), args=(x,))
    y = np.where(i % 2, x + x[i ^ 1], x - x[i ^ 1]) + 12
    np.testing.assert_array_equal(after[0], y[i ^ 2])


def test_atomics_beside_volatile_reads(module: emulator.Module, rng: np.random.Generator) -> None:
    x = rng.normal(size=300).astype(np.float32)
    args = (x, np.full(1, -np.inf, np.float32).view(np.int32), 300)
    after = emulator.check(module, "largest", grid=(3,), block=(128,), args=args)
    assert after[1].view(np.float32)[0] == x.max()


def test_a_lock_given_back_by_a_volatile_write(module: emulator.Module) -> None:
    args = (np.zeros(1, np.int32),)
    (out,) = emulator.check(module, "locked", grid=(3,), block=(64,), args=args)
    assert out[0] == 192


def test_threads_that_wait_for_flags_let_others_run(
    module: emulator.Module, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(5, 32)).astype(np.float32)
    args = (x, emulator.empty((5, 32)), 5)
    after = emulator.check(module, "producer_and_consumer", grid=(1,), block=(64,), args=args)
    np.testing.assert_array_equal(after[1], 2 * x)
