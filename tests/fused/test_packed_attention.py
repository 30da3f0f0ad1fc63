"""Packed attention: the bits of attention on its three parts, one gradient, no copies."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import fused, ops, testing
from gpugrad.fused import FUSED, packed_attention
from gpugrad.ops.random import Draw

NAME = "packed_attention"
SHAPES = [(1, 1, 3, 1, 1), (2, 5, 3, 3, 2), (1, 67, 3, 2, 8), (0, 4, 3, 2, 2), (2, 0, 3, 1, 4)]


def drawn(shape, dtype="float32"):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return gg.Tensor(x, requires_grad=True)


def apart(qkv, **given):
    """Return the same by attention on three arrays."""
    q, k, v = (ops.swapaxes(part, 1, 2) for part in ops.unstack(qkv, 2))
    out = ops.swapaxes(fused.scaled_dot_product_attention(q, k, v, **given), 1, 2)
    return ops.reshape(out, (*qkv.shape[:2], qkv.shape[3] * qkv.shape[4]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_obeys_the_tolerance_rule(shape, is_causal, dtype):
    given = {"scale": 0.4, "is_causal": is_causal, "offset": 0}

    def spec(qkv):
        return FUSED[NAME].spec(qkv, **given, dropout_p=0.0, draw=Draw(0, 0))

    scale = {"float64": 1e3, "float32": 4.0}.get(dtype, 0.0)  # as in test_attention
    testing.assert_implements(
        lambda qkv: packed_attention(qkv, **given), spec, [drawn(shape)], dtype, scale=scale
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_the_bits_of_attention_on_three_arrays(shape, p, dtype):
    x = drawn(shape, dtype)
    found = []
    for f in (packed_attention, apart):
        gg.manual_seed(4)
        out = f(x, dropout_p=p, is_causal=True, scale=0.3, offset=1)
        upstream = gg.Tensor(np.cos(np.arange(out.size)).reshape(out.shape).astype(dtype))
        found.append((out.data, gg.grad(out, x, upstream)[0].data, gg.random.get_state()))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_copied_around_it():
    x = drawn((2, 5, 3, 3, 4))
    out = packed_attention(x)
    (g,) = gg.grad(out.sum(), x)
    assert out.data.flags.c_contiguous
    assert g.data.flags.c_contiguous
    assert g.data.base is None or g.data.base.nbytes == g.data.nbytes


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_any_memory_layout(layout):
    x = drawn((2, 5, 3, 3, 4), "float64")
    other = gg.Tensor(dict(testing.layouts(x.data))[layout], requires_grad=True)
    (g,), (h,) = (gg.grad(packed_attention(t, is_causal=True).sum(), t) for t in (x, other))
    np.testing.assert_allclose(h.data, g.data, rtol=0, atol=1e-14)


def test_the_implementation_is_launched_once(launching):
    with launching(NAME):
        packed_attention(drawn((2, 5, 3, 3, 2)), is_causal=True).sum().backward()


@pytest.mark.parametrize(
    ("shape", "given", "error", "message"),
    [
        ((3, 2), {}, ValueError, r"must be \(B, T, 3, H, D\), got .*"),
        ((2, 4, 2, 3, 1), {}, ValueError, r"must be \(B, T, 3, H, D\), got .*"),
        ((1, 1, 3, 1, 1), {"dropout_p": -1}, ValueError, "dropout_p is a probability, .* got -1"),
        ((1, 1, 3, 1, 1), {"offset": 0.5}, TypeError, "offset must be an integer, got 0.5"),
    ],
)
def test_bad_arguments(shape, given, error, message):
    with pytest.raises(error, match=f"{NAME}: .*{message}"):
        packed_attention(np.ones(shape), **given)
