"""The emulator's own cuda_bf16.h and cuda_fp16.h, used where CUDA's are not installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import SOURCES, Source
from gpugrad.cuda.compiler import CompileError, find_include_folder
from gpugrad.cuda.source import signatures
from gpugrad.emulator import compile as compiler

CONVERT = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#if GPUGRAD_DTYPE == 1
#define WIDE(x) __bfloat162float(__ushort_as_bfloat16(x))
#define NARROW(x) __bfloat16_as_ushort(__float2bfloat16(x))
#define PAIR __floats2bfloat162_rn
#define BITS __bfloat16_as_ushort
static_assert(sizeof(__nv_bfloat16) == 2 && sizeof(__nv_bfloat162) == 4);
static_assert(alignof(__nv_bfloat16) == 2 && alignof(__nv_bfloat162) == 4);
#else
#define WIDE(x) __half2float(__ushort_as_half(x))
#define NARROW(x) __half_as_ushort(__float2half(x))
#define PAIR __floats2half2_rn
#define BITS __half_as_ushort
static_assert(sizeof(__half) == 2 && sizeof(__half2) == 4);
static_assert(alignof(__half) == 2 && alignof(__half2) == 4);
#endif
extern "C" __global__ void widen(const unsigned short* x, float* out, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = WIDE(x[i]);
}
extern "C" __global__ void narrow(const float* x, unsigned short* out, unsigned short* pairs,
                                  int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        out[i] = NARROW(x[i]);
        const auto pair = PAIR(x[i], -x[i]);
        pairs[2 * i] = BITS(pair.x), pairs[2 * i + 1] = BITS(pair.y);
    }
}
"""
DTYPES = {1: np.dtype(ml_dtypes.bfloat16), 2: np.dtype(np.float16)}
ALL = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture
def fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "find_include_folder", lambda: None)


def convert(code: int, mode: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All 65536 patterns widened; x narrowed, alone and as the pairs (x, -x)."""
    module = emulator.Module(CONVERT, {"GPUGRAD_DTYPE": code}, "convert.cu")
    how = emulator.Settings(mode)
    wide = emulator.empty(ALL.shape, np.float32)
    module.get_function("widen")((1,), (32,), (ALL, wide, ALL.size), how=how)
    narrow = emulator.empty(x.shape, np.uint16)
    pairs = emulator.empty((x.size, 2), np.uint16)
    module.get_function("narrow")((1,), (32,), (x, narrow, pairs, x.size), how=how)
    return wide, narrow, pairs


def floats(dtype: np.dtype, rng: np.random.Generator, step: int) -> np.ndarray:
    """Every number of the dtype, what lies halfway to the next and its neighbours, and others."""
    with np.errstate(all="ignore"):  # the signalling NaNs
        exact = ALL.view(dtype).astype(np.float32)
        above = (ALL[:-1] + np.uint16(1)).view(dtype).astype(np.float32)
        halfway = ((exact[:-1].astype(np.float64) + above) / 2).astype(np.float32)
    bits = halfway.view(np.uint32)
    edges = [65519.99, 65520, 65536, 2**-24, 2**-25, 1e-45, 3.3895314e38, np.inf, np.nan, -0.0]
    every = [exact, halfway, (bits + 1).view("f"), (bits - 1).view("f")]
    every += [rng.integers(0, 1 << 32, 100_000, np.uint32).view("f")]
    return np.concatenate([np.array(edges, "f"), np.concatenate(every)[::step]])


@pytest.mark.usefixtures("fallback")
@pytest.mark.parametrize("mode", ["plain", "checked"])
@pytest.mark.parametrize("code", DTYPES, ids=["bfloat16", "float16"])
def test_conversions(code: int, mode: str) -> None:
    dtype = DTYPES[code]
    x = floats(dtype, np.random.default_rng(0), 1 if mode == "plain" else 7)
    wide, narrow, pairs = convert(code, mode, x)
    with np.errstate(all="ignore"):
        back, forward = ALL.view(dtype).astype(np.float32), x.astype(dtype).view(np.uint16)
    nan = np.isnan(back)
    np.testing.assert_array_equal(np.isnan(wide), nan)
    np.testing.assert_array_equal(wide.view(np.uint32)[~nan], back.view(np.uint32)[~nan])
    expected = np.where(np.isnan(x), np.uint16(0x7FFF), forward)
    np.testing.assert_array_equal(narrow, expected)
    np.testing.assert_array_equal(pairs[:, 0], expected)
    negative = np.where(np.isnan(x), np.uint16(0x7FFF), forward ^ np.uint16(0x8000))
    np.testing.assert_array_equal(pairs[:, 1], negative)


@pytest.mark.skipif(find_include_folder() is None, reason="the CUDA headers are not installed")
@pytest.mark.parametrize("code", DTYPES, ids=["bfloat16", "float16"])
def test_conversions_are_those_of_the_cuda_headers(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = floats(DTYPES[code], np.random.default_rng(1), 3)
    theirs = convert(code, "plain", x)
    monkeypatch.setattr(compiler, "find_include_folder", lambda: None)
    for found, expected in zip(convert(code, "plain", x), theirs, strict=True):
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


def jobs() -> list[Any]:
    """The first variant of every source in bfloat16 and in float16; where it has no such choice,
    its first variant: float32 alone needs no header.
    """
    found = []
    for source in SOURCES.values():
        by_code = {v.get("GPUGRAD_DTYPE", 0): v for v in reversed(source.variants)}
        for code, variant in by_code.items():
            if code or len(by_code) == 1:
                found.append(pytest.param(source, variant, id=f"{source.name}-{code}"))
    return found


@pytest.mark.usefixtures("fallback")
@pytest.mark.parametrize(("source", "variant"), jobs())
def test_every_kernel_compiles(source: Source, variant: Mapping[str, object]) -> None:
    kernels = list(signatures(source.text))
    flags, text = compiler._translated(source.text, "plain", kernels, variant, source.name)
    assert not compiler._run([*flags, *compiler._INPUT, "-fsyntax-only"], text, source.name)


@pytest.mark.usefixtures("fallback")
def test_what_only_cuda_has_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = 'extern "C" __global__ void k(__half* x) { x[0] = hexp(x[0]); }'
    module = emulator.Module(f"#include <cuda_fp16.h>\n{kernel}", name="a.cu")
    with pytest.raises(CompileError, match=r"(?s)hexp.*cuda_fp16.h are not found.*cuda13"):
        module.get_function("k")((1,), (1,), (np.zeros(1, np.float16),))
    module = emulator.Module(f"#include <cuda_fp8.h>\n{kernel}", name="a.cu")
    monkeypatch.setattr(compiler, "include_folder", lambda: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        module.get_function("k")((1,), (1,), (np.zeros(1, np.float16),))


@pytest.mark.usefixtures("fallback")
def test_a_changed_header_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in compiler._FALLBACK.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(compiler, "_FALLBACK", tmp_path)
    source = '#include <cuda_fp16.h>\nextern "C" __global__ void k() {}'
    before = compiler.build(source, "plain", ["k"])
    assert compiler.build(source, "plain", ["k"]) == before
    (tmp_path / "cuda_fp16.h").write_text("#pragma once\n")
    assert compiler.build(source, "plain", ["k"]) != before
