"""The CUDA kernels in the emulator: no fault, the same bits in any order, the spec's values."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.cuda import launches
from gpugrad.fused import FUSED, _teams, cross_entropy
from gpugrad.fused import _cross_entropy_cuda as kernels
from gpugrad.fused.cross_entropy import cross_entropy_in_place

OP = FUSED["cross_entropy"]
SWEPT = len(emulator.SWEEP)
WEIGHT = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.1, 1.0])
STATICS = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "none"}
# a warp for each row, up to four rows in a block; a block of 128 threads; of 512
SHAPES = [(1, 1), (2, 3, 5), (9, 37), (5, 64), (3, 1023), (3, 1031), (2, 2048), (2, 8200)]


def drawn(shape, spread=5.0, seed=0):
    return np.random.default_rng(seed).normal(0, spread, shape)


def ids(shape, ignored=0.3, seed=1):
    rng = np.random.default_rng(seed)
    found = rng.integers(0, shape[-1], shape[:-1])
    return np.where(rng.random(shape[:-1]) < ignored, -100, found)


def upstream_for(loss):
    return np.cos(np.arange(loss.size)).reshape(loss.shape).astype(loss.dtype)


def loss_and_gradient(function, logits, target, weight, **statics):
    x = gg.Tensor(logits, requires_grad=True)
    loss = function(x, target, weight, **statics)
    (g,) = gg.grad(loss, x, gg.Tensor(upstream_for(loss)))
    return loss.data, g.data


def spec(logits, target, weight, dtype, **statics):
    wide = "float64" if dtype == "float64" else "float32"
    weight = None if weight is None else gg.Tensor(weight.astype(wide))
    with np.errstate(all="ignore"):
        return loss_and_gradient(
            OP.spec, logits.astype(dtype), gg.Tensor(target), weight, **{**STATICS, **statics}
        )


def obeys(logits, target, dtype="float32", weight=None, scale=None, **statics):
    """Assert that the kernels run without fault, order-free, and by the 2x/3x rule."""
    statics = {**STATICS, **statics}
    logits = logits.astype(gg.Tensor([0.0]).astype(dtype).dtype)
    before = OP.launches["cuda"]
    found = emulator.sweep(
        lambda: loss_and_gradient(cross_entropy, logits.copy(), target, weight, **statics)
    )
    assert OP.launches["cuda"] == before + SWEPT
    exact = spec(logits, target, weight, "float64", **statics)
    plain = spec(logits, target, weight, logits.dtype, **statics)
    if scale is None:  # of the terms that cancel in the loss
        scale = float(np.abs(logits.astype(np.float64)).max())
    testing.assert_close(found[0], exact[0], plain[0], 2, scale=scale, name="the loss")
    testing.assert_close(found[1], exact[1], plain[1], 3, name="the gradient")
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_spec(shape, dtype):
    obeys(drawn(shape), ids(shape), dtype)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["equal", "weighted"])
def test_weights_smoothing_and_reductions(weight, smoothing, reduction):
    shape = (11, 7)
    obeys(
        drawn(shape),
        ids(shape),
        weight=weight,
        scale=5.0 * 11,
        label_smoothing=smoothing,
        reduction=reduction,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [1100, 8195])
def test_smoothing_of_rows_that_a_block_reads(columns, dtype):
    weight = np.random.default_rng(5).random(columns)
    obeys(drawn((2, columns)), ids((2, columns), 0), dtype, weight, label_smoothing=0.2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spread", [1e-6, 1e4, 1e30])
def test_small_and_huge_logits(spread, smoothing):
    shape = (4, 300)
    obeys(drawn(shape, spread), ids(shape, 0), label_smoothing=smoothing)


def test_more_rows_than_a_grid_has_in_y():
    shape = (65540, 3)
    x, target = drawn(shape).astype(np.float32), ids(shape)
    given = {**STATICS, "reduction": "mean"}
    with emulator.enabled("plain"):
        found = loss_and_gradient(cross_entropy, x, target, None, **given)
    exact, plain = (spec(x, target, None, d, reduction="mean") for d in ("float64", "float32"))
    testing.assert_close(found[0], exact[0], plain[0], 2, name="the loss")
    testing.assert_close(found[1], exact[1], plain[1], 3, name="the gradient")


@pytest.mark.parametrize("blocks", [1, 3])
def test_sums_over_the_rows_in_one_launch_and_in_two(blocks, monkeypatch):
    monkeypatch.setattr(kernels, "PER_BLOCK", 40 if blocks == 3 else 1000)
    shape = (111, 5)
    weight = WEIGHT[:5]
    before = launches["cross_entropy_sum"]
    obeys(drawn(shape), ids(shape), weight=weight, scale=5.0, reduction="mean", label_smoothing=0.1)
    sums = 1 + (1 if blocks == 1 else 3)  # of the weights; of the losses, and of the counts' parts
    assert launches["cross_entropy_sum"] == before + sums * SWEPT


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint32", "int64"])
def test_ids_of_any_integer_dtype(dtype):
    x, target = drawn((6, 9)), ids((6, 9), 0)
    expected = obeys(x, target)
    found = obeys(x, target.astype(dtype))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_ignore_index_may_be_a_class():
    loss, g = obeys(drawn((5, 4)), np.array([2, 1, 2, 0, 3]), ignore_index=2)
    assert (loss[[0, 2]] == 0).all()
    assert (g[[0, 2]] == 0).all()
    assert (loss[[1, 3, 4]] > 0).all()


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_layout_does_not_change_a_bit(dtype, layout):
    x = drawn((4, 5, 7)).astype(gg.Tensor([0.0]).astype(dtype).dtype)
    target, upstream = ids(x.shape), drawn((4, 5)).astype(np.float32)
    results = []
    for kind in ("contiguous", layout):
        t = gg.Tensor(dict(testing.layouts(x))[kind], requires_grad=True)
        with emulator.enabled("checked"):
            loss = cross_entropy(t, dict(testing.layouts(target))[kind], reduction="none")
            loss.backward(gg.Tensor(dict(testing.layouts(upstream))[kind]))
        results.append(loss.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [64, 1500])
def test_rows_that_begin_anywhere(columns, dtype):
    """A row is read in packs from its first address that suits one."""
    kind = gg.Tensor([0.0]).astype(dtype).dtype
    memory = drawn(3 * columns + 16).astype(kind)
    aligned = -memory.ctypes.data % 16 // memory.itemsize
    target, results = ids((3, columns), 0), []
    for offset in range(4):
        x = memory[aligned + offset :][: 3 * columns].reshape(3, columns)
        x[...] = drawn(x.shape)
        found = emulator.sweep(
            lambda x=x: loss_and_gradient(cross_entropy, x, target, None, **STATICS),
            emulator.SWEEP[:2],
        )
        results.append(found)
    plain = spec(x, target, None, kind)
    exact = spec(x, target, None, "float64")
    for loss, g in results:
        testing.assert_close(loss, exact[0], plain[0], 2, scale=20.0, name="the loss")
        testing.assert_close(g, exact[1], plain[1], 3, name="the gradient")


# Rows where something is infinite or no number

INF, NAN = math.inf, math.nan
EDGES = {
    "all masked": ([-INF, -INF, -INF], 0, INF),
    "the target is masked": ([1.0, -INF, 0.0], 1, INF),
    "another is masked": ([1.0, -INF, 0.0], 0, math.log1p(math.exp(-1.0))),
    "all but the target": ([-INF, -INF, 7.0], 2, 0.0),
    "a NaN": ([1.0, NAN, 0.0], 0, NAN),
    "a NaN among masked": ([-INF, NAN, -INF], 0, NAN),
    "nothing but NaN": ([NAN, NAN, NAN], 0, NAN),
    "infinity": ([1.0, INF, 0.0], 0, NAN),
    "infinity is the target": ([1.0, INF, 0.0], 1, NAN),
    "infinity first, then masked": ([INF, -INF, -INF], 2, NAN),
    "as large as can be": ([3e38, -3e38, 3e38], 0, math.log(2.0)),
    "equal and huge": ([-1e30, -1e30, -1e30], 1, math.log(3.0)),
    "ignored": ([NAN, INF, -INF], -100, 0.0),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, [1.0, 0.0, 2.0]], ids=["equal", "weighted"])
@pytest.mark.parametrize("columns", [3, 1030])
@pytest.mark.parametrize("edge", EDGES)
def test_all_implementations_agree_at_the_edges(edge, columns, weight, smoothing):
    values, target, loss = EDGES[edge]
    x = np.full((1, columns), -INF, np.float32)
    x[0, [0, 1, -1]] = values
    w = None if weight is None else np.resize(np.float32(weight), columns)
    given = {**STATICS, "label_smoothing": smoothing}
    t = np.array([target if target != 2 else columns - 1])
    by_spec = spec(x, t, w, "float32", **given)
    with np.errstate(all="ignore"):
        by_numpy = loss_and_gradient(cross_entropy, x, t, w, **given)
    by_cuda = emulator.sweep(
        lambda: loss_and_gradient(cross_entropy, x, t, w, **given), emulator.SWEEP[:2]
    )
    at_once = x.copy()
    with emulator.enabled("checked"):
        loss_at_once = cross_entropy_in_place(at_once, t, weight=w, **given)
    for found in (by_numpy, by_cuda, (loss_at_once, at_once)):
        for a, b in zip(found, by_spec, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    if weight is None and not smoothing:
        np.testing.assert_allclose(by_spec[0], [loss], rtol=1e-6)


def test_only_targets_that_count_are_in_the_mean():
    x = gg.Tensor(np.float32(drawn((3, 7))), requires_grad=True)
    with emulator.enabled("checked"):
        loss = cross_entropy(x, np.full(3, -100), WEIGHT)
        loss.backward()
    assert np.isnan(loss.data)
    assert (x.grad.data == 0).all()


def test_an_id_out_of_range_that_nobody_checked_gives_nan_for_its_row():
    x, target = np.float32(drawn((4, 1025))), np.array([0, 1025, -1, 5])
    given = {"ignore_index": -100, "label_smoothing": 0.1, "reduction": "none"}
    with emulator.enabled("checked"):
        loss = kernels.in_place(x, target, np.ones(1025, np.float32), 1.0, **given)
    assert np.isnan(loss).tolist() == [False, True, True, False]
    assert np.isnan(x).all(1).tolist() == [False, True, True, False]
    assert np.isfinite(x[[0, 3]]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["equal", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("columns", [1, 7, 1031])
def test_an_unchecked_id_gives_nan_forward_and_backward(columns, smoothing, weight, dtype):
    x = drawn((6, columns)).astype(dtype)
    target = np.array([0, columns, -1, -100, columns - 1, 2**40])
    weight = None if weight is None else np.resize(WEIGHT, columns).astype(np.float32) + 1
    given = {**STATICS, "label_smoothing": smoothing}
    upstream = np.linspace(1, 2, 6, dtype=np.float32)

    def run():
        loss, kept = kernels.forward(x, target, weight, **given)
        arrays = x, target, weight
        return loss, kernels.backward((True,) * 3, upstream, arrays, kept, **given)[0]

    loss, g = emulator.sweep(run, emulator.SWEEP[:2])
    assert np.isnan(loss).tolist() == [False, True, True, False, False, True]
    assert np.isnan(g.astype(np.float32)).all(1).tolist() == np.isnan(loss).tolist()
    assert np.isfinite(g[[0, 3, 4]].astype(np.float32)).all()
    # the definition says the same
    by_spec = spec(x, target, weight, dtype, **given)[0]
    np.testing.assert_allclose(loss, by_spec, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_definition_gives_nan_for_an_id_out_of_range(reduction):
    loss, g = spec(drawn((4, 5)), np.array([0, 5, -100, -1]), None, "float64", reduction=reduction)
    rows = [False, True, False, True]
    assert np.isnan(loss).tolist() == (rows if reduction == "none" else True)
    if reduction == "none":
        assert np.isnan(g).all(1).tolist() == rows
        assert np.isfinite(g[[0, 2]]).all()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_an_unchecked_id_reads_nothing_beyond_the_row_or_the_weights(reduction):
    x, target, weight = np.float32(drawn((1, 9))), np.array([9]), np.ones(9, np.float32)
    given = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": reduction}
    with emulator.enabled("checked"):
        loss, _ = kernels.forward(x, target, weight, **given)
    assert np.isnan(loss).all()


@pytest.mark.parametrize("kind", ["probabilities", "float64"])
def test_what_no_kernel_knows_falls_back(kind):
    x = gg.Tensor(drawn((3, 5)), dtype="float64" if kind == "float64" else "float32")
    target = np.full((3, 5), 0.2) if kind == "probabilities" else ids((3, 5))
    before = OP.launches["cuda"]
    with emulator.enabled("plain"):
        found = cross_entropy(x, target)
    assert OP.launches["cuda"] == before
    assert found.data == cross_entropy(x, target).data


# Loss and gradient at once

KEPT, AGAIN = "kept", "read again"


@contextlib.contextmanager
def shared_memory(kind):
    before = _teams.EMULATED_SHARED
    _teams.EMULATED_SHARED = before if kind == KEPT else 0
    yield
    _teams.EMULATED_SHARED = before


def at_once(logits, target, scale=1.0, **given):
    x = logits.copy()
    return cross_entropy_in_place(x, target, scale, **given), x


@pytest.mark.parametrize("how", [KEPT, AGAIN])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_once_agrees_with_the_spec(shape, dtype, how):
    kind = gg.Tensor([0.0]).astype(dtype).dtype
    x, target = drawn(shape).astype(kind), ids(shape)
    exact, plain = (spec(x, target, None, d) for d in ("float64", kind))
    scale = upstream_for(plain[0])
    with shared_memory(how):
        loss, g = emulator.sweep(lambda: at_once(x, target, scale, reduction="none"))
    size = float(np.abs(x.astype(np.float64)).max())
    testing.assert_close(loss, exact[0], plain[0], 2, scale=size, name="the loss")
    testing.assert_close(g, exact[1], plain[1], 3, name="the gradient")


def test_rows_of_a_language_model_stay_in_shared_memory():
    half, single = np.empty(0, np.float16), np.empty(0, np.float32)
    block = _teams.teams(1, 50304)[1]
    assert block == (512, 1)
    assert _teams.room(50304, block, half) == (6288, 100608)  # two blocks on one multiprocessor
    assert _teams.room(50304, block, single) == (12576, 201216)
    assert _teams.room(60000, block, single) == (0, 0)
    assert _teams.room(1000, (32, 4), half) == (125, 8000)
    x, target = drawn((1, 50304)).astype(np.float16), np.array([50303])
    (loss, g), by_spec = (
        emulator.sweep(lambda: at_once(x, target, reduction="none"), emulator.SWEEP[2:3]),
        spec(x, target, None, "float64"),
    )
    np.testing.assert_allclose(loss, by_spec[0], rtol=1e-6)
    np.testing.assert_allclose(g, by_spec[1], rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["equal", "weighted"])
@pytest.mark.parametrize("emulated", [True, False], ids=["cuda", "numpy"])
def test_at_once_is_forward_and_backward(emulated, weight, smoothing, reduction):
    given = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    x, target = np.float32(drawn((2, 6, 7))), ids((2, 6, 7))
    t = gg.Tensor(x, requires_grad=True)
    before = launches["cross_entropy_in_place"]
    with emulator.enabled("checked") if emulated else contextlib.nullcontext():
        (cross_entropy(t, target, **given) * 0.25).backward()
        loss, g = at_once(x, target, 0.25, **given)
        loss_again, again = at_once(x, target, np.float32([0.25]), **given)
    assert launches["cross_entropy_in_place"] == before + (2 if emulated else 0)
    expected = cross_entropy(x, target, **given).data
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    np.testing.assert_allclose(g, t.grad.data, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(loss_again, loss)
    np.testing.assert_array_equal(again, g)


def test_at_once_in_float64_is_for_numpy():
    x, target = drawn((4, 7)), ids((4, 7))
    with emulator.enabled("plain"):
        loss, g = at_once(x, target, 2.0)
    t = gg.Tensor(x, requires_grad=True)
    expected = cross_entropy(t, target)
    (expected * 2.0).backward()
    assert loss == expected.data
    np.testing.assert_allclose(g, t.grad.data, rtol=1e-15)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": np.ones((7, 3)).T}, ValueError, "C-contiguous"),
        ({"logits": np.broadcast_to(np.ones(7), (3, 7))}, ValueError, "writeable"),
        ({"logits": np.ones((0, 7)), "target": np.ones(0, int)}, ValueError, "must have rows"),
        ({"logits": np.ones((3, 7), int)}, TypeError, "logits must be floating"),
        ({"target": np.array([0, 7, 1])}, IndexError, r"target\[1\] is 7"),
        ({"logits": gg.Tensor(np.ones((3, 7)))}, TypeError, "logits must be an array"),
        ({"target": [0, 1, 2]}, TypeError, "target must be an array"),
        ({"target": np.ones(3)}, TypeError, "integer ids"),
        ({"target": np.ones(2, int)}, ValueError, r"ids have shape \(2,\)"),
        ({"scale": np.ones(3)}, ValueError, "scale must be one number"),
        ({"weight": np.ones(3)}, ValueError, "weight must be floating, one factor"),
        ({"reduction": "max"}, ValueError, "got 'max'"),
        ({"label_smoothing": -1.0}, ValueError, "label_smoothing"),
    ],
)
def test_at_once_bad_arguments(change, error, message):
    given = {"logits": np.ones((3, 7)), "target": np.zeros(3, int), **change}
    with pytest.raises(error, match=message):
        cross_entropy_in_place(**given)
