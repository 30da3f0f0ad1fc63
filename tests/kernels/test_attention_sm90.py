"""Attention by the kernels for sm_90a: the spec's values, no fault, the same bits in any order.

With tiles by cp.async ("wgmma") and by the copy engine ("tma"), whose results are equal bit for
bit. Emulated products read their tiles by the bits of their descriptors, emulated copies write them
by the bits of their tensor maps, and the checked build sees missing waits, fences and barriers,
wrong parities and wrong byte counts.

What stays untested without an H100 or H200:
- that the assembly in ptx.cuh does what its emulated bodies do: above all that cp.async.bulk.tensor
  swizzles 128-byte lines as wgmma reads them, fills with zeros what lies outside of the array and
  counts those bytes too (``tests/emulator/conformance.py`` compares them where there is a GPU);
- that the driver makes the maps it is asked for (``tests/cuda/test_device.py`` sees only what it is
  asked), also where heads lie closer together than rows, as in a packed (B, T, 3, H, D);
- that ordinary reads and a following arrival order the copy engine's next write behind them without
  a fence between the proxies, and that a copy may begin before its bytes are announced, in the same
  phase: the emulator takes both for granted;
- that registers move between warpgroups (setmaxnreg), and speed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, testing
from gpugrad.cuda import compiler, lock, recording
from gpugrad.fused import FUSED, _attention_backward, _attention_forward, _attention_sm90
from gpugrad.models import GPT, GPTConfig
from gpugrad.ops.random import Draw

NAME = "scaled_dot_product_attention"
ALL = (True, True, True, False)
PLAIN = emulator.SWEEP[4:5]
BACKWARD = {"attention_backward_sm90_keys", "attention_backward_sm90_queries"}


def statics(width, **given):
    chosen = {"scale": 1 / math.sqrt(width), "is_causal": False, "offset": 0}
    return {**chosen, "dropout_p": 0.0, "draw": Draw(7, 3, None), **given}


def drawn(shape, dtype, seed=0, spread=1.0):
    """Return query, key, value and the gradient of the result for (B, H, T, S, D)."""
    b, h, t, s, d = shape
    rng = np.random.default_rng(seed)
    sizes = [((b, h, t, d), spread), ((b, h, s, d), spread), ((b, h, s, d), 1), ((b, h, t, d), 1)]
    return [rng.normal(0, spread, size).astype(dtype) for size, spread in sizes]


def forward(inputs, given):
    """Return (out, lse) by the kernel for any GPU."""
    with emulator.enabled(), _attention_sm90.kernels("mma"):
        return _attention_forward.forward(*inputs[:3], None, **given)[1]


def backward(inputs, given, kernels, saved, sweep=emulator.SWEEP, wanted=ALL):
    def run():
        return _attention_backward.backward(wanted, inputs[3], (*inputs[:3], None), saved, **given)

    with _attention_sm90.kernels(kernels):
        return emulator.sweep(run, sweep)


def by_spec(inputs, dtype, given):
    q, k, v, g = (x.astype(dtype) for x in inputs)
    tensors = [gg.Tensor(x, device="cpu", requires_grad=True) for x in (q, k, v)]
    out = FUSED[NAME].spec(*tensors, None, **given)
    return [found.data for found in gg.grad(out, tensors, gg.Tensor(g, device="cpu"))]


def by_maps(inputs, sweep):
    """Return the settings in which the copy engine's variant runs: fewer, in both builds.

    Once compiled it needs half the time of the other. float16 differs in nothing that copies see.
    """
    if inputs[0].dtype == np.float16 and inputs[0].shape[3] == 128:
        return ()
    return sweep[1:5:3] if len(sweep) > 2 else sweep


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or a.tobytes() == b.tobytes()


def forward_agrees(inputs, given, size=0.0, sweep=emulator.SWEEP):
    """Compare the result and lse with the spec and with the kernel for any GPU."""

    def run():
        return _attention_forward.forward(*inputs[:3], None, **given)

    before = cuda.launches.copy()
    with _attention_sm90.kernels("wgmma"):
        out, (saved, lse) = emulator.sweep(run, sweep)
    assert (cuda.launches - before).keys() == {"attention_forward_sm90"}
    np.testing.assert_array_equal(out, saved)
    for how in by_maps(inputs, sweep):
        with _attention_sm90.kernels("tma"):
            equal(emulator.sweep(run, (how,))[1], (out, lse))
    tensors = [gg.Tensor(x) for x in inputs[:3]]
    spec = FUSED[NAME].spec
    plain = spec(*tensors, None, **given)
    exact = spec(*(x.astype("float64") for x in tensors), None, **given)
    testing.assert_close(out, exact, plain, 2.0, size)
    expected = forward(inputs, given)[1]
    np.testing.assert_allclose(lse, expected, rtol=1e-6, atol=1e-6 * max(size, 1))


def agrees(inputs, given, size=0.0, sweep=emulator.SWEEP):
    """Compare with the spec, and with the kernels for any GPU: all but the last bits are equal."""
    saved = forward(inputs, given)
    before = cuda.launches.copy()
    found = backward(inputs, given, "wgmma", saved, sweep)
    assert (cuda.launches - before).keys() >= BACKWARD
    for how in by_maps(inputs, sweep):
        equal(backward(inputs, given, "tma", saved, (how,)), found)
    others = backward(inputs, given, "mma", saved, PLAIN)
    dtype = inputs[0].dtype
    exact, plain = (by_spec(inputs, kind, given) for kind in (np.float64, dtype))
    step = 2.0 ** (-7 if dtype != np.float16 else -10)
    for name, a, b, e, p in zip(
        ("query", "key", "value"), found, others, exact, plain, strict=False
    ):
        testing.assert_close(a, e, p, 3.0, size, f"the gradient of {name}")
        a, b = (x.astype(np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=2 * step, atol=step * max(1.0, np.abs(b).max()))
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_agrees_with_the_spec(dtype, width, causal):
    sweep = emulator.SWEEP if dtype == "bfloat16" else PLAIN
    inputs, given = drawn((1, 2, 69, 131, width), dtype), statics(width, is_causal=causal)
    agrees(inputs, given, sweep=sweep)
    forward_agrees(inputs, given, sweep=sweep)


@pytest.mark.parametrize(
    ("shape", "offset"),
    [
        ((1, 1, 1, 1, 64), 0),
        ((2, 3, 5, 3, 64), 0),  # more queries than keys
        ((1, 2, 5, 67, 64), 62),  # the last queries of a cache
        ((1, 2, 140, 80, 64), -70),  # queries that see no key, warpgroups with none
        ((1, 1, 20, 200, 64), 7),  # keys that nobody sees
        ((1, 1, 9, 9, 64), -9),  # nothing is seen
        ((1, 1, 9, 9, 128), 100),  # everything
        ((1, 1, 130, 129, 128), 1),
    ],
    ids=str,
)
def test_causal_alignment(shape, offset):
    given = statics(shape[4], is_causal=True, offset=offset)
    # with one key ds is the difference of two equal numbers of this size
    size = 8.0 if shape[3] == 1 else 0.0
    inputs = drawn(shape, "bfloat16")
    agrees(inputs, given, size, emulator.SWEEP[1:6:3])
    forward_agrees(inputs, given, sweep=emulator.SWEEP[1:6:3])


@pytest.mark.parametrize("offset", [-65, -64, -63, -32, -1, 0, 1, 31, 63, 64, 65])
def test_the_edge_of_what_is_seen(offset):
    """At these offsets it meets the edges of tiles, or misses them by one."""
    given = statics(64, is_causal=True, offset=offset)
    inputs = drawn((1, 1, 129, 131, 64), "bfloat16")
    agrees(inputs, given, sweep=PLAIN)
    forward_agrees(inputs, given, sweep=PLAIN)


@pytest.mark.parametrize("rows", [63, 64, 65, 127, 128, 129, 193])
def test_ragged_tails(rows):
    inputs, given = drawn((1, 1, rows, rows, 64), "bfloat16"), statics(64, is_causal=True)
    agrees(inputs, given, sweep=PLAIN)
    forward_agrees(inputs, given, sweep=PLAIN)


@pytest.mark.parametrize(("width", "keys"), [(64, 63), (64, 127), (128, 63), (128, 127)])
def test_one_key_less_than_tiles_have(width, keys):
    inputs, given = drawn((1, 1, 20, keys, width), "bfloat16"), statics(width)
    agrees(inputs, given, sweep=PLAIN)
    forward_agrees(inputs, given, sweep=PLAIN)


@pytest.mark.parametrize("growth", [3, 8])
@pytest.mark.parametrize("width", [64, 128])
def test_scores_that_grow_from_tile_to_tile(width, growth):
    """What was summed up is scaled anew in some rows, or in all, and still counts, or hardly."""
    inputs, given = drawn((1, 1, 64, 256, width), "bfloat16"), statics(width)
    inputs[1][:, :, 128:] *= growth
    forward_agrees(inputs, given, sweep=PLAIN)


def test_blocks_work_on_one_head_after_the_other(monkeypatch):
    """Results do not depend on how many blocks there are."""
    inputs, given = drawn((2, 3, 200, 300, 64), "bfloat16"), statics(64, is_causal=True, offset=90)
    saved = forward(inputs, given)
    expected = agrees(inputs, given, sweep=emulator.SWEEP[2:5:2])
    equal(backward(inputs, given, "tma", saved), expected)  # in all orders
    for blocks in (1, 18):
        monkeypatch.setattr(_attention_sm90, "EMULATED_BLOCKS", blocks)
        for kernels in ("wgmma", "tma"):
            equal(backward(inputs, given, kernels, saved, PLAIN), expected)


def test_what_is_not_wanted_is_not_computed():
    inputs, given = drawn((1, 1, 9, 17, 64), "bfloat16"), statics(64)
    saved = forward(inputs, given)
    everything = backward(inputs, given, "wgmma", saved, PLAIN)
    for wanted in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)]:
        before = cuda.launches.copy()
        found = backward(inputs, given, "wgmma", saved, PLAIN, (*map(bool, wanted), False))
        moved = {name.split("_")[-1] for name in cuda.launches - before}
        assert ("queries" in moved, "keys" in moved) == (bool(wanted[0]), any(wanted[1:]))
        for w, a, b in zip((*wanted, 0), found, everything, strict=True):
            assert (a is None) == (not w)
            assert a is None or a.tobytes() == b.tobytes()


def test_views_of_one_packed_array():
    b, t, h, d = 2, 70, 3, 64
    packed = np.random.default_rng(1).normal(size=(b, t, 3, h, d)).astype("bfloat16")
    views = [packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
    g = np.random.default_rng(2).normal(size=(b, t, h * d)).astype("bfloat16")
    upstream = g.reshape(b, t, h, d).transpose(0, 2, 1, 3)
    given = statics(d, is_causal=True)
    saved = forward(views, given)

    def run():
        made = cuda.empty(packed.shape, packed.dtype, like=packed)
        gradients = [made[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
        _attention_backward.write(gradients, upstream, views, saved, **given)
        return made

    with _attention_sm90.kernels("wgmma"):
        found = emulator.sweep(run)
    with _attention_sm90.kernels("tma"):
        assert emulator.sweep(run, emulator.SWEEP[1:5:3]).tobytes() == found.tobytes()
    copies = [np.ascontiguousarray(x) for x in (*views, upstream)]
    expected = backward(copies, given, "wgmma", saved, PLAIN)
    for i in range(3):
        np.testing.assert_array_equal(found[:, :, i].transpose(0, 2, 1, 3), expected[i])


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["batches", "heads", "rows"])
@pytest.mark.parametrize("kernels", ["wgmma", "tma"])
def test_axes_of_one_array_beyond_32_bits(kernels, axis, apart):
    inputs, given = drawn((2, 2, 2, 2, 64), "bfloat16"), statics(64)
    saved = forward(inputs, given)
    expected = saved[0], *backward(inputs, given, "wgmma", saved, PLAIN)[:3]
    for i in range(8):  # queries, keys, values, upstream gradient, result, three gradients
        arrays = [*inputs, *(np.zeros_like(x) for x in (saved[0], *inputs[:3]))]
        arrays[i] = apart(arrays[i], axis, 2**31 + 8)
        q, k, v, g, out, *gradients = arrays
        lse = np.zeros_like(saved[1])
        with emulator.enabled(), _attention_sm90.kernels(kernels):
            _attention_sm90.write_forward((q, k, v), out, lse, given["scale"], False, 0)
            _attention_backward.write(gradients, g, (q, k, v), (out, lse), **given)
        for a, b in zip((out, *gradients), expected, strict=True):
            a, b = (x.astype(np.float32) for x in (a, b))
            np.testing.assert_allclose(a, b, rtol=2**-6, atol=2**-6)


def test_keys_that_all_heads_share():
    """Elements that repeat are in no tensor map: cp.async copies them."""
    inputs, given = drawn((1, 3, 20, 70, 64), "bfloat16"), statics(64)
    inputs[1][:] = inputs[1][:, :1]
    with _attention_sm90.kernels("tma"):
        assert _attention_sm90._inputs(inputs, (64, 128, 128, 64))[0]
    expected = backward(inputs, given, "tma", forward(inputs, given), PLAIN)
    inputs[1] = np.broadcast_to(inputs[1][:, :1], inputs[1].shape)
    with _attention_sm90.kernels("tma"):
        assert not _attention_sm90._inputs(inputs, (64, 128, 128, 64))[0]
    equal(backward(inputs, given, "tma", forward(inputs, given), PLAIN), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_reach_what_they_touch(bad):
    inputs, given = drawn((1, 2, 9, 7, 64), "bfloat16"), statics(64, is_causal=True)
    out, lse = forward(inputs, given)
    inputs[0][0, 1, 3, 5] = bad  # query 3 of head 1 sees keys 0 to 3
    out[0, 1, 3] = lse[0, 1, 3] = math.nan
    for kernels, sweep in (("wgmma", emulator.SWEEP), ("tma", PLAIN)):
        gradients = backward(inputs, given, kernels, (out, lse), sweep)[:3]
        dq, dk, dv = (x.astype(np.float32) for x in gradients)
        for x in (dq, dk, dv):
            assert np.isfinite(x[0, 0]).all()
        assert np.isnan(dq[0, 1, 3]).all()
        assert np.isfinite(np.delete(dq[0, 1], 3, 0)).all()
        for x in (dk, dv):
            assert np.isnan(x[0, 1, :4]).all()


@pytest.mark.parametrize("spread", [1e-6, 30.0, 1e4, 1e15])
def test_small_and_huge_scores(spread):
    inputs = drawn((1, 2, 19, 23, 64), "bfloat16", spread=spread)
    # scores and lse, of size spread ** 2, cancel, and ds k
    agrees(inputs, statics(64), spread**2, emulator.SWEEP[1:6:3])
    forward_agrees(inputs, statics(64), spread**2, emulator.SWEEP[1:6:3])


def test_a_row_of_nan_and_one_that_sees_nothing():
    inputs, given = drawn((1, 1, 9, 70, 64), "bfloat16"), statics(64, is_causal=True, offset=-2)
    inputs[0][0, 0, 5, 7] = math.nan
    with _attention_sm90.kernels("wgmma"):
        out, (_, lse) = emulator.sweep(
            lambda: _attention_forward.forward(*inputs[:3], None, **given)
        )
    out = out.astype(np.float32)
    assert np.isnan(out[0, 0, 5]).all()
    assert np.isnan(lse[0, 0, 5])
    assert not out[0, 0, :2].any()
    assert (lse[0, 0, :2] == np.inf).all()
    assert np.isfinite(np.delete(out[0, 0], 5, 0)).all()


# Which kernels are taken


def launched(inputs, given, kernels):
    saved = forward(inputs, given)
    before = cuda.launches.copy()
    backward(inputs, given, kernels, saved, PLAIN)
    return (cuda.launches - before).keys() >= BACKWARD


def test_what_does_not_fit_is_for_the_other_kernels():
    fitting = drawn((1, 1, 5, 5, 64), "bfloat16")
    assert launched(fitting, statics(64), "wgmma")
    assert launched(fitting, statics(64), "tma")
    assert not launched(fitting, statics(64), "mma")
    assert not launched(fitting, statics(64), "auto")  # in the emulator
    assert not launched(fitting, statics(64, dropout_p=0.1), "wgmma")
    assert not launched(drawn((1, 1, 5, 5, 64), "float32"), statics(64), "wgmma")
    assert not launched(drawn((1, 1, 5, 5, 80), "bfloat16"), statics(80), "wgmma")
    shifted = np.zeros(321, fitting[0].dtype)[1:].reshape(1, 1, 5, 64)
    assert not launched([shifted, *fitting[1:]], statics(64), "wgmma")
    apart = np.zeros((1, 1, 5, 67), fitting[0].dtype)[..., :64]
    assert not launched([*fitting[:3], apart], statics(64), "wgmma")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_only_one_gpu_takes_them(monkeypatch, capability):
    monkeypatch.setattr(cuda, "capability", lambda array: capability)
    for rows in (1, 64, 65):
        arrays = drawn((1, 1, rows, 5, 64), "bfloat16")
        few = rows <= 64  # where blocks for any GPU are smaller
        for name, taken in (("auto", not few), ("tma", True), ("wgmma", True), ("mma", False)):
            with _attention_sm90.kernels(name):
                assert _attention_sm90.takes(arrays, 0.0) == (taken and capability == 90)


@pytest.mark.parametrize("kernels", ["auto", "tma"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_recorded_step_takes_them(capability, kernels):
    op, given = FUSED["packed_attention"].implementations["cuda"], statics(64, is_causal=True)
    with (
        recording.recording(recording.Trace(capability)) as trace,
        _attention_sm90.kernels(kernels),
    ):
        qkv = trace.input((2, 70, 3, 3, 64), backend.bfloat16)
        _, kept = op.forward(qkv, **given)
        out = trace.input((2, 70, 3 * 64), backend.bfloat16)
        op.backward((True,), out, (qkv,), kept, **given)
    names = {launch.args[0] for launch in trace.launches}
    assert (names >= {"attention_forward_sm90", *BACKWARD}) == (capability == 90)
    if capability == 90:
        by_map = {one.kwargs["TMA"] for one in trace.launches if "sm90" in one.args[0]}
        assert by_map == {int(kernels == "tma")}


def test_the_environment_chooses(monkeypatch):
    arrays = drawn((1, 1, 5, 5, 64), "bfloat16")
    monkeypatch.setenv("GPUGRAD_ATTENTION", "wgmma")
    assert _attention_sm90.takes(arrays, 0.0)
    monkeypatch.setenv("GPUGRAD_ATTENTION", "fast")
    with pytest.raises(ValueError, match="auto, tma, wgmma, mma, not 'fast'"):
        _attention_sm90.takes(arrays, 0.0)


@pytest.mark.parametrize("source", [_attention_sm90.FORWARD, _attention_sm90.BACKWARD])
@pytest.mark.parametrize("variant", _attention_sm90.FORWARD.variants, ids=lock.label)
def test_products_stay_asynchronous(source, variant):
    """Where ptxas cannot keep registers of products under way apart, it says that it waits.

    It does so too where it does not move registers between warpgroups. Threads are launched with
    all that a multiprocessor has; of fewer the consumers would wait for theirs for ever.
    """
    options = [f"-D{key}={value}" for key, value in variant.items()]
    cubin = compiler.compile_cubin(source.text, source.name, "sm_90a", options)
    assert "C75" not in cubin.log, cubin.log  # the numbers of what it says of wgmma and setmaxnreg
    each = 2**16 // _attention_sm90.THREADS // 8 * 8
    assert {needed.registers for needed in cubin.resources.values()} == {each}


def trained(kernels, compiled):
    """Return the losses of a few steps of a small GPT in bfloat16, and what was launched."""
    gg.manual_seed(1)
    config = GPTConfig(vocab_size=32, block_size=70, n_layer=1, n_head=1, n_embd=64)
    model = GPT(config).to("bfloat16")
    optimizer = gg.optim.AdamW(model.parameters(), lr=1e-3)
    ids = np.random.default_rng(0).integers(32, size=(1, 71))

    def step(x, y):
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = gg.compile(step) if compiled else step
    before = cuda.launches.copy()
    with emulator.enabled(), _attention_sm90.kernels(kernels):
        losses = [run(gg.tensor(ids[:, :-1]), gg.tensor(ids[:, 1:])).item() for _ in range(3)]
    return losses, (cuda.launches - before).keys()


def test_a_gpt_trains_by_them_compiled_and_not():
    losses, launched = trained("wgmma", compiled=False)
    assert launched >= {"attention_forward_sm90", *BACKWARD}
    assert losses[2] < losses[0]
    assert trained("wgmma", compiled=True)[0] == losses
    assert trained("tma", compiled=True)[0] == losses  # maps of what lies in the arena
    others, launched = trained("mma", compiled=False)
    assert "attention_forward_sm90" not in launched
    np.testing.assert_allclose(losses, others, rtol=1e-3)


# On the GPU


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["wgmma", "tma"])  # gpu_session.py runs one after the other
@pytest.mark.parametrize(
    ("shape", "causal"),
    [((2, 3, 333, 333, 64), True), ((1, 2, 200, 500, 64), False), ((2, 2, 300, 300, 128), True)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gpu_computes_the_same(dtype, shape, causal, kernels):
    """Three times, with the same bits; on other GPUs by the kernels for them.

    By tensor maps also the same bits as without: the products are the same.
    """
    inputs, given = drawn(shape, dtype), statics(shape[4], is_causal=causal)
    moved = [backend.to_device(x, "cuda") for x in inputs]
    runs = []
    for name in (kernels, kernels, kernels, *(["wgmma"] if kernels == "tma" else [])):
        with _attention_sm90.kernels(name):
            out, saved = _attention_forward.forward(*moved[:3], None, **given)
            found = _attention_backward.backward(ALL, moved[3], (*moved[:3], None), saved, **given)
        runs.append([backend.to_numpy(x) for x in (out, saved[1], *found[:3])])
    for again in runs[1:]:
        for a, b in zip(runs[0], again, strict=True):
            assert a.tobytes() == b.tobytes()
    tensors = [gg.Tensor(x, device="cpu") for x in inputs[:3]]
    spec = FUSED[NAME].spec
    plain = spec(*tensors, None, **given)
    exact = spec(*(x.astype("float64") for x in tensors), None, **given)
    testing.assert_close(runs[0][0], exact, plain, 2.0)
    exact, plain = (by_spec(inputs, kind, given) for kind in (np.float64, inputs[0].dtype))
    for name, a, e, p in zip(("query", "key", "value"), runs[0][2:], exact, plain, strict=True):
        testing.assert_close(a, e, p, 3.0, name=f"the gradient of {name}")
