"""Tensor maps: what they say of an array, what cannot be described."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from gpugrad import backend, cuda
from gpugrad.cuda import arguments, compiler, source, tensor_map

MAP = arguments.Parameter("x", tensor_map.NAME, None, True)


def passed(value):
    return arguments.checked("k", [MAP], [value], {})


def test_a_map_in_the_open():
    x = np.zeros((2, 7, 3, 3, 64), np.float16)[:, :, 1].transpose(0, 2, 1, 3)
    (given,) = passed(cuda.strided(x, (1, 1, 5, 64)))
    made = tensor_map.in_the_open(*given, 4096)
    assert (made.shape, made.nbytes, made.ctypes.data % 64) == ((), 128, 0)
    assert (made["start"], made["axes"], made["itemsize"]) == (4096, 4, 2)
    assert made["lengths"].tolist() == [64, 7, 3, 2, 0]
    assert made["strides"].tolist() == [2, 2 * 9 * 64, 2 * 64, 2 * 7 * 9 * 64, 0]
    assert made["box"].tolist() == [64, 5, 1, 1, 0]
    assert not tensor_map.in_the_open(x, None, 4096)["box"].any()


@pytest.mark.parametrize(
    ("shape", "dtype", "box", "what"),
    [
        ((4, 64), "float16", (64,), "a box of 1 axes, an array of 2"),
        ((4, 64), "complex64", (4, 16), "elements of complex64"),
        ((4, 64), "float16", (4, 32), r"a box of \(4, 32\): its lines have 128 bytes"),
        ((4, 64), "float32", (4, 64), "its lines have 128 bytes"),
        ((400, 64), "float16", (257, 64), "its axes 1 to 256 elements"),
        ((0, 64), "float16", (4, 64), r"an array of shape \(0, 64\)"),
        ((4, 65), "float16", (4, 64), "a stride of 130 bytes; multiples of 16"),
    ],
)
def test_what_no_map_describes(shape, dtype, box, what):
    with pytest.raises(ValueError, match=f"kernel 'k', argument 'x': no TensorMap .*{what}"):
        passed(cuda.strided(np.zeros(shape, dtype), box))


def test_elements_that_repeat_or_lie_apart():
    row = np.zeros((1, 64), np.float16)
    box = (4, 64)
    assert tensor_map.refusal(row, box) is None
    assert "a stride of 0" in tensor_map.refusal(np.broadcast_to(row, (4, 64)), box)
    assert "a stride of -128" in tensor_map.refusal(np.zeros((4, 64), np.float16)[::-1], box)
    assert "4 bytes apart" in tensor_map.refusal(np.zeros((4, 128), np.float16)[:, ::2], box)
    # the stride of an axis with one element says nothing
    apart = np.lib.stride_tricks.as_strided(row, (1, 64), (6, 2))
    assert tensor_map.refusal(apart, box) is None


def test_what_is_no_array():
    for value in (np.zeros((4, 64), np.float16), None, 3):
        with pytest.raises(TypeError, match=r"a TensorMap is made of strided\(array\), not of"):
            passed(value)
    with pytest.raises(ValueError, match="5 axes at most, the array has 6"):
        tensor_map.in_the_open(np.zeros((1,) * 6), None, 0)


def test_the_kernels_mirror_the_layout():
    """The same names in the same order; static assertions elsewhere hold the sizes."""
    header = (source.folder() / "ptx.cuh").read_text("utf-8")
    body = re.search(r"struct alignas\(64\) TensorMap \{(.*?)\};", header, re.S)[1]
    body = re.sub(r"//.*", "", body)
    declared = re.findall(r"(\w+)(\[5\])?\s*[,;]", body)
    layout = [(n, tensor_map.LAYOUT[n].shape == (5,)) for n in tensor_map.LAYOUT.names[:-1]]
    assert [(name, bool(five)) for name, five in declared] == layout


def test_the_drivers_numbers():
    """As CUDA's header has them, where it is installed."""
    headers = [folder / "cuda.h" for folder in compiler.include_folders()]
    found = [header for header in headers if header.is_file()]
    if not found:
        pytest.skip("cuda.h is not installed")
    text = Path(found[0]).read_text(encoding="utf-8", errors="replace")

    def enum(name):
        body = re.search(rf"typedef enum {name}_enum \{{(.*?)\}}", text, re.S)[1]
        return re.findall(r"(CU_TENSOR_MAP_\w+)", body)

    names = enum("CUtensorMapDataType")
    for dtype, code in tensor_map._DTYPES.items():
        assert names[code] == f"CU_TENSOR_MAP_DATA_TYPE_{dtype.name.upper()}"
    assert enum("CUtensorMapSwizzle")[tensor_map.SWIZZLE_128B].endswith("_128B")
    assert enum("CUtensorMapL2promotion")[tensor_map.PROMOTE_TO_128].endswith("_128B")
    assert enum("CUtensorMapInterleave")[0].endswith("_NONE")
    assert enum("CUtensorMapFloatOOBfill")[0].endswith("_NONE")
    declared = re.search(r"CUresult CUDAAPI cuTensorMapEncodeTiled\((.*?)\);", text, re.S)[1]
    assert declared.count(",") + 1 == len(tensor_map._ARGUMENTS)
    assert backend.bfloat16 in tensor_map._DTYPES
