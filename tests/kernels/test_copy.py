"""copy.cu: copies between arrays of any layout."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import launches
from gpugrad.cuda.copy import copy_strided


def layout(rng, shape):
    """Return the shape of some memory, and how it is viewed as an array with axes in any order."""
    order = rng.permutation(len(shape))
    gaps = rng.integers(1, 3, len(shape))
    inside = tuple(slice(None, n * gap, gap) for n, gap in zip(shape, gaps, strict=True))
    lengths = [shape[a] * gaps[a] for a in order]
    return lengths, lambda memory: memory.transpose(np.argsort(order))[inside]


@pytest.mark.parametrize("dtype", ["bool", "float16", "float32", "int64"])
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (3, 5), (2, 3, 4), (3, 1, 5, 2), (2, 3, 2, 3, 2), (2, 3, 2, 1, 3, 2, 2)],
    ids=str,
)
def test_copies(shape, dtype):
    rng = np.random.default_rng()
    (lengths, view_x), (lengths_out, view_out) = layout(rng, shape), layout(rng, shape)
    x = view_x(np.zeros(lengths, dtype))
    x[...] = rng.integers(0, 2 if dtype == "bool" else 100, shape)

    def run():
        memory = np.zeros(lengths_out, dtype)
        copy_strided(x, view_out(memory))
        return memory

    memory = emulator.sweep(run)
    np.testing.assert_array_equal(view_out(memory), x)
    assert np.count_nonzero(memory) == np.count_nonzero(x)  # what lies in gaps is left alone


def test_broadcast_and_many_elements():
    before = launches["copy_strided"]
    x, out = np.arange(3.0, dtype="f"), np.empty((40_001, 5, 3), np.float32)
    with emulator.enabled("plain"):
        copy_strided(np.broadcast_to(x, out.shape), out)
    assert (out == x).all()
    assert launches["copy_strided"] == before + 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_beyond_32_bits(axis, apart):
    x = np.random.default_rng(5).standard_normal((2, 2, 2)).astype("f")
    with emulator.enabled("plain"):
        for a, b in ((apart(x, axis, 2**31 + 8), x * 0), (x, apart(x * 0, axis, 2**31 + 8))):
            copy_strided(a, b)
            np.testing.assert_array_equal(b, x)


@pytest.mark.parametrize("mode", ["plain", "checked"])
def test_reversed_axes(mode):
    x = np.random.default_rng(4).standard_normal((3, 5, 7)).astype("f")
    with emulator.enabled(mode):
        for view in (np.s_[::-1], np.s_[:, ::-2, 1:], np.s_[::-1, ::-1, ::-3], np.s_[:0:-1, 2]):
            out = np.zeros(x[view].shape, np.float32)
            copy_strided(x[view], out)
            np.testing.assert_array_equal(out, x[view])
            into = np.zeros_like(x)
            copy_strided(out, into[view])
            np.testing.assert_array_equal(into[view], x[view])
            assert np.count_nonzero(into) == out.size


def test_what_cannot_be_copied():
    x = np.zeros((2, 2, 2, 2, 2, 2, 2), np.float32)
    odd = np.zeros((4,) * 7, np.float32)[(slice(None, None, 2),) * 7]
    with emulator.enabled("plain"):
        with pytest.raises(ValueError, match="too many axes"):
            copy_strided(odd, np.swapaxes(x, 0, 6))
        with pytest.raises(ValueError, match=r"x is float32\[3\], out float32\[4\]"):
            copy_strided(np.zeros(3, "f"), np.zeros(4, "f"))
