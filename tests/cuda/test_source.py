"""Headers written into sources, and kernels' parameters."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gpugrad.cuda import source


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
    ("text", "message"),
    [
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
