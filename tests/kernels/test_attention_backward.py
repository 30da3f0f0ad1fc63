"""The gradients of attention by kernel: the spec's values, no fault, the same bits in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.fused import FUSED, _attention_backward, _attention_forward
from gpugrad.fused._tiles import dropout_mask
from gpugrad.ops.random import Draw

NAME = "scaled_dot_product_attention"
DTYPES = ["float32", "bfloat16", "float16"]
ALL = (True, True, True, False)
ONCE, QUICK = emulator.SWEEP[:1], emulator.SWEEP[4:5]
# (B, H, T, S, D)
SMALL = (1, 2, 37, 53, 64)


def statics(width, **given):
    chosen = {"scale": 1 / math.sqrt(width), "is_causal": False, "offset": 0}
    return {**chosen, "dropout_p": 0.0, "draw": Draw(2**40 + 7, 3), **given}


def drawn(shape, dtype, seed=0, spread=1.0):
    """Return query, key, value and the gradient of the result."""
    b, h, t, s, d = shape
    rng = np.random.default_rng(seed)
    sizes = [((b, h, t, d), spread), ((b, h, s, d), spread), ((b, h, s, d), 1), ((b, h, t, d), 1)]
    return [rng.normal(0, spread, size).astype(dtype) for size, spread in sizes]


def forward(q, k, v, scale, is_causal, offset, dropout_p, draw):
    """Return (out, lse) as the kernel saves them, computed in float64."""
    dtype = q.dtype
    q, k, v = (x.astype(np.float32).astype(np.float64) for x in (q, k, v))
    s = q @ k.swapaxes(-1, -2) * scale
    if is_causal:
        s = np.where(np.arange(s.shape[3]) <= np.arange(s.shape[2])[:, None] + offset, s, -np.inf)
    top = s.max(-1, keepdims=True)
    top[top == -np.inf] = 0
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, np.inf, top + np.log(total))[..., 0]
    p = e / np.where(total == 0, 1, total)
    if dropout_p:
        rows = math.prod(s.shape[:3])
        keep = dropout_mask(np, draw, 0, rows, s.shape[3], dropout_p).reshape(s.shape)
        p = np.where(keep, p / (1 - dropout_p), 0)
    return (p @ v).astype(dtype), lse.astype(np.float32)


def by_spec(inputs, dtype, given):
    q, k, v, g = (x.astype(dtype) for x in inputs)
    tensors = [gg.Tensor(x, requires_grad=True) for x in (q, k, v)]
    out = FUSED[NAME].spec(*tensors, None, **given)
    return [found.data for found in gg.grad(out, tensors, gg.Tensor(g))]


def by_kernel(inputs, given, wanted=ALL, sweep=emulator.SWEEP, saved=None):
    q, k, v, g = inputs
    saved = forward(q, k, v, **given) if saved is None else saved

    def run():
        return _attention_backward.backward(wanted, g, (q, k, v, None), saved, **given)

    return emulator.sweep(run, sweep)


def agrees(inputs, given, size=0.0, sweep=emulator.SWEEP, saved=None):
    """Compare with the spec; `size` is that of terms that cancel."""
    found = by_kernel(inputs, given, sweep=sweep, saved=saved)
    dtype = inputs[0].dtype
    exact, plain = (by_spec(inputs, kind, given) for kind in (np.float64, dtype))
    assert found[3] is None
    for name, a, e, p in zip(("query", "key", "value"), found, exact, plain, strict=False):
        testing.assert_close(a, e, p, 3.0, size, f"the gradient of {name}")
    return found


@pytest.mark.parametrize(
    "given",
    [{}, {"is_causal": True}, {"is_causal": True, "dropout_p": 0.3}],
    ids=["full", "causal", "dropout"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_spec(dtype, given):
    agrees(drawn(SMALL, dtype), statics(64, **given))


@pytest.mark.parametrize(
    ("shape", "offset"),
    [
        ((1, 1, 1, 1, 64), 0),
        ((2, 3, 5, 3, 50), 0),  # more queries than keys, a width of no whole packs
        ((1, 2, 5, 67, 64), 62),  # the last queries of a cache
        ((1, 2, 67, 40, 64), -30),  # queries that see no key
        ((1, 1, 20, 90, 64), 7),  # keys that nobody sees
        ((1, 1, 9, 9, 64), -9),  # nothing is seen
        ((1, 1, 9, 9, 64), 100),  # everything
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_causal_alignment(shape, offset, dtype):
    given = statics(shape[4], is_causal=True, offset=offset)
    # with one key ds is the difference of two equal numbers of this size
    agrees(drawn(shape, dtype), given, size=8.0 if shape[3] == 1 else 0.0)


@pytest.mark.parametrize("offset", [-16, -2, -1, 1, 14, 15, 16, 31])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_edge_of_what_is_seen(offset, dtype):
    """At these offsets it meets the edges of tiles, or misses them by one."""
    given = statics(16, is_causal=True, offset=offset)
    agrees(drawn((1, 1, 67, 69, 16), dtype), given, sweep=QUICK)


@pytest.mark.parametrize("width", [1, 16, 80, 128, 129])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_widths(width, dtype):
    sweep = emulator.SWEEP if width == 80 else emulator.SWEEP[2:5:2]
    agrees(drawn((1, 1, 19, 35, width), dtype), statics(width, is_causal=True), sweep=sweep)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_blocks_of_keys_and_queries(dtype):
    shape = 1, 3, 141, 263, 16
    given = statics(16, is_causal=True, offset=122, dropout_p=0.1)
    agrees(drawn(shape, dtype), given, sweep=emulator.SWEEP[4:])


def test_many_rows():
    agrees(drawn((1, 1, 65601, 3, 16), "bfloat16"), statics(16), sweep=QUICK)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_from_a_state_on_the_device(dtype):
    inputs = drawn((1, 2, 37, 21, 16), dtype)
    given = statics(16, dropout_p=0.3, draw=Draw(2**63 + 7, 2**32 + 3))
    saved = forward(*inputs[:3], **given)
    expected = by_kernel(inputs, given, sweep=ONCE, saved=saved)
    given["draw"] = Draw(5, 13, np.array([2**63 + 7, 2**32 - 10], np.uint64))
    found = by_kernel(inputs, given, sweep=ONCE, saved=saved)
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(2, 1, 21, 34, 64), (1, 2, 7, 5, 50)], ids=str)
@pytest.mark.parametrize("p", [0.5, 1 - 2**-20])
def test_dropout(shape, p):
    for dtype in ("float32", "bfloat16"):
        given = statics(shape[4], dropout_p=p)
        agrees(drawn(shape, dtype), given, size=float(p > 0.9))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_wanted_is_not_computed(dtype):
    inputs, given = drawn((1, 1, 9, 17, 64), dtype), statics(64)
    everything = by_kernel(inputs, given)
    for wanted in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)]:
        before = cuda.launches.copy()
        found = by_kernel(inputs, given, (*map(bool, wanted), False), ONCE)
        moved = {name.split("_")[-1] for name in cuda.launches - before}
        assert ("queries" in moved, "keys" in moved) == (bool(wanted[0]), any(wanted[1:]))
        for w, a, b in zip((*wanted, 0), found, everything, strict=True):
            if w:
                assert a.tobytes() == b.tobytes()
            else:
                assert a is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operation_takes_the_kernels(dtype):
    inputs = [gg.Tensor(x, requires_grad=True) for x in drawn((2, 1, 18, 18, 64), "float64")[:3]]
    given = statics(64, is_causal=True)
    op, before = FUSED[NAME], cuda.launches.copy()
    launched = op.launches["cuda"]

    def spec(*inputs):
        return op.spec(*inputs, None, **given)

    def fast(*inputs):
        return gg.fused.scaled_dot_product_attention(*inputs, is_causal=True)

    with emulator.enabled("plain"):
        testing.assert_implements(fast, spec, inputs, dtype)
    assert op.launches["cuda"] > launched
    for kernel in ("rows", "keys", "queries"):
        assert (cuda.launches - before)[f"attention_backward_{kernel}"] > 0


# Memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views_of_one_packed_array(dtype):
    b, t, h, d = 2, 19, 3, 64
    packed = np.random.default_rng(1).normal(size=(b, t, 3, h, d)).astype(dtype)
    views = [packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
    g = np.random.default_rng(2).normal(size=(b, t, h * d)).astype(dtype)
    upstream = g.reshape(b, t, h, d).transpose(0, 2, 1, 3)
    given = statics(d, is_causal=True)
    saved = forward(*views, **given)

    def run():
        made = cuda.empty(packed.shape, packed.dtype, like=packed)
        gradients = [made[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
        _attention_backward.write(gradients, upstream, views, saved, **given)
        return made

    found = emulator.sweep(run)
    copies = [np.ascontiguousarray(x) for x in (*views, upstream)]
    expected = by_kernel(copies, given, sweep=ONCE)
    for i in range(3):
        np.testing.assert_array_equal(found[:, :, i].transpose(0, 2, 1, 3), expected[i])
    made = by_kernel([*views, upstream], given, sweep=QUICK, saved=saved)
    for gradient, x in zip(made, views, strict=False):  # their axes lie as those of the inputs
        assert gradient.transpose(0, 2, 1, 3).flags.c_contiguous
        assert gradient.shape == x.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["shifted", "reversed", "rows apart", "axes apart"])
def test_layouts_do_not_change_a_bit(layout, dtype):
    inputs, given = drawn((1, 2, 11, 13, 50), dtype), statics(50, is_causal=True)

    def laid_out(x):
        if layout == "shifted":  # not a multiple of 16 bytes
            memory = np.zeros(x.size + 1, x.dtype)
            view = memory[1:].reshape(x.shape)
        elif layout == "reversed":
            view = np.zeros_like(x)[:, ::-1, ::-1]
        elif layout == "rows apart":
            view = np.zeros((*x.shape[:3], x.shape[3] + 3), x.dtype)[..., : x.shape[3]]
        else:
            view = np.zeros((x.shape[3], *x.shape[:3]), x.dtype).transpose(1, 2, 3, 0)
        view[...] = x
        return view

    saved = forward(*inputs[:3], **given)
    expected = by_kernel(inputs, given, sweep=ONCE, saved=saved)
    found = by_kernel([laid_out(x) for x in inputs], given, sweep=emulator.SWEEP[:2], saved=saved)
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(a, b)


# Odd: no row, head or batch but the first at a multiple of 16 bytes. Huge: beyond 32 bits.
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["batches", "heads", "rows"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_axes_of_one_array_any_distance_apart(dtype, axis, apart):
    inputs, given = drawn((2, 2, 2, 2, 16), dtype), statics(16)
    saved = forward(*inputs[:3], **given)
    expected = by_kernel(inputs, given, sweep=ONCE, saved=saved)[:3]
    for i in range(8):  # queries, keys, values, upstream gradient, result, three gradients
        for distance, sweep in ((32 * 33 + 1, ONCE), (2**31 + 8, QUICK)):
            arrays = [*inputs, saved[0], *(np.zeros_like(x) for x in inputs[:3])]
            arrays[i] = apart(arrays[i], axis, distance)
            q, k, v, g, out, *gradients = arrays
            with emulator.enabled(**sweep[0]._asdict()):
                _attention_backward.write(gradients, g, (q, k, v), (out, saved[1]), **given)
            # rows of g and the result that are no packs are added up in another order
            size = (1e-6 if dtype == "float32" else 2**-7) if i in (3, 4) and distance % 2 else 0
            for a, b in zip(gradients, expected, strict=True):
                a, b = a.astype(np.float32), b.astype(np.float32)
                np.testing.assert_allclose(a, b, rtol=size, atol=size)


def test_an_upstream_gradient_without_memory_of_its_own():
    inputs, given = drawn((2, 2, 9, 9, 64), "bfloat16"), statics(64)
    inputs[3] = np.broadcast_to(inputs[3][:1, :1], inputs[3].shape)
    found = by_kernel(inputs, given, sweep=ONCE)
    inputs[3] = inputs[3].copy()
    for a, b in zip(found[:3], by_kernel(inputs, given)[:3], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)], ids=str)
def test_leading_axes(lead):
    b, h = (1, 1, *lead)[-2:] if len(lead) < 3 else (2, 3)
    inputs, given = drawn((b, h, 5, 6, 64), "float32"), statics(64)
    saved = forward(*inputs[:3], **given)
    expected = by_kernel(inputs, given, sweep=ONCE, saved=saved)
    shaped = [x.reshape(*lead, *x.shape[2:]) for x in inputs]
    found = by_kernel(shaped, given, sweep=ONCE, saved=saved)
    for a, b, x in zip(found[:3], expected[:3], shaped[:3], strict=True):
        assert a.shape == x.shape
        np.testing.assert_array_equal(a.reshape(b.shape), b)


# Extreme values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_query_that_sees_no_key_has_gradient_zero(dtype):
    given = statics(64, is_causal=True, offset=-4)
    dq, dk, dv, _ = by_kernel(drawn((1, 1, 9, 7, 64), dtype), given)
    assert not dq[0, 0, :4].any()
    assert dq[0, 0, 5:].any()
    assert not dk[0, 0, 5:].any()
    assert not dv[0, 0, 5:].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_reach_what_they_touch(bad, dtype):
    inputs, given = drawn((1, 2, 9, 7, 64), dtype), statics(64, is_causal=True)
    out, lse = forward(*inputs[:3], **given)
    inputs[0][0, 1, 3, 5] = bad  # query 3 of head 1 sees keys 0 to 3
    out[0, 1, 3] = lse[0, 1, 3] = math.nan
    dq, dk, dv, _ = by_kernel(inputs, given, saved=(out, lse))
    for x in (dq, dk, dv):
        assert np.isfinite(x[0, 0].astype(np.float32)).all()
    assert np.isnan(dq[0, 1, 3].astype(np.float32)).all()
    assert np.isfinite(np.delete(dq[0, 1], 3, 0).astype(np.float32)).all()
    for x in (dk, dv):
        assert np.isnan(x[0, 1, :4].astype(np.float32)).all()


@pytest.mark.parametrize("spread", [1e-6, 30.0, 1e4, 1e15])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_and_huge_scores(spread, dtype):
    inputs = drawn((1, 2, 19, 23, 8), dtype, spread=spread)

    def saved(*inputs, **given):  # by the kernel: the largest score and its lse are rounded alike
        with emulator.enabled("plain"):
            return _attention_forward.forward(*inputs, None, **given)[1]

    # scores and lse, of size spread ** 2, cancel, and ds k
    agrees(inputs, statics(8), size=spread**2, saved=saved(*inputs[:3], **statics(8)))


def test_very_negative_scores_leave_no_trace_of_the_padding():
    inputs, given = drawn((1, 1, 5, 9, 64), "bfloat16"), statics(64)
    inputs[0][...], inputs[1][...] = 8, -8  # scores of -512: exp(0 - lse) is infinite
    found = agrees(inputs, given, size=8.0)
    assert all(np.isfinite(x.astype(np.float32)).all() for x in found[:3])
