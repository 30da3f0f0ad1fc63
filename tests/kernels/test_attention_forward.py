"""Attention forward by kernel: the spec's values, no fault, the same bits in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, fused, testing
from gpugrad.fused import FUSED, _attention_forward, _attention_layout
from gpugrad.ops.random import Draw

NAME = "scaled_dot_product_attention"
DTYPES = ["float32", "bfloat16", "float16"]
TWO = ["float32", "bfloat16"]
ONCE = emulator.SWEEP[:1]
QUICK = emulator.SWEEP[4:5]


def statics(width, **given):
    chosen = {"scale": 1 / math.sqrt(width), "is_causal": False, "offset": 0}
    return {**chosen, "dropout_p": 0.0, "draw": Draw(2**40 + 7, 3), **given}


def drawn(shape, dtype, spread=1.0):
    """Return query, key and value for a shape (B, H, T, S, D)."""
    b, h, t, s, d = shape
    rng = np.random.default_rng(0)
    shapes = [((b, h, t, d), spread), ((b, h, s, d), spread), ((b, h, s, d), 1.0)]
    return [rng.normal(0, spread, x).astype(dtype) for x, spread in shapes]


def by_kernel(inputs, given, sweep=emulator.SWEEP):
    """Return (out, lse)."""

    def run():
        out, (saved, lse) = _attention_forward.forward(*inputs, None, **given)
        assert np.shares_memory(saved, out)
        return out, lse

    return emulator.sweep(run, sweep)


def lse_of(q, k, v, scale, is_causal, offset, **others):
    """Return log(sum(exp(scores))) in float64, inf for a query that sees no key."""
    s = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * scale
    if is_causal:
        s = np.where(np.arange(s.shape[3]) <= np.arange(s.shape[2])[:, None] + offset, s, -np.inf)
    top = s.max(-1, keepdims=True)
    top[top == -np.inf] = 0
    with np.errstate(divide="ignore"):
        lse = top[..., 0] + np.log(np.exp(s - top).sum(-1))
    return np.where(lse == -np.inf, np.inf, lse)


def agrees(inputs, given, sweep=emulator.SWEEP, scale=0.0):
    """Compare with the spec; return (out, lse)."""
    out, lse = by_kernel(inputs, given, sweep)
    tensors = [gg.Tensor(x) for x in inputs]
    spec = FUSED[NAME].spec
    plain = spec(*tensors, None, **given)
    exact = spec(*(x.astype("float64") for x in tensors), None, **given)
    testing.assert_close(out, exact, plain, 2.0, scale)
    expected = lse_of(*inputs, **given)
    size = np.abs(expected, where=np.isfinite(expected), out=np.ones_like(expected)).max()
    np.testing.assert_allclose(lse, expected, rtol=0, atol=4e-6 * max(size, 1))
    return out, lse


# Values


@pytest.mark.parametrize(
    "given",
    [{}, {"is_causal": True}, {"is_causal": True, "dropout_p": 0.3}],
    ids=["full", "causal", "dropout"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_spec(dtype, given):
    agrees(drawn((1, 2, 70, 75, 64), dtype), statics(64, **given))


@pytest.mark.parametrize(
    ("shape", "offset"),
    [
        ((1, 1, 1, 1, 64), 0),
        ((2, 1, 1, 130, 64), 129),  # one query and a cache
        ((2, 3, 5, 3, 50), 0),  # more queries than keys, a width of no whole packs
        ((1, 2, 5, 67, 64), 62),  # the last queries of a cache
        ((1, 2, 131, 40, 64), -70),  # tiles of queries that see no key
        ((1, 1, 20, 190, 64), 7),  # tiles of keys that nobody sees
        ((1, 1, 9, 9, 64), -9),  # nothing is seen
        ((1, 1, 9, 9, 64), 10**12),  # everything
        ((1, 1, 9, 9, 64), -(10**12)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", TWO)
def test_causal_alignment(shape, offset, dtype):
    agrees(
        drawn(shape, dtype), statics(shape[4], is_causal=True, offset=offset), emulator.SWEEP[:2]
    )


@pytest.mark.parametrize("keys", [1, 15, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("dtype", TWO)
def test_edges_of_tiles(keys, dtype):
    for queries in (1, keys, 64, 65, 129):
        agrees(drawn((1, 1, queries, keys, 16), dtype), statics(16, is_causal=True), ONCE)
    agrees(drawn((1, 1, 3, keys, 16), dtype), statics(16), ONCE)


@pytest.mark.parametrize("queries", [7, 65])
@pytest.mark.parametrize("width", [1, 16, 33, 40, 96, 128, 129, 256])
@pytest.mark.parametrize("dtype", TWO)
def test_widths(width, queries, dtype):
    agrees(drawn((1, 1, queries, 35, width), dtype), statics(width, is_causal=True), ONCE)


@pytest.mark.parametrize("dtype", TWO)
def test_many_tiles_and_heads_in_groups(dtype, monkeypatch):
    inputs = drawn((2, 3, 150, 203, 16), dtype)
    given = statics(16, is_causal=True, offset=53)
    expected = agrees(inputs, given, QUICK)
    monkeypatch.setattr(_attention_layout, "CACHE", 4 * 2 * inputs[1][0, 0].nbytes)
    for a, b in zip(by_kernel(inputs, given, QUICK), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", TWO)
def test_many_rows(dtype):
    agrees(drawn((1, 1, 65603, 3, 4), dtype), statics(4), QUICK)


def test_one_query_is_the_last_of_many():
    q, k, v = drawn((1, 2, 140, 140, 64), "bfloat16")
    whole, _ = by_kernel([q, k, v], statics(64, is_causal=True), QUICK)
    last, _ = by_kernel([q[:, :, -1:], k, v], statics(64, is_causal=True, offset=139), QUICK)
    np.testing.assert_array_equal(last, whole[:, :, -1:])


# Dropout


@pytest.mark.parametrize("p", [2**-20, 0.5, 1 - 2**-20])
@pytest.mark.parametrize(
    "shape", [(2, 1, 21, 34, 64), (1, 2, 7, 5, 50), (1, 1, 66, 37, 128)], ids=str
)
@pytest.mark.parametrize("dtype", TWO)
def test_dropout(dtype, shape, p):
    agrees(drawn(shape, dtype), statics(shape[4], dropout_p=p), ONCE)


def test_dropout_counts_beyond_32_bits():
    given = statics(16, dropout_p=0.5, draw=Draw(2**64 - 1, 2**33 - 5))
    agrees(drawn((1, 2, 9, 11, 16), "bfloat16"), given, ONCE)


@pytest.mark.parametrize("dtype", TWO)
def test_dropout_from_a_state_on_the_device(dtype):
    inputs = drawn((1, 2, 37, 21, 16), dtype)
    given = statics(16, dropout_p=0.3, draw=Draw(2**63 + 7, 2**32 + 3))
    expected = by_kernel(inputs, given, ONCE)
    given["draw"] = Draw(5, 13, np.array([2**63 + 7, 2**32 - 10], np.uint64))
    for a, b in zip(by_kernel(inputs, given, ONCE), expected, strict=True):
        np.testing.assert_array_equal(a, b)


# Memory


@pytest.mark.parametrize("dtype", TWO)
@pytest.mark.parametrize(
    "layout", ["shifted", "reversed", "rows apart", "axes apart", "heads last"]
)
def test_layouts_do_not_change_a_bit(layout, dtype):
    inputs, given = drawn((1, 2, 11, 13, 48), dtype), statics(48, is_causal=True)

    def laid_out(x):
        if layout == "shifted":  # not a multiple of 16 bytes
            view = np.zeros(x.size + 1, x.dtype)[1:].reshape(x.shape)
        elif layout == "reversed":
            view = np.zeros_like(x)[:, ::-1, ::-1]
        elif layout == "rows apart":
            view = np.zeros((*x.shape[:3], x.shape[3] + 3), x.dtype)[..., : x.shape[3]]
        elif layout == "axes apart":
            view = np.zeros((x.shape[3], *x.shape[:3]), x.dtype).transpose(1, 2, 3, 0)
        else:
            view = np.zeros([x.shape[i] for i in (0, 2, 1, 3)], x.dtype).swapaxes(1, 2)
        view[...] = x
        return view

    expected = by_kernel(inputs, given, ONCE)
    found = by_kernel([laid_out(x) for x in inputs], given, emulator.SWEEP[:2])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert found[0].swapaxes(1, 2).flags.c_contiguous == (layout == "heads last")


@pytest.mark.parametrize("dtype", TWO)
def test_one_array_off_the_grid_is_enough(dtype):
    inputs, given = drawn((1, 2, 11, 13, 48), dtype), statics(48)
    expected, _ = by_kernel(inputs, given, ONCE)
    for i in range(3):
        shifted = list(inputs)
        shifted[i] = np.zeros(inputs[i].size + 1, dtype)[1:].reshape(inputs[i].shape)
        shifted[i][...] = inputs[i]
        np.testing.assert_array_equal(by_kernel(shifted, given, ONCE)[0], expected)


# Odd: no row, head or batch but the first at a multiple of 16 bytes. Huge: beyond 32 bits.
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["batches", "heads", "rows"])
@pytest.mark.parametrize("dtype", TWO)
def test_axes_of_one_array_any_distance_apart(dtype, axis, apart):
    inputs, given = drawn((2, 2, 2, 67, 16), dtype), statics(16)  # more keys than a tile has
    expected = by_kernel(inputs, given, ONCE)
    for i in range(3):
        huge = 2**32 // inputs[i].shape[axis] // 8 * 8 + 8
        for distance, sweep in ((4 * 67 * 16 + 1, ONCE), (huge, QUICK)):
            moved = list(inputs)
            moved[i] = apart(inputs[i], axis, distance)
            for a, b in zip(by_kernel(moved, given, sweep), expected, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", TWO)
def test_keys_and_values_without_memory_of_their_own(dtype):
    q, k, v = drawn((2, 3, 9, 9, 16), dtype)
    shared = [np.broadcast_to(x[:1, :1], x.shape) for x in (k, v)]
    copies = [x.copy() for x in shared]
    expected = by_kernel([q, *copies], statics(16), ONCE)
    for a, b in zip(by_kernel([q, *shared], statics(16), ONCE), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)], ids=str)
def test_leading_axes(lead):
    b, h = (1, 1, *lead)[-2:] if len(lead) < 3 else (2, 3)
    inputs = drawn((b, h, 5, 6, 64), "float32")
    expected, _ = by_kernel(inputs, statics(64), ONCE)
    shaped = [x.reshape(*lead, *x.shape[2:]) for x in inputs]
    found, _ = by_kernel(shaped, statics(64), ONCE)
    np.testing.assert_array_equal(found, expected.reshape(*lead, 5, 64))


@pytest.mark.parametrize("dtype", TWO)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_packed_is_the_same_bits(p, dtype):
    packed = np.random.default_rng(1).normal(size=(2, 19, 3, 3, 64)).astype(dtype)
    q, k, v = (np.ascontiguousarray(packed[:, :, i].swapaxes(1, 2)) for i in range(3))
    given = statics(64, is_causal=True, dropout_p=p)
    expected, _ = by_kernel([q, k, v], given, ONCE)
    op = FUSED["packed_attention"]
    before = op.launches["cuda"]
    found = emulator.sweep(lambda: op(gg.Tensor(packed), **given))
    assert op.launches["cuda"] == before + len(emulator.SWEEP)
    assert found.data.flags.c_contiguous
    np.testing.assert_array_equal(found.data, expected.swapaxes(1, 2).reshape(2, 19, 192))


@pytest.mark.parametrize("dtype", TWO)
def test_packed_gradients_lie_in_one_array(dtype):
    packed = np.random.default_rng(1).normal(size=(1, 37, 3, 2, 64)).astype(dtype)
    g = np.random.default_rng(2).normal(size=(1, 37, 128)).astype(dtype)
    given = statics(64, is_causal=True, dropout_p=0.2)

    def together():
        x = gg.Tensor(packed, requires_grad=True)
        out = FUSED["packed_attention"](x, **given)
        return gg.grad(out, x, gg.Tensor(g))[0]

    def apart():
        parts = [packed[:, :, i].swapaxes(1, 2).copy() for i in range(3)]
        tensors = [gg.Tensor(x, requires_grad=True) for x in parts]
        out = FUSED[NAME](*tensors, None, **given)
        upstream = g.reshape(1, 37, 2, 64).swapaxes(1, 2)
        return gg.grad(out, tensors, gg.Tensor(upstream))

    found, expected = emulator.sweep(together).data, emulator.sweep(apart, ONCE)
    assert found.flags.c_contiguous
    for i in range(3):
        np.testing.assert_array_equal(found[:, :, i].swapaxes(1, 2), expected[i].data)


# Extreme values


@pytest.mark.parametrize("dtype", TWO)
def test_a_query_that_sees_no_key_gives_zero(dtype):
    out, lse = by_kernel(drawn((1, 1, 9, 7, 64), dtype), statics(64, is_causal=True, offset=-4))
    assert not out[0, 0, :4].any()
    assert out[0, 0, 4:].astype(np.float32).any(-1).all()
    assert (lse[0, 0, :4] == math.inf).all()
    assert np.isfinite(lse[0, 0, 4:]).all()


@pytest.mark.parametrize("dtype", TWO)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_spoil_their_query_only(bad, dtype):
    inputs = drawn((1, 2, 79, 70, 64), dtype)
    inputs[0][0, 1, 68, 5] = bad
    out, lse = (x.astype(np.float32) for x in by_kernel(inputs, statics(64), ONCE))
    assert np.isnan(out[0, 1, 68]).all()
    assert np.isnan(lse[0, 1, 68])
    out[0, 1, 68] = lse[0, 1, 68] = 0
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", TWO)
@pytest.mark.parametrize("where", ["first tile", "last tile", "alone"])
def test_minus_infinity_is_a_key_that_is_not_seen(where, dtype):
    q, k, v = (np.abs(x) for x in drawn((1, 1, 5, 140, 64), dtype))
    gone = {"first tile": slice(0, 64), "last tile": slice(128, None), "alone": slice(None)}[where]
    k[0, 0, gone] = -math.inf
    out, lse = agrees([q, k, v], statics(64), ONCE)
    if where == "alone":
        assert not out.any()
        assert (lse == math.inf).all()


@pytest.mark.parametrize("dtype", TWO)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_hidden_has_no_influence(bad, dtype):
    inputs, given = drawn((1, 2, 70, 70, 64), dtype), statics(64, is_causal=True)
    before, _ = by_kernel(inputs, given, ONCE)
    for x in inputs[:2]:
        x[:, :, 50:] = bad
    after, _ = by_kernel(inputs, given, ONCE)
    np.testing.assert_array_equal(after[:, :, :50], before[:, :, :50])


@pytest.mark.parametrize("spread", [1e-6, 5.0, 30.0, 1e4, 1e15])
@pytest.mark.parametrize("dtype", TWO)
def test_small_and_huge_scores(spread, dtype):
    # averages of 150 values: the terms are larger than what is left of them
    agrees(drawn((1, 2, 19, 150, 8), dtype, spread), statics(8), ONCE, scale=1.0)


@pytest.mark.parametrize("step", [0.02, 0.3, 100.0, -0.3])
@pytest.mark.parametrize("dtype", TWO)
def test_the_maximum_grows_from_tile_to_tile(step, dtype):
    q, k, v = drawn((1, 1, 17, 250, 16), dtype, 0.01)
    q[..., 0], k[..., 0] = 4, step * np.arange(250)
    agrees([q, k, v], statics(16), ONCE)


# Which implementation


def test_the_kernel_is_launched_once():
    op, inputs = FUSED[NAME], [gg.Tensor(x) for x in drawn((1, 1, 3, 4, 8), "bfloat16")]
    before = op.launches.copy(), cuda.launches.copy()
    with emulator.enabled():
        fused.scaled_dot_product_attention(*inputs, is_causal=True)
    assert op.launches - before[0] == {"cuda": 1}
    assert cuda.launches - before[1] == {"attention_forward": 1}


@pytest.mark.parametrize(
    ("shape", "dtype", "given"),
    [
        ((1, 1, 3, 4, 8), "float64", {}),
        ((1, 1, 3, 4, 257), "float32", {}),
        ((1, 1, 3, 4, 8), "float32", {"scale": -1.0}),
        ((1, 1, 3, 4, 8), "float32", {"dropout_p": 1.0}),
        ((1, 1, 3, 0, 8), "float32", {}),
    ],
    ids=str,
)
def test_what_does_not_fit_is_for_numpy(shape, dtype, given):
    op, inputs = FUSED[NAME], [gg.Tensor(x) for x in drawn(shape, dtype)]
    expected = fused.scaled_dot_product_attention(*inputs, **given)
    before = op.launches.copy()
    with emulator.enabled():
        found = fused.scaled_dot_product_attention(*inputs, **given)
    assert op.launches - before == {"numpy": 1}
    np.testing.assert_array_equal(found.data, expected.data)


def test_masks_are_for_products_and_a_softmax():
    inputs = [gg.Tensor(x) for x in drawn((1, 1, 3, 4, 8), "float32")]
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    expected = fused.scaled_dot_product_attention(*inputs, attn_mask=mask)
    before = FUSED[NAME].launches.copy(), FUSED["softmax"].launches.copy()
    with emulator.enabled():
        found = fused.scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert FUSED[NAME].launches == before[0]
    assert FUSED["softmax"].launches - before[1] == {"cuda": 1}
    np.testing.assert_allclose(found.data, expected.data, atol=1e-6)
    assert not found.data[0, 0, 1].any()


def test_values_of_another_width_are_for_numpy():
    q, k, v = (gg.Tensor(x) for x in drawn((1, 1, 3, 4, 8), "float32"))
    before = FUSED[NAME].launches.copy()
    with emulator.enabled():
        fused.scaled_dot_product_attention(q, k, v[..., :5])
    assert FUSED[NAME].launches - before == {"numpy": 1}


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_tile_fits_every_gpu(itemsize):
    for width in range(1, _attention_forward.WIDEST + 1):
        for queries in (1, 64, 65, 1000):
            for dropout in (False, True):
                tile = _attention_forward.tile(itemsize, width, queries, dropout)
                assert tile.shared <= 99 << 10
                assert tile.macros["HEAD_DIM"] >= width
