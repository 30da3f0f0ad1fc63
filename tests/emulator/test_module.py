"""The module object: what a launch takes and refuses, and how faults surface in the plain build."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import cache
from gpugrad.cuda.compiler import CompileError, find_include_folder
from gpugrad.emulator import compile as compiler
from gpugrad.emulator import memory

SOURCE = """
struct alignas(8) Pair { float a, b; };
extern "C" __global__ void every_type(const float* x, float* out, int i, unsigned u, long long l,
                                      unsigned long long v, float f, double d, bool b) {
    out[0] = x[0]; out[1] = i; out[2] = u; out[3] = l;
    out[4] = v; out[5] = f; out[6] = d; out[7] = b;
}
extern "C" __global__ void __launch_bounds__(2 * LIMIT, 1) bounded(int* out) {
    out[threadIdx.x] = blockDim.x;
}
extern "C" __global__ void places(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}
extern "C" __global__ void reverse(float* x) {
    extern __shared__ float slots[];
    slots[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = slots[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void copy(const float* x, float* out, int n) {
    if (threadIdx.x < n) out[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void through_pointers(float* const* arrays, int n) {
    for (int i = 0; i < n; i++) arrays[i][threadIdx.x] = i;
}
extern "C" __global__ void order_of_atomics(int* counter, int* out) {
    out[threadIdx.x] = atomicAdd(counter, 1);
}
extern "C" __global__ void shared_as_found(unsigned* out) {
    __shared__ unsigned found[4];
    out[threadIdx.x] = found[threadIdx.x];
}
extern "C" __global__ void loop(volatile int* x) {
    while (x[0] != 12345) {}
}
extern "C" __global__ void beyond_dynamic() {
    DYN_SMEM(memory);
    reinterpret_cast<volatile int*>(memory)[1024 + threadIdx.x] = 1;
}
"""
PLAIN, CHECKED = emulator.Settings("plain"), emulator.Settings("checked")


def line_of(text: str) -> int:
    return SOURCE[: SOURCE.index(text)].count("\n") + 1


@pytest.fixture(scope="module")
def module() -> emulator.Module:
    return emulator.Module(SOURCE, {"LIMIT": 32}, "module.cu")


def test_every_type_arrives(module: emulator.Module) -> None:
    x, out = np.full(1, 0.5, np.float32), np.zeros(8, np.float32)
    args = (x, out, -3, np.uint32(4), -(2**40), 2**63, 7, np.float64(8.5), True)
    module.get_function("every_type")((1,), (1,), args)
    np.testing.assert_array_equal(out, np.array([0.5, -3, 4, -(2**40), 2**63, 7, 8.5, 1], "f"))


def test_other_ways_to_declare_a_kernel_arrive() -> None:
    source = """
    extern "C" {
    __launch_bounds__(max(int(8), 16)) __global__ void k(const float x[], float* out, size_t n,
                                                         unsigned long m, long l, float) {
        if (threadIdx.x < n) out[threadIdx.x] = x[threadIdx.x] + (m >> 40) + l;
    }
    }
    """
    kernel = emulator.Module(source).get_function("k")
    x, out = np.arange(4, dtype="f"), np.zeros(4, "f")
    kernel((1,), (16,), (x, out, 3, 2**41, -7, 0.5))
    np.testing.assert_array_equal(out, np.array([-5, -4, -3, 0], "f"))
    with pytest.raises(ValueError, match="__launch_bounds__ allows 16"):
        kernel((1,), (17,), (x, out, 3, 2**41, -7, 0.5))


GOOD = (np.zeros(1, np.float32), np.zeros(8, np.float32), 1, 1, 1, 1, 1.0, 1.0, True)


@pytest.mark.parametrize(
    ("index", "value", "error", "words"),
    [
        (2, 1.5, TypeError, "argument 'i': int is needed, not float 1.5"),
        (2, True, TypeError, "argument 'i': int is needed, not bool"),
        (2, 2**31, OverflowError, "2147483648 does not fit int"),
        (3, -1, OverflowError, "-1 does not fit unsigned"),
        (6, "1", TypeError, "argument 'f': float is needed"),
        (6, np.zeros(1, "f"), TypeError, "argument 'f': float is needed, not ndarray"),
        (8, 1, TypeError, "argument 'b': bool is needed"),
        (0, 3, TypeError, "argument 'x': an array or None is needed, not int"),
        (0, np.zeros(1), TypeError, "argument 'x': float32 is needed, not float64"),
        (0, np.zeros(2, np.int32), TypeError, "argument 'x': float32 is needed, not int32"),
        (1, np.zeros((8, 2), "f")[:, 0], ValueError, "not C-contiguous"),
    ],
)
def test_wrong_arguments(
    module: emulator.Module, index: int, value: object, error: type[Exception], words: str
) -> None:
    args = [*GOOD[:index], value, *GOOD[index + 1 :]]
    with pytest.raises(error, match="kernel 'every_type'") as caught:
        module.get_function("every_type")((1,), (1,), args)
    assert words in str(caught.value)


def test_wrong_number_of_arguments(module: emulator.Module) -> None:
    with pytest.raises(TypeError, match=r"takes 3 arguments \(x, out, n\), not 2"):
        module.get_function("copy")((1,), (1,), GOOD[:2])


@pytest.mark.parametrize("dtype", ["bfloat16", "uint16"])
def test_the_element_type_follows_the_define(dtype: str) -> None:
    source = 'using T = unsigned short;\nextern "C" __global__ void k(T* x) { x[0] += 1; }'
    kernel = emulator.Module(source, {"GPUGRAD_DTYPE": 1}).get_function("k")
    x = np.zeros(1, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.uint16)
    kernel((1,), (1,), (x,))
    assert x.view(np.uint16)[0] == 1
    with pytest.raises(TypeError, match="bfloat16 is needed, not float32"):
        kernel((1,), (1,), (np.zeros(1, np.float32),))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        ((0,), (1,), 0, "grid (0,) is not possible"),
        ((1, 65536), (1,), 0, "grid (1, 65536) is not possible"),
        ((1,), (1025,), 0, "block (1025,) is not possible"),
        ((1,), (64, 32), 0, "1024 in all"),
        ((1,), (1, 1, 65), 0, "block (1, 1, 65) is not possible"),
        ((1, 1, 1, 1), (1,), 0, "is not possible"),
        ((1,), (65,), 0, "__launch_bounds__ allows 64"),
        ((1,), (64,), 232449, "232449 bytes of dynamic shared memory"),
        ((1,), (64,), -1, "-1 bytes of dynamic shared memory"),
    ],
)
def test_sizes_a_gpu_refuses(
    module: emulator.Module, grid: tuple, block: tuple, shared: int, words: str
) -> None:
    with pytest.raises(ValueError, match="kernel 'bounded'") as caught:
        module.get_function("bounded")(grid, block, (np.zeros(64, np.int32),), shared)
    assert words in str(caught.value)


@pytest.mark.parametrize("mode", ["plain", "checked"])
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_every_thread_of_every_block_runs_once(
    module: emulator.Module, mode: str, order: str
) -> None:
    grid, block = (3, 2, 4), (5, 2, 3)
    out = np.zeros(24 * 30, np.int32)
    how = emulator.Settings(mode, order, seed=5)
    module.get_function("places")(grid, block, (out,), how=how)
    expected = np.arange(24)[:, None] * 1000 + np.arange(30)
    np.testing.assert_array_equal(out.reshape(24, 30), expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_orders_differ(module: emulator.Module, order: str) -> None:
    counter, out = np.zeros(1, np.int32), np.zeros(100, np.int32)
    how = emulator.Settings("plain", order, seed=1)
    module.get_function("order_of_atomics")((1,), (100,), (counter, out), how=how)
    assert sorted(out) == list(range(100))
    assert (out == np.arange(100)).all() == (order == "ascending")
    assert (out == np.arange(100)[::-1]).all() == (order == "descending")


@pytest.mark.parametrize("portable", [False, True], ids=["assembly", "ucontext"])
def test_both_ways_to_switch_stacks(portable: bool) -> None:
    kernel = emulator.Module(SOURCE, {"LIMIT": 32}, portable=portable).get_function("reverse")
    x = np.arange(1024, dtype=np.float32)
    for how in (PLAIN, CHECKED):
        kernel((1,), (1024,), (x,), 4096, how=how)
    np.testing.assert_array_equal(x, np.arange(1024))
    kernel((1,), (1000,), (x,), 4096)
    np.testing.assert_array_equal(x[:1000], np.arange(1000)[::-1])


@pytest.mark.parametrize("poison", [0xFF, 0x7E])
def test_shared_memory_starts_with_poison(module: emulator.Module, poison: int) -> None:
    out = np.zeros(4, np.uint32)
    how = emulator.Settings("plain", poison=poison)
    module.get_function("shared_as_found")((1,), (4,), (out,), how=how)
    assert (out == poison * 0x01010101).all()


def test_arrays_behind_pointers_are_named(module: emulator.Module) -> None:
    kernel = module.get_function("through_pointers")
    arrays = [np.zeros(4, np.float32) for _ in range(3)]
    pointers = np.array([array.ctypes.data for array in arrays], np.uint64)
    kernel((1,), (4,), (pointers, 3), how=CHECKED, reachable=arrays)
    assert [array[3] for array in arrays] == [0, 1, 2]
    with pytest.raises(emulator.OutOfBounds):
        kernel((1,), (4,), (pointers, 3), how=CHECKED, reachable=arrays[:1])


def test_uninitialised_arrays_are_followed_over_launches(module: emulator.Module) -> None:
    kernel = module.get_function("copy")
    x, y, out = emulator.empty(8), emulator.empty(8), np.zeros(8, np.float32)
    kernel((1,), (8,), (out, x, 4), how=CHECKED)  # the first four are written
    kernel((1,), (8,), (x, y, 4), how=CHECKED)
    kernel((1,), (8,), (y, out, 4), how=CHECKED)
    with pytest.raises(emulator.Uninitialised, match="array 'x', bytes 16 to 19 of 32") as caught:
        kernel((1,), (8,), (x, out, 5), how=CHECKED)
    assert caught.value.thread == (4, 0, 0)
    assert caught.value.how == CHECKED


def test_the_plain_build_counts_what_it_was_given_as_written(module: emulator.Module) -> None:
    kernel = module.get_function("copy")
    x, out = emulator.empty(8), np.zeros(8, np.float32)
    kernel((1,), (8,), (out, x, 8), how=PLAIN)
    kernel((1,), (8,), (x, out, 8), how=CHECKED)


def test_marks_end_with_the_array(module: emulator.Module) -> None:
    gc.collect()
    before = len(memory._marked)
    array = emulator.empty(1000)
    view = array[10:18]
    del array
    with pytest.raises(emulator.Uninitialised):
        module.get_function("copy")((1,), (8,), (view, np.zeros(8, "f"), 8), how=CHECKED)
    assert len(memory._marked) == before + 1
    del view
    gc.collect()
    assert len(memory._marked) == before


def test_launches_from_several_threads(module: emulator.Module) -> None:
    def run(i: int) -> np.ndarray:
        x = np.arange(256, dtype=np.float32) + i
        module.get_function("reverse")((1,), (256,), (x,), 1024, how=CHECKED if i % 2 else PLAIN)
        return x

    with ThreadPoolExecutor(4) as pool:
        for i, x in enumerate(pool.map(run, range(40))):
            np.testing.assert_array_equal(x, np.arange(256)[::-1] + i)


@pytest.mark.parametrize("how", [PLAIN, CHECKED], ids=["plain", "checked"])
@pytest.mark.parametrize(
    ("order", "blocks", "run"),
    [("ascending", 2, [0, 1]), ("descending", 2, [4, 5]), ("ascending", 9, list(range(6)))],
)
def test_only_some_blocks(
    module: emulator.Module, how: emulator.Settings, order: str, blocks: int, run: list[int]
) -> None:
    out = np.full(6, -1, np.int32)
    how = how._replace(order=order, blocks=blocks)
    module.get_function("places")((3, 2), (1,), (out,), how=how)
    assert out.tolist() == [1000 * b if b in run else -1 for b in range(6)]


@pytest.mark.parametrize("how", [PLAIN, CHECKED], ids=["plain", "checked"])
def test_the_watchdog(module: emulator.Module, how: emulator.Settings) -> None:
    kernel = module.get_function("loop")
    with pytest.raises(emulator.Timeout, match=r"still running after 0\.05 s") as caught:
        kernel((1,), (1,), (np.zeros(1, np.int32),), how=how._replace(seconds=0.05))
    assert caught.value.file == "module.cu"
    assert caught.value.line == line_of("while (x[0]")


def test_the_watchdog_names_a_line_wherever_it_strikes(module: emulator.Module) -> None:
    kernel, x, lines = module.get_function("loop"), np.zeros(1, np.int32), set()
    for _ in range(200):  # on the way into the runtime, too: about one in fifty
        with pytest.raises(emulator.Timeout) as caught:
            kernel((1,), (1,), (x,), how=CHECKED._replace(seconds=0.002))
        lines.add((caught.value.file, caught.value.line))
    assert lines == {("module.cu", line_of("while (x[0]"))}


def test_the_guard_page_in_the_plain_build(module: emulator.Module) -> None:
    with pytest.raises(emulator.OutOfBounds, match="dynamic shared memory") as caught:
        module.get_function("beyond_dynamic")((1,), (32,), (), 128, how=PLAIN)
    assert caught.value.line == line_of("volatile int*>(memory)")


def test_a_null_pointer_in_the_plain_build(module: emulator.Module) -> None:
    with pytest.raises(emulator.MemoryFault, match="null pointer"):
        module.get_function("copy")((1,), (1,), (None, np.zeros(1, "f"), 1), how=PLAIN)
    out = np.zeros(2, np.float32)  # and the next launch works
    module.get_function("copy")((1,), (2,), (np.ones(2, np.float32), out, 2), how=PLAIN)
    assert (out == 1).all()


def test_a_source_that_does_not_compile() -> None:
    module = emulator.Module(
        'extern "C" __global__ void k(int* x) { x[0] = nothing; }', name="a.cu"
    )
    with pytest.raises(CompileError, match=r"(?s)a.cu does not compile.*'?nothing"):
        module.get_function("k")((1,), (1,), (np.zeros(1, np.int32),))


def test_names_that_are_not_there(module: emulator.Module) -> None:
    with pytest.raises(KeyError, match="has no kernel 'nothing'; it has every_type, bounded"):
        module.get_function("nothing")
    with pytest.raises(ValueError, match="declare one as extern"):
        emulator.Module("__global__ void k() {}")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler.compiler.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"needs g\+\+ .* apt-get install g\+\+"):
            compiler.compiler()
    finally:
        compiler.compiler.cache_clear()


@pytest.mark.parametrize(
    ("shown", "dumped", "words"),
    [
        ("g++ (GCC) 12.1.0", "echo 12.1.0", ""),
        ("g++ (GCC) 100.2", "echo 100", ""),
        ("g++ (GCC) 11.4.0", "echo 11.4.0", "is version 11.4.0"),
        ("g++ (GCC) 4.8.5", "echo 4.8", "is version 4.8"),
        ("Apple clang version 16.0.0", "echo 16.0.0", "is not GCC but Apple clang version 16"),
        ("compiler", "exit 1", "does not say its version"),
        ("", "", "--version fails"),
    ],
)
def test_the_version_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: str, dumped: str, words: str
) -> None:
    fake = tmp_path / "g++"
    fake.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "{shown}";; -dumpfullversion) {dumped};; *) exit 2;; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler.compiler.cache_clear()
    try:
        if not words:
            assert compiler.compiler() == (str(fake), shown)
            return
        with pytest.raises(RuntimeError, match=r"needs g\+\+ \(12 or newer\).* apt-get") as caught:
            compiler.compiler()
        assert words in str(caught.value)
    finally:
        compiler.compiler.cache_clear()


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_cache_is_readable_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that comes with a container's image, made by root."""
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path))
    text = 'extern "C" __global__ void nothing(int n) { int unused; }'  # g++ warns: a log, too
    old = os.umask(0o022)
    try:
        with pytest.warns(UserWarning, match="unused"):
            path = compiler.build(text, "plain", ["nothing"])
        cache.write(tmp_path / "cubin", b"magic", b"body")
    finally:
        os.umask(old)
    modes = {f.suffix: f.stat().st_mode & 0o777 for f in [path, path.with_suffix(".log")]}
    assert modes == {".so": 0o755, ".log": 0o644}
    assert (tmp_path / "cubin").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", [0, 10, 3000, -10])
def test_a_library_that_was_cut_off_is_compiled_anew(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading one that has its first segments ends the process."""
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path))
    text = 'extern "C" __global__ void nothing(int n) {}'
    path = compiler.build(text, "plain", ["nothing"])
    whole = path.stat().st_size
    os.truncate(path, size % whole)
    assert compiler.build(text, "plain", ["nothing"]) == path
    assert path.stat().st_size == whole


def test_what_killed_processes_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp-0123456789abcdef.o", tmp_path / ".tmp-1123456789abcdef"
    for file in (old, new, tmp_path / "kept"):
        file.touch()
    for file in (old, tmp_path / "kept"):
        os.utime(file, (0, time.time() - cache.ABANDONED - 1))
    cache.write(tmp_path / "cubin", b"magic", b"body")
    assert sorted(f.name for f in tmp_path.iterdir()) == [new.name, "cubin", "kept"]


def test_a_copied_cache_works(tmp_path: Path) -> None:
    """Compile in one process, move the cache, run from it in another."""
    script = (
        "import numpy as np; from gpugrad import emulator; x = np.zeros(3, 'f');"
        "m = emulator.Module('extern \"C\" __global__ void k(float* x) { x[threadIdx.x] = 2; }');"
        "m.get_function('k')((1,), (3,), (x,)); print(int(x.sum()))"
    )

    def run(cache: Path) -> str:
        environment = {**os.environ, "GPUGRAD_CACHE": str(cache)}
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert run(tmp_path / "a").strip() == "6"
    (tmp_path / "a").rename(tmp_path / "b")
    before = sorted(path.name for path in (tmp_path / "b" / "emulator").iterdir())
    assert run(tmp_path / "b").strip() == "6"
    assert sorted(path.name for path in (tmp_path / "b" / "emulator").iterdir()) == before


def test_a_long_wait_for_the_compiler_is_explained_once(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "_seconds", 0.0)
    for seconds in (1.5, 0.4):
        compiler._waited(seconds)
    assert capsys.readouterr().err == ""
    compiler._waited(0.2)
    assert "compiling kernels for the emulator" in capsys.readouterr().err
    compiler._waited(9)
    assert capsys.readouterr().err == ""


def test_what_is_compiled_is_known_by_the_text_of_its_headers_not_by_their_place(tmp_path):
    places = [tmp_path / name for name in ("one", "two", "other")]
    for place in places:
        (place / "nv").mkdir(parents=True)
        (place / "nv" / "target").write_text("// a header")
        (place / "cuda_fp16.h").write_text(f"// {place.name == 'other'}")
    one, two, other = (compiler._keyed(["-O2", "-isystem", str(place), "-g"]) for place in places)
    assert one == two != other
    assert [one[0], one[1], len(one), one[-1]] == ["-O2", "-isystem", 5, "-g"]


def test_shared_memory_has_its_limits() -> None:
    text = """
    __device__ int helped(int i) {
        __shared__ int held[9000];
        held[i] = i;
        return held[i];
    }
    extern "C" __global__ void large(int* x) {
        __shared__ int tile[SIZE], more[3000];
        more[threadIdx.x] = tile[threadIdx.x] = helped(threadIdx.x);
        x[threadIdx.x] = tile[threadIdx.x] + more[threadIdx.x];
    }
    extern "C" __global__ void other() { __shared__ int tile[9000]; tile[threadIdx.x] = 1; }
    """
    args = [np.zeros(32, np.int32)]
    for how in (PLAIN, CHECKED):
        kernel = emulator.Module(text, {"SIZE": 9288}).get_function("large")
        kernel((1,), (32,), args, (227 << 10) - 49152, how=how)
        with pytest.raises(ValueError, match=r"183297 bytes .* beside 49152 that it declares"):
            kernel((1,), (32,), args, (227 << 10) - 49151, how=how)
        kernel = emulator.Module(text, {"SIZE": 9289}).get_function("large")
        with pytest.raises(CompileError, match=r"'large' declares 49156 bytes.*; a GPU has 49152"):
            kernel((1,), (32,), args, how=how)


@pytest.mark.parametrize("header", ["assert.h", "cassert"])
@pytest.mark.parametrize("mode", ["plain", "checked"])
def test_assert_of_a_source_that_includes_its_header(header: str, mode: str) -> None:
    """The C library's would end the process."""
    text = f"""#include <{header}>
extern "C" __global__ void guarded(int n) {{
    assert(n > 0 && "positive");
}}
#define NDEBUG
#include <{header}>
extern "C" __global__ void unguarded(int n) {{
    assert(n > 0);
}}
"""
    module = emulator.Module(text, name="asserts.cu")
    with pytest.raises(
        emulator.AssertionFailed, match=r"assertion failed: n > 0 && .positive."
    ) as e:
        module.get_function("guarded")((1,), (1,), (0,), how=emulator.Settings(mode))
    assert (e.value.file, e.value.line) == ("asserts.cu", 3)
    module.get_function("unguarded")((1,), (1,), (0,), how=emulator.Settings(mode))


@pytest.mark.parametrize("how", [PLAIN, CHECKED], ids=["plain", "checked"])
def test_where_threads_take_turns_does_not_depend_on_launches_before(
    how: emulator.Settings,
) -> None:
    text = """extern "C" __global__ void turns(int* ticket, int* out, int n) {
    for (int i = 0; i < n; i++) out[atomicAdd(ticket, 1)] = threadIdx.x;
    assert(n % 2 == 0);
}
"""
    kernel = emulator.Module(text, name="turns.cu").get_function("turns")
    out = np.zeros((2, 2000), np.int32)
    kernel((1,), (2,), (np.zeros(1, np.int32), out[0], 1000), how=how)
    with pytest.raises(emulator.AssertionFailed):  # where thread 0 is the first again
        kernel((1,), (2,), (np.zeros(1, np.int32), np.zeros(2000, np.int32), 37), how=how)
    kernel((1,), (2,), (np.zeros(1, np.int32), out[1], 1000), how=how)
    np.testing.assert_array_equal(out[0], out[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes of ru_maxrss")
def test_fences_before_many_volatile_writes_take_little_memory() -> None:
    """Each address tells of all of them."""
    script = """
import resource
import numpy as np
from gpugrad import emulator
text = '''extern "C" __global__ void fill(volatile float* x, int n) {
    __threadfence();
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = i;
}'''
kernel = emulator.Module(text, name="fill.cu").get_function("fill")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = np.zeros(1 << 14, np.float32)
kernel((1,), (256,), (x, 1), how=emulator.Settings("checked"))
before = peak()
kernel((1,), (256,), (x, x.size), how=emulator.Settings("checked"))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert int(done.stdout) < 50 << 10, done


def test_where_a_thread_waits_by_atomics_in_the_plain_build() -> None:
    text = """extern "C" __global__ void waiting(int* x) {
    if (threadIdx.x == 0) return;
    while (atomicAdd(x, 0) == 0) {
    }
}
"""
    how = emulator.Settings("plain", seconds=0.3)
    kernel = emulator.Module(text, name="waiting.cu").get_function("waiting")
    with pytest.raises(emulator.Timeout) as caught:
        kernel((1,), (2,), (np.zeros(1, np.int32),), how=how)
    assert (caught.value.file, caught.value.line) == ("waiting.cu", 3)


@pytest.mark.parametrize(
    ("first", "body", "hint"),
    [
        ("", 'asm("mov.u32 %0, %%laneid;" : "=r"(*x));', "has cp.async, ldmatrix, mma"),
        ("", "*x = __cvta_generic_to_shared(x);", "has cp.async, ldmatrix, mma"),
        ("#include <cooperative_groups.h>", "", "but no cooperative groups, wmma, CUB"),
        ('#include "ptx.cuh"', "", "from a .cu file, not from text"),
    ],
)
def test_what_it_does_not_compile_is_said(first: str, body: str, hint: str) -> None:
    text = f'{first}\nextern "C" __global__ void refused(unsigned* x) {{ {body} }}\n'
    with pytest.raises(CompileError, match=hint):
        compiler.build(text, "plain", ["refused"])


def test_an_atomic_before_an_endless_loop_is_not_where_it_is() -> None:
    text = """extern "C" __global__ void endless(int* x, float* y) {
    atomicAdd(x, 1);
    for (;;) {
        y[0] = sinf(y[0]) + expf(y[0]);
    }
}
"""
    kernel = emulator.Module(text, name="endless.cu").get_function("endless")
    args = (np.zeros(1, np.int32), np.ones(1, np.float32))
    lines = set()
    for seconds in (0.02, 0.03, 0.04, 0.05, 0.06):
        with pytest.raises(emulator.Timeout) as caught:
            kernel((1,), (1,), args, how=emulator.Settings("plain", seconds=seconds))
        lines.add(caught.value.line)
    assert lines <= {3, 4}


def test_asynchronous_copies_by_cudas_own_names() -> None:
    text = """#include <cuda_pipeline.h>
extern "C" __global__ void copies(const float4* x, float4* out, int pending) {
    __shared__ float4 tile[32];
    __pipeline_memcpy_async(&tile[threadIdx.x], &x[threadIdx.x], 16, threadIdx.x == 31 ? 8 : 0);
    __pipeline_commit();
    __pipeline_wait_prior(pending);
    out[threadIdx.x] = tile[threadIdx.x];
}
"""
    x = np.arange(128, dtype=np.float32)
    module = emulator.Module(text, name="copies.cu")
    shape = {"grid": (1,), "block": (32,)}
    _, out, _ = emulator.check(module, args=(x, emulator.empty(128), 0), **shape)
    np.testing.assert_array_equal(out, np.where(x < 126, x, 0))
    with pytest.raises(emulator.Race, match=r"copies.cu:7.*asynchronous copy to this place"):
        emulator.check(module, args=(x, emulator.empty(128), 1), **shape)


@pytest.mark.skipif(find_include_folder() is None, reason="CUDA's headers")
def test_cudas_headers_of_constants_and_complex_numbers() -> None:
    text = """#include <cuComplex.h>
#include <math_constants.h>
extern "C" __global__ void squares(cuFloatComplex* z) {
    z[threadIdx.x] = cuCmulf(z[threadIdx.x], make_cuFloatComplex(CUDART_PI_F, 1.0f));
}
"""
    z = np.array([1 + 2j, 3 - 1j], np.complex64)
    (after,) = emulator.check(text, grid=(1,), block=(2,), args=(z,))
    np.testing.assert_allclose(after, z * np.complex64(np.pi + 1j), rtol=1e-6)


def test_what_lies_before_an_access_behind_all_shared_arrays() -> None:
    text = """extern "C" __global__ void behind(int n) {
    __shared__ int bins[64];
    atomicAdd(&bins[0] + n + threadIdx.x, 1);
}
"""
    kernel = emulator.Module(text, name="behind.cu").get_function("behind")
    with pytest.raises(
        emulator.OutOfBounds, match="shared memory, 8 bytes behind the end of 'bins'"
    ):
        kernel((1,), (1,), (66,), how=CHECKED)
