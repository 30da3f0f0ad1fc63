"""Headers written into sources, and kernels' parameters."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import compiler, source


def test_headers_are_inlined_once_with_line_marks(tmp_path):
    (tmp_path / "a.cuh").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.cuh").write_text('#include "a.cuh"\nint b;\n')
    (tmp_path / "k.cu").write_text(
        '// k\n#include "a.cuh"\n#include "b.cuh"\n#include <x.h>\nint k;\n'
    )
    text = source.inline(tmp_path / "k.cu")
    assert text.count("int a;") == text.count("int b;") == 1
    assert "#include <x.h>" in text
    lines = text.splitlines()
    mark = max(i for i, line in enumerate(lines) if line.startswith("#line"))
    assert lines[mark : mark + 3] == ['#line 4 "k.cu"', "#include <x.h>", "int k;"]


def test_a_missing_header_is_named_with_its_line(tmp_path):
    (tmp_path / "k.cu").write_text('\n#include "none.cuh"\n')
    with pytest.raises(FileNotFoundError, match=r"k\.cu:2: no header 'none\.cuh'"):
        source.inline(tmp_path / "k.cu")


def test_headers_that_are_not_beside_a_source_are_the_shipped_ones(tmp_path):
    path = tmp_path / "k.cu"
    path.write_text("""#include "ptx.cuh"
extern "C" __global__ void k(const float* x, float* out) {
    __shared__ __align__(16) float tile[4];
    cp_async_16(tile, x);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 4; i++) out[i] = tile[i];
}
""")
    text = source.inline(path)
    x = np.arange(4, dtype=np.float32)
    _, out = emulator.check(path, grid=(1,), block=(1,), args=(x, emulator.empty(4)))
    np.testing.assert_array_equal(out, x)
    assert compiler.compile_cubin(text, "k.cu", "sm_80").resources.keys() == {"k"}
    (tmp_path / "ptx.cuh").write_text("int mine;\n")
    assert "int mine;" in source.inline(path)
    assert "cp.async" not in source.inline(path)


def test_parameters_of_every_kernel():
    text = """
    // extern "C" __global__ void commented(int a) {}
    extern "C" __global__ void __launch_bounds__(256)
        first(const T* __restrict__ x, float* y, int n, unsigned long long m, float scale) {}
    template <class A> __device__ void helper(A a);
    extern "C" __global__ void second() {}
    """
    found = source.signatures(text)
    assert [(p.name, p.type, p.dtype) for p in found["first"]] == [
        ("x", "T *", None),
        ("y", "float *", None),
        ("n", "int", np.dtype("int32")),
        ("m", "unsigned long long", np.dtype("uint64")),
        ("scale", "float", np.dtype("float32")),
    ]
    assert found["second"] == ()
    assert set(found) == {"first", "second"}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ('extern "C" __global__ void k(@) {}', None),
        ('extern "C" __global__ void __launch_bounds__(int(32)) k(@) {}', "int(32)"),
        ('extern "C" __launch_bounds__(32) __global__ void k(@) {}', "32"),
        ('extern "C" __global__ __launch_bounds__(32, 2) void k(@) {}', "32"),
        ('extern "C" void __launch_bounds__(max(32, 64)) __global__ k(@) {}', "max(32, 64)"),
        ('extern"C"\n__global__ void __launch_bounds__((A + (1)) * 2)\nk (@)\n{}', "(A + (1)) * 2"),
        ('extern "C" { int a; __global__ void k(@) { if (a) { a = 1; } } }', None),
        ('extern "C" {\n__launch_bounds__(f(8), 1)\n__global__ void k(@) {}\n}', "f(8)"),
        ('extern "C" __cluster_dims__(2) __global__ __launch_bounds__(8) void k(@) {}', "8"),
        ('extern "C" __global__ void k(float*);\nextern "C" __global__ void k(@) {}', None),
        ('char c = \'{\', *s = "extern {";\nextern "C" __global__ void k(@) {}', None),
        ('__global__ void other(Thing t) {}\nextern "C" __global__ void k(@) {}', None),
        ('#line 1 "k.cu"\nextern "C" __global__ void k(@) {}', None),
        ('template <int N> __global__ void f() {}\nextern "C" __global__ void k(@) {}', None),
        ('#define A {\\\n extern "C" __global__\nextern "C" __global__ void k(@) {}', None),
    ],
)
def test_every_way_to_declare_a_kernel(text, bound):
    parameters = "const float* x, /* of them, ) */ int n"
    found = source.declarations(text.replace("@", parameters))
    assert {name: declared.bound for name, declared in found.items()} == {"k": bound}
    kinds = [(p.name, p.type, p.dtype) for p in found["k"].parameters]
    assert kinds == [("x", "float *", None), ("n", "int", np.dtype("int32"))]


@pytest.mark.parametrize(
    ("declared", "name", "kind", "dtype"),
    [
        ("const float x[]", "x", "float *", None),
        ("float x[8]", "x", "float *", None),
        ("float* const __restrict__ x", "x", "float *", None),
        ("const T *__restrict__ x", "x", "T *", None),
        ("float* const* x", "x", "float **", None),
        ("float* x[]", "x", "float **", None),
        ("long unsigned int* x", "x", "unsigned long *", None),
        ("const volatile unsigned x", "x", "unsigned", "uint32"),
        ("size_t n", "n", "size_t", "uint64"),
        ("unsigned long n", "n", "unsigned long", "uint64"),
        ("long unsigned int n", "n", "unsigned long", "uint64"),
        ("long n", "n", "long", "int64"),
        ("long int n", "n", "long", "int64"),
        ("signed n", "n", "int", "int32"),
        ("int unsigned n", "n", "unsigned int", "uint32"),
        ("float *", "", "float *", None),
        ("unsigned int", "", "unsigned int", "uint32"),
        ("const __grid_constant__ TensorMap x", "x", "TensorMap", None),
    ],
)
def test_every_way_to_declare_a_parameter(declared, name, kind, dtype):
    (found,) = source.signatures(f'extern "C" __global__ void k({declared}) {{}}')["k"]
    assert found[:3] == (name, kind, None if dtype is None else np.dtype(dtype))


@pytest.mark.parametrize(
    ("declared", "constant"),
    [
        ("const float* x", True),
        ("float const* x", True),
        ("const T* __restrict__ x", True),
        ("const float x[]", True),
        ("float* x", False),
        ("float* const x", False),
        ("float* __restrict__ x", False),
        ("const int n", False),
        ("const __grid_constant__ TensorMap x", True),
        ("TensorMap x", False),
    ],
)
def test_whether_a_kernel_only_reads_what_a_pointer_points_to(declared, constant):
    (found,) = source.signatures(f'extern "C" __global__ void k({declared}) {{}}')["k"]
    assert found.constant is constant


def test_a_kernel_without_parameters():
    assert source.signatures('extern "C" __global__ void k(void) {}') == {"k": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extern "C" __global__ void f(float& t) {}', "'t' has type 'float &'"),
        ('extern "C" __global__ void f(float (*t)[2]) {}', r"has type 'float \(\*t\)\[2\]'"),
        ('extern "C" __global__ void f(Pair<int, T> t) {}', "'t' has type 'Pair < int , T >'"),
        ('extern "C" __global__ void BOUNDS(32) f(int n) {}', "'BOUNDS' cannot be read"),
        ('\nextern "C" __global__ void f(int n {}', r"'\(' in line 2 is not closed"),
        ('extern "C" __global__ void f(Thing t) {}', "'t' has type 'Thing'"),
        ('extern "C" __global__ void f() {} extern "C" __global__ void f(int n) {}', "twice"),
    ],
)
def test_what_a_launch_cannot_pass_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        source.signatures(text)


@pytest.mark.parametrize("path", sorted(source.folder().glob("*.cu")), ids=lambda p: p.stem)
def test_shipped_kernels_can_be_read(path):
    kernels = source.signatures(source.inline(path))
    assert kernels
    assert all(any(word in name for word in path.stem.split("_")) for name in kernels)


@pytest.mark.parametrize("path", sorted(source.folder().glob("*.cu*")), ids=lambda p: p.name)
def test_rules_of_the_sources(path):
    text = re.sub(r"//[^\n]*", "", path.read_text())
    if path.name != "ptx.cuh":
        assert "asm" not in text
        assert "__CUDA_ARCH__" not in text
    assert "__activemask" not in text
    assert "cooperative_groups" not in text
    assert not re.search(r"__syncthreads\(\);[ \t]*\S|\S[ \t]*__syncthreads\(\);", text)
