"""The CUDA kernel of rotary in the emulator, through the operation."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.fused import FUSED, rotary

DTYPES = ["float32", "bfloat16", "float16"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def tables(length, half):
    angles = np.arange(length)[:, None] * 100.0 ** (-np.arange(half) / half)
    return gg.Tensor(np.cos(angles)), gg.Tensor(np.sin(angles))


def drawn(shape, seed=0):
    rng = np.random.default_rng(seed)
    return gg.Tensor(rng.standard_normal(shape), requires_grad=True)


def results(x, cos, sin, start=0, upstream=None):
    """Return the result and the gradient of x, as arrays."""
    out = rotary(x, cos, sin, start)
    if upstream is None:
        upstream = np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype)
    return out.data, gg.grad(out, x, gg.Tensor(upstream))[0].data


def cast(x, cos, sin, dtype):
    x = gg.Tensor(x.data.astype(dtype), requires_grad=True)
    return x, gg.Tensor(cos.data.astype(dtype)), gg.Tensor(sin.data.astype(dtype))


def check(shape, start, dtype, settings=emulator.SWEEP):
    inputs = [drawn(shape), *tables(shape[-2] + start, shape[-1] // 2)]
    fast = functools.partial(rotary, start=start)
    before = FUSED["rotary"].launches["cuda"]
    with emulator.enabled():
        spec = functools.partial(FUSED["rotary"].spec, start=start)
        testing.assert_implements(fast, spec, inputs, dtype)
    assert FUSED["rotary"].launches["cuda"] == before + 1
    emulator.sweep(lambda: results(*cast(*inputs, dtype), start), settings)


# one pair; packs and none; more places than a block; rows that are no multiple of those of a thread
@dtypes
@pytest.mark.parametrize(
    ("shape", "start"),
    [
        ((1, 2), 0),
        ((5, 16), 3),
        ((3, 4, 6), 0),
        ((2, 3, 7, 32), 2),
        ((1, 5, 70, 34), 1),
        ((3, 2, 300, 16), 0),
        ((2, 3, 2, 5, 16), 0),
        ((5, 1, 1, 64), 9),
    ],
    ids=str,
)
def test_obeys_the_tolerance_rule(shape, start, dtype):
    check(shape, start, dtype)


@pytest.mark.parametrize("features", [2, 8])
def test_many_rows(features):
    check((70_000, 1, features), 0, "float32", settings=())


@dtypes
@pytest.mark.parametrize("size", [6, 16])
def test_queries_and_keys_cut_out_of_a_projection(size, dtype):
    packed = drawn((2, 5, 3, 3, size)).data.astype(dtype)
    cos, sin = (gg.Tensor(t.data.astype(dtype)) for t in tables(5, size // 2))
    upstream = drawn((2, 5, 3, 3, size), 1).data.astype(dtype)
    for part in range(3):
        x, g = (gg.Tensor(a).data[:, :, part].swapaxes(1, 2) for a in (packed, upstream))
        assert not x.flags.c_contiguous
        found = [
            emulator.sweep(
                lambda x=x, g=g: results(gg.Tensor(x, requires_grad=True), cos, sin, 0, g)
            )
            for x, g in ((x, g), (x.copy(), g.copy()))
        ]
        for a, b in zip(*found, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    inputs = cast(drawn((2, 3, 5, 8)), *tables(5, 4), "float32")
    arrays = [*(t.data for t in inputs), drawn((2, 3, 5, 8), 1).data.astype(np.float32)]
    found = []
    for name in ("contiguous", layout):
        x, cos, sin, g = (dict(testing.layouts(a))[name] for a in arrays)
        x = gg.Tensor(x, requires_grad=True)
        with emulator.enabled("checked"):
            outs = results(x, gg.Tensor(cos), gg.Tensor(sin), 0, g)
        found.append([a.tobytes() for a in outs])
    assert found[0] == found[1]


def test_an_upstream_gradient_without_memory_of_its_own():
    x, cos, sin = cast(drawn((2, 3, 5, 8)), *tables(5, 4), "float32")
    with emulator.enabled("checked"):
        (a,) = gg.grad(rotary(x, cos, sin).sum(), x)
    (b,) = gg.grad(rotary(x, cos, sin).sum(), x)
    np.testing.assert_allclose(a.data, b.data, rtol=1e-6, atol=1e-6)


@dtypes
@pytest.mark.parametrize("which", range(4), ids=["x", "cos", "sin", "g"])
def test_arrays_that_begin_anywhere(which, dtype):
    shapes = (2, 3, 5, 16), (6, 8), (6, 8), (2, 3, 5, 16)
    aligned = [drawn(shape, i).data.astype(dtype) for i, shape in enumerate(shapes)]
    arrays = list(aligned)
    memory = np.empty(1 + arrays[which].size, dtype)
    arrays[which] = memory[1:].reshape(shapes[which])
    arrays[which][...] = aligned[which]
    found = []
    for x, cos, sin, g in (aligned, arrays):
        with emulator.enabled("checked"):
            x = gg.Tensor(x, requires_grad=True)
            found.append(results(x, gg.Tensor(cos), gg.Tensor(sin), 1, g))
    for a, b in zip(*found, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("shape", [(2, 257), (2, 4, 65), (2, 4, 4, 17)], ids=str)
def test_batches_heads_or_rows_any_distance_apart(shape):
    memory, (cos, sin) = drawn(shape).data.astype(np.float32), tables(4, 8)
    x = memory[..., :-1].reshape(2, 4, 4, 16)  # a view
    assert np.shares_memory(x, memory)
    tables32 = cos.astype("float32"), sin.astype("float32")
    with emulator.enabled("checked"):
        found = [
            results(gg.Tensor(a, requires_grad=True), *tables32, upstream=a) for a in (x, x.copy())
        ]
    for a, b in zip(*found, strict=True):
        assert a.tobytes() == b.tobytes()


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["batches", "heads", "rows"])
def test_batches_heads_or_rows_beyond_32_bits(axis, dtype, apart):
    tensors = cast(drawn((2, 2, 2, 16)), *tables(2, 8), dtype)
    with emulator.enabled():
        expected = rotary(*tensors).data
        far = gg.Tensor(apart(tensors[0].data, axis, 2**31 + 8))
        np.testing.assert_array_equal(rotary(far, *tensors[1:]).data, expected)


def test_missing_and_infinite_values_stay_in_their_pairs():
    x, cos, sin = cast(drawn((2, 8)), *tables(2, 4), "float32")
    x.data[0, 1], x.data[1, 7] = np.nan, np.inf
    out, _ = emulator.sweep(lambda: results(x, cos, sin))
    assert np.argwhere(~np.isfinite(out)).tolist() == [[0, 1], [0, 5], [1, 3], [1, 7]]


def test_what_the_kernel_does_not_know_takes_another_way():
    cos, sin = tables(3, 2)
    before = FUSED["rotary"].launches["cuda"]
    with emulator.enabled():
        rotary(drawn((3, 4)), cos, sin)  # float64
        rotary(drawn((3, 4)).astype("bfloat16"), cos, sin)
        rotary(gg.zeros(0, 3, 4), cos.astype("float32"), sin.astype("float32"))
    assert FUSED["rotary"].launches["cuda"] == before
