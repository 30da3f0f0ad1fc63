"""``check`` on files of a user."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gpugrad import cuda, emulator
from gpugrad.cuda.compiler import CompileError, find_include_folder

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


@pytest.mark.skipif(find_include_folder() is None, reason="the CUDA headers are not installed")
@pytest.mark.parametrize("pair", ["__half2", "__nv_bfloat162"])
def test_pairs_are_added_atomically(pair: str) -> None:
    text = f"""
    #include <cuda_bf16.h>
    #include <cuda_fp16.h>
    __device__ __half2 made(__half2) {{ return __floats2half2_rn(1, 2); }}
    __device__ __nv_bfloat162 made(__nv_bfloat162) {{ return __floats2bfloat162_rn(1, 2); }}
    extern "C" __global__ void add({pair}* x) {{ atomicAdd(x, made({pair}())); }}
    """
    dtype = np.float16 if pair == "__half2" else ml_dtypes.bfloat16
    (x,) = emulator.check(text, grid=(2,), block=(32,), args=(np.zeros(2, dtype),))
    np.testing.assert_array_equal(x.astype("f"), [64, 128])


@pytest.mark.parametrize("header", ["", "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"])
@pytest.mark.parametrize(("defines", "expected"), [({}, 900), ({"__CUDA_ARCH__": 700}, 700)])
def test_the_architecture(header: str, defines: dict[str, object], expected: int) -> None:
    kernel = """extern "C" __global__ void arch(int* x) {
    #if __CUDA_ARCH__ >= 700
        *x = __CUDA_ARCH__;
    #endif
    }"""
    args = [np.zeros(1, np.int32)]
    (x,) = emulator.check(header + kernel, grid=(1,), block=(1,), args=args, defines=defines)
    assert x == expected


LEAST = """extern "C" __global__ void least(const float* x, float* out, int n) {
    float found;
    if (n > 4) found = x[4];
    for (int i = 0; i < n; i++) found = fminf(found, x[i]);
    out[threadIdx.x] = found;
}"""


def test_local_variables_that_nobody_set() -> None:
    args = [np.arange(8, dtype="f"), emulator.empty(32), 8]
    with pytest.warns(UserWarning, match=r"found.* may be used uninitialized"):
        after = emulator.check(LEAST, grid=(1,), block=(32,), args=args)
    assert (after[1] == 0).all()
    with (
        pytest.warns(UserWarning, match=r"found.* may be used uninitialized"),  # from the cache
        pytest.raises(emulator.OrderDependent),
    ):
        emulator.check(LEAST, grid=(1,), block=(32,), args=[*args[:2], 3])
    never = LEAST.replace("if (n > 4) found = x[4];", "").replace("for (int i = 0; i < n; i++)", "")
    never = never.replace("x[i]", "x[n]")
    with pytest.raises(CompileError, match=r"found.* is used uninitialized"):
        emulator.check(never, grid=(1,), block=(32,), args=[*args[:2], 3])


def test_the_compiler_warns_of_the_kernel_alone() -> None:
    text = """class Hidden { float x; public: operator float() const { return x; } };
    extern "C" __global__ void swap(Hidden* x) {
        x[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);
    }"""
    x = np.arange(32, dtype="f")
    (after,) = emulator.check(text, grid=(1,), block=(32,), args=[x])  # a warning is an error here
    np.testing.assert_array_equal(after, x[np.arange(32) ^ 1])


@pytest.mark.parametrize("at_file_scope", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        "extern __shared__ __align__(sizeof(float4)) float s[]",
        "extern __align__(16) __shared__ float s[]",
        "extern volatile __shared__ float s[]",
        "__shared__ extern float s[]",
        "extern __shared__ alignas(16)\n float s [ ]",
        "extern __shared__ Of<float, 1> s[]",
        "extern __shared__ float s[][2]",
    ],
)
def test_ways_to_declare_dynamic_shared_memory(words: str, at_file_scope: bool) -> None:
    text = f"""template <class T, int N> struct Of {{ T values[N]; }};
    {words if at_file_scope else ""};
    extern "C" __global__ void reversed(float* x) {{
        {"" if at_file_scope else words};
        *(float*)&s[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = *(float*)&s[31 - threadIdx.x];
    }}"""
    x = np.arange(32, dtype="f")
    (after,) = emulator.check(text, grid=(1,), block=(32,), args=[x], shared_mem=256)
    np.testing.assert_array_equal(after, x[::-1])


def test_what_is_declared_but_nowhere_defined() -> None:
    text = """extern __shared__ float a[], b[];
    extern "C" __global__ void k() {
        b[0] = 1;
    }"""
    with pytest.raises(CompileError, match=r"kernel\.cu:3: undefined reference to .b"):
        emulator.check(text, grid=(1,), block=(1,), args=[], shared_mem=256)


def test_rarer_words() -> None:
    text = """
    __device__ __noinline__ int half(int x) { return x / 2; }
    extern "C" __global__ void __cluster_dims__(1, 1, 1) words(long long* out) {
        int equal = 0, other = 0;
        const unsigned all = __match_all_sync(~0u, threadIdx.x < 32, &equal);
        __match_all_sync(~0u, threadIdx.x, &other);
        const bool here = __activemask() >> threadIdx.x & 1;
        if (threadIdx.x) return;
        long long values[] = {
            half(7), all == ~0u && equal && !other && here, __mul24(0x1fffffe, 3), __umul24(-1, 2),
            __dp4a(0x01ff0203, 0x02030405, -1), __dp4a(0xff000001u, 0xff000002u, 1u),
            __float2ll_rn(2.5f), __float2ll_rn(-1e30f), __float2ll_rn(1e30f),
            __float2ll_rn(NAN), __float2int_rn(NAN), __float2uint_rn(5e9f), __float2int_rn(-3e9f),
            clock() >= 0
        };
        for (int i = 0; i < 14; i++) out[i] = values[i];
    }"""
    expected = [3, 1, -6, 0x1FFFFFE, 21, 65028, 2, -(2**63), 2**63 - 1, -(2**63), 0]
    expected += [2**32 - 1, -(2**31), 1]
    args = [emulator.empty(14, np.int64)]
    (out,) = emulator.check(text, grid=(1,), block=(32,), args=args)
    assert out.tolist() == expected


@pytest.mark.skipif(find_include_folder() is None, reason="the CUDA headers are not installed")
@pytest.mark.parametrize("name", ["half", "nv_bfloat16"])
def test_arithmetic_in_narrow_floats(name: str) -> None:
    pair = f"__{name}2" if name == "half" else "__nv_bfloat162"
    text = f"""#include <cuda_bf16.h>
    #include <cuda_fp16.h>
    extern "C" __global__ void k(__{name}* x) {{
        const int i = threadIdx.x;
        {pair}* pairs = reinterpret_cast<{pair}*>(x) + i;
        const {pair} other = __shfl_xor_sync(~0u, *pairs, 1), sum = __hfma2(*pairs, other, other);
        *pairs = {pair}(__hfma(other.x, other.y, sum.x), hexp(other.y));
    }}"""
    dtype = np.float16 if name == "half" else ml_dtypes.bfloat16
    x = (np.arange(64) % 7 - 3).astype(dtype)
    (after,) = emulator.check(text, grid=(1,), block=(32,), args=[x])
    mine = x.astype("f").reshape(32, 2)
    other = mine[np.arange(32) ^ 1]
    first = other[:, 0] * other[:, 1] + mine[:, 0] * other[:, 0] + other[:, 0]
    expected = np.stack([first, np.exp(other[:, 1])], 1).astype(dtype)
    np.testing.assert_array_equal(after.reshape(32, 2).astype("f"), expected.astype("f"))


@pytest.mark.skipif(find_include_folder() is None, reason="the CUDA headers are not installed")
@pytest.mark.parametrize("name", ["half", "nv_bfloat16"])
def test_functions_of_narrow_floats(name: str) -> None:
    functions = {
        "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x, "exp": np.exp,
        "exp2": np.exp2, "exp10": lambda x: 10**x, "log": np.log, "log2": np.log2,
        "log10": np.log10, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "floor": np.floor,
        "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint,
    }  # fmt: skip
    pair = f"__{name}2" if name == "half" else "__nv_bfloat162"
    lines = [
        f"out[{i}] = h{f}(x[0]); *reinterpret_cast<{pair}*>(out + {len(functions) + 2 * i}) = "
        f"h2{f}(*reinterpret_cast<const {pair}*>(x));"
        for i, f in enumerate(functions)
    ]
    text = f"""#include <cuda_bf16.h>
    #include <cuda_fp16.h>
    extern "C" __global__ void k(const __{name}* x, __{name}* out, int* integers) {{
        {" ".join(lines)}
        out[{3 * len(functions)}] = __hfma_relu(x[0], __hneg(x[1]), x[1]);
        integers[0] = __{name.replace("nv_", "")}2int_rn(x[1]);
        integers[1] = __{name.replace("nv_", "")}2int_ru(x[0]);
    }}"""
    dtype = np.dtype(np.float16 if name == "half" else ml_dtypes.bfloat16)
    x = np.array([1.25, 2.5]).astype(dtype)
    args = [x, emulator.empty(3 * len(functions) + 1, dtype), emulator.empty(2, np.int32)]
    _, out, integers = emulator.check(text, grid=(1,), block=(1,), args=args)
    wide = x.astype("f8")
    expected = [f(wide[0]) for f in functions.values()]
    expected += [y for f in functions.values() for y in f(wide)] + [0]
    eps = 2.0**-10 if name == "half" else 2.0**-7
    np.testing.assert_allclose(out.astype("f8"), expected, rtol=eps, atol=0)
    assert integers.tolist() == [2, 2]


def test_rarer_conversions_and_integers() -> None:
    values = {
        "__float2uint_rd(2.9f)": 2, "__float2ll_ru(-2.1f)": -2, "__float2ull_rz(-1.0f)": 0,
        "__double2int_rn(2.5)": 2, "__double2int_rd(-2.5)": -3, "__double2int_rz(1e10)": 2**31 - 1,
        "__double2int_rn(NAN)": -(2**31), "__double2ll_rn(-3.5)": -4, "__double2uint_rz(3.9)": 3,
        "__hiloint2double(__double2hiint(-7.5), __double2loint(-7.5)) == -7.5": 1,
        "__ddiv_rn(1.0, 4.0) == __dmul_rn(0.5, __dsub_rn(1.0, 0.5))": 1,
        "__hadd(-3, 0)": -2, "__rhadd(2147483647, 1)": 2**30, "__uhadd(~0u, ~0u)": 2**32 - 1,
        "__usad(3u, 7u, 1u)": 5, "__sad(-2147483647 - 1, 2147483647, 0u)": 2**32 - 1,
        "__mul64hi(-1ll, 5ll)": -1, "(long long)(__brevll(3ull) >> 62)": 3, "umin(~0u, 1u)": 1,
        "llmax(-5ll, -6ll)": -5, "__ldcv(out + 40) + __ldlu(out + 40)": 14,
        "(atomicAdd_block(&counter, 2), atomicMax_system(&counter, 9))": 2,
    }  # fmt: skip
    lines = " ".join(f"out[{i}] = {value};" for i, value in enumerate(values))
    text = f"""__device__ int counter;
    extern "C" __global__ void k(long long* out) {{
        counter = 0;
        __stwb(out + 40, 7);
        {lines}
    }}"""
    (out,) = emulator.check(text, grid=(1,), block=(1,), args=[np.zeros(41, np.int64)])
    assert dict(zip(values, out.tolist(), strict=False)) == values
