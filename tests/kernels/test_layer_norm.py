"""The CUDA kernels in the emulator: no fault, the same bits in any order, the spec's values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.emulator.check import SWEEP
from gpugrad.fused import _norms, layer_norm
from gpugrad.fused.layer_norm import _layer_norm

EPS = 1e-5
# a thread, some lanes, a warp, a block per row; in packs and, where a row's length forbids it, not
SHAPES = [
    *[(1, 1), (3, 5), (5, 257), (2, 1023)],
    *[(130, 8), (9, 24), (3, 2, 64), (6, 768), (3, 776), (2, 1544)],
]


def _inputs(shape, given="weight bias residual", dtype="float32", seed=0):
    """Return x, weight, bias, residual (None if not given) and the upstream gradients."""
    rng = np.random.default_rng(seed)
    kinds = gg.asarray([0.0]).astype(dtype).dtype
    arrays = {"x": rng.normal(0.3, 1, shape)}
    for name in ("weight", "bias", "residual"):
        size = shape if name == "residual" else shape[-1:]
        values = rng.normal(size=size)
        arrays[name] = values if name in given else None
    upstream = [rng.normal(size=shape) for _ in range(2 if "residual" in given else 1)]
    return (
        [None if a is None else a.astype(kinds) for a in arrays.values()],
        [g.astype(kinds) for g in upstream],
    )


def _results(function, arrays, upstream, dtype=None, wanted=(True,) * 4, eps=EPS):
    """Return results and gradients of function, all in a dtype (None: as they are)."""
    tensors = [
        a if a is None else gg.tensor(a, dtype=dtype, requires_grad=w)
        for a, w in zip(arrays, wanted, strict=True)
    ]
    outs = function(*tensors, eps=eps)
    outs = outs if isinstance(outs, tuple) else (outs,)
    able = [t for t in tensors if t is not None and t.requires_grad]
    seeds = [gg.tensor(g, dtype=dtype) for g in upstream]
    return [out.detach() for out in outs], list(gg.grad(outs, able, seeds)) if able else []


def _check(arrays, upstream, settings=SWEEP, scale=0.0, eps=EPS):
    """Compare with the spec; return results and gradients."""
    before = _layer_norm.launches["cuda"]
    found = emulator.sweep(lambda: _results(layer_norm, arrays, upstream, eps=eps), settings)
    assert _layer_norm.launches["cuda"] == before + len(settings)
    with np.errstate(all="ignore"):
        exact = _results(_layer_norm.spec, arrays, upstream, "float64", eps=eps)
        plain = _results(_layer_norm.spec, arrays, upstream, arrays[0].dtype, eps=eps)
    for factor, *three in zip((2, 3), found, exact, plain, strict=True):
        for i, (a, e, p) in enumerate(zip(*three, strict=True)):
            what = f"{'result' if factor == 2 else 'gradient'} {i}"
            testing.assert_close(a, e, p, factor=factor, scale=scale, name=what)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_spec(shape, dtype):
    _check(*_inputs(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(4, 33), (5, 200)], ids=str)
def test_float16(shape):
    _check(*_inputs(shape, dtype="float16"))


@pytest.mark.parametrize("given", ["", "weight", "bias", "residual", "weight residual"])
@pytest.mark.parametrize("columns", [13, 16])
def test_arguments_are_optional(columns, given):
    _check(*_inputs((5, columns), given))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [9223, 9224])
def test_rows_too_long_for_registers(columns, dtype):
    before = cuda.launches.copy()
    _check(*_inputs((2, columns), dtype=dtype), settings=SWEEP[1:2])
    kernels = ("forward_any", "backward_any", "parameters_any")
    added = {f"layer_norm_{kernel}": 1 for kernel in kernels}
    assert cuda.launches - before == {**added, "column_sums_total": 1}


def test_the_longest_row_in_registers():
    before = cuda.launches.copy()
    _check(*_inputs((1, 9216), dtype="bfloat16"), settings=SWEEP[1:2])
    added = {"layer_norm_forward": 1, "layer_norm_backward": 1, "column_sums_total": 1}
    assert cuda.launches - before == added


@pytest.mark.parametrize("shape", [(29, 768), (11, 1544), (700, 8), (60, 40)], ids=str)
def test_blocks_that_take_many_rows(shape, monkeypatch):
    monkeypatch.setattr(_norms, "BLOCKS", 1)
    _check(*_inputs(shape))


@pytest.mark.parametrize("columns", [3, 4])
def test_more_rows_than_a_grid_has_in_y(columns):
    _check(*_inputs((66_000, columns)), settings=SWEEP[4:5])


@pytest.mark.parametrize("columns", [9, 8])
def test_only_what_is_wanted_is_computed(columns):
    arrays, upstream = _inputs((6, columns))
    with emulator.enabled("checked"):
        _, everything = _results(layer_norm, arrays, upstream)
        for wanted in itertools.product((False, True), repeat=4):
            before = cuda.launches.copy()
            _, grads = _results(layer_norm, arrays, upstream, wanted=wanted)
            expected = [g for g, w in zip(everything, wanted, strict=True) if w]
            assert [g.numpy().tobytes() for g in grads] == [g.numpy().tobytes() for g in expected]
            launched = cuda.launches - before
            assert launched["column_sums_total"] == (wanted[1] or wanted[2])
            if columns == 9:
                assert launched["layer_norm_backward_any"] == (wanted[0] or wanted[3])
                assert launched["layer_norm_parameters_any"] == (wanted[1] or wanted[2])


@pytest.mark.parametrize("which", [0, 1])
def test_a_result_without_a_gradient(which):
    arrays, upstream = _inputs((5, 16))
    with emulator.enabled("checked"):
        x, weight, bias, residual = (gg.tensor(a, requires_grad=True) for a in arrays)
        outs = layer_norm(x, weight, bias, residual)
        outs[which].backward(gg.tensor(upstream[which]))
        zeros = [g if i == which else np.zeros_like(g) for i, g in enumerate(upstream)]
        _, expected = _results(layer_norm, arrays, zeros)
    np.testing.assert_array_equal(x.grad.data, expected[0].data)
    np.testing.assert_array_equal(residual.grad.data, expected[3].data)
    if which == 1:
        assert weight.grad is None
        assert bias.grad is None
    else:
        np.testing.assert_array_equal(weight.grad.data, expected[1].data)
    x.grad.fill_(7)
    assert not (residual.grad.data == 7).any()  # memory of its own


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    arrays, upstream = _inputs((4, 3, 32))
    moved = [dict(testing.layouts(a))[layout] for a in arrays]
    with emulator.enabled("checked"):
        expected = _results(layer_norm, arrays, upstream)
        found = _results(layer_norm, moved, [dict(testing.layouts(g))[layout] for g in upstream])
    for a, b in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("which", range(6))
def test_addresses_that_are_no_multiple_of_16(which):
    arrays, upstream = _inputs((4, 64))
    everything = [*arrays, *upstream]
    one = everything[which]
    memory = np.empty(one.size + 1, one.dtype)[1:].reshape(one.shape)
    memory[...] = one
    everything[which] = memory
    tensors = [gg.Tensor(a, requires_grad=i < 4) for i, a in enumerate(everything)]
    assert tensors[which].data.ctypes.data % 16
    with emulator.enabled("checked"):
        outs = layer_norm(*tensors[:4])
        grads = gg.grad(outs, tensors[:4], tensors[4:])
    spec = [_results(_layer_norm.spec, arrays, upstream, dtype) for dtype in ("float64", "float32")]
    for i, factor, found in ((0, 2, outs), (1, 3, grads)):
        for a, exact, plain in zip(found, *(s[i] for s in spec), strict=True):
            testing.assert_close(a, exact, plain, factor=factor)


def test_broadcast_input_and_gradient():
    with emulator.enabled("checked"):
        x = gg.Tensor(np.broadcast_to(np.float32([1, 2, 4, 8]), (3, 4)), requires_grad=True)
        out = layer_norm(x)
        out.sum().backward()
    np.testing.assert_array_equal(out.data, np.broadcast_to(out.data[0], (3, 4)))
    np.testing.assert_allclose(x.grad.data, np.zeros((3, 4)), atol=1e-6)


@pytest.mark.parametrize("columns", [37, 40, 1023, 1024])
@pytest.mark.parametrize(("offset", "spread"), [(0, 1e-6), (1e3, 1), (1e3, 1e-3), (1e3, 1e15)])
def test_small_and_huge_spreads(offset, spread, columns):
    arrays, upstream = _inputs((2, columns), "weight bias")
    arrays[0] = np.float32(offset + spread * arrays[0].astype(np.float64))
    _check(arrays, upstream, settings=SWEEP[:1])


@pytest.mark.parametrize("columns", [5, 8])
def test_constant_row_is_the_bias(columns):
    bias = np.arange(columns, dtype=np.float32)
    with emulator.enabled("checked"):
        out = layer_norm(gg.full((2, columns), 3.0), bias=bias)
        assert np.isnan(layer_norm(gg.ones(2, columns), eps=0.0).data).all()
    np.testing.assert_array_equal(out.data, [bias, bias])


@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(bad, columns):
    arrays, upstream = _inputs((3, columns), "weight bias")
    arrays[0][1, 2] = bad
    with emulator.enabled("checked"):
        (out,), grads = _results(layer_norm, arrays, upstream)
    assert np.isnan(out.data[1]).all()
    assert np.isnan(grads[0].data[1]).all()
    assert np.isfinite(out.data[[0, 2]]).all()
    assert np.isfinite(grads[0].data[[0, 2]]).all()
    assert np.isnan(grads[1].data).all()  # a sum over rows
    assert np.isfinite(grads[2].data).all()


@pytest.mark.parametrize("columns", [3, 4])
def test_variance_beyond_float32_gives_zero_and_no_nan(columns):
    x = np.zeros((1, columns), np.float32)
    x[0, :2] = 1e30, -1e30
    bias = np.arange(columns, dtype=np.float32)
    with emulator.enabled("checked"):
        (out,), (g, _) = _results(layer_norm, [x, None, bias, None], [np.ones_like(x)])
    np.testing.assert_array_equal(out.data, [bias])
    np.testing.assert_array_equal(g.data, np.zeros_like(x))


def test_statistics_of_half_precision_are_float32():
    x = np.full((1, 4096), 100, np.float16)
    x[0, ::2] += 1  # sums of squares beyond float16, differences below its resolution of sums
    with emulator.enabled("checked"):
        out = layer_norm(gg.Tensor(x), eps=0.0)
    np.testing.assert_array_equal(out.data[0, :4], np.array([1, -1, 1, -1], np.float16))


def test_what_the_kernels_do_not_take_goes_elsewhere():
    before = _layer_norm.launches["cuda"]
    weight = gg.ones(4).astype("bfloat16")
    with emulator.enabled("checked"):
        layer_norm(gg.ones(2, 4).astype("float64"))
        layer_norm(gg.ones(2, 4), weight)
        layer_norm(gg.ones(0, 4))
    assert _layer_norm.launches["cuda"] == before


def test_second_derivatives_replay_the_spec():
    x = gg.Tensor(np.float32([[0.5, -1.0, 2.0, 0.0]]), requires_grad=True)
    results = []
    for mode in ("checked", None):
        with emulator.enabled(mode) if mode else gg.enable_grad():
            (g,) = gg.grad((layer_norm(x) ** 3).sum(), x, create_graph=True)
            (second,) = gg.grad((g * g).sum(), x)
        results.append(second.data)
    np.testing.assert_allclose(*results, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [5, 24])
def test_a_pair_without_a_residual_is_the_pair_of_a_residual_of_zeros(columns, dtype):
    (x, weight, bias, _), upstream = _inputs((6, columns), dtype=dtype)

    def paired(x, weight, bias, residual, eps):
        return layer_norm(x, weight, bias, None, eps, paired=True)

    before = cuda.launches.copy()
    found = emulator.sweep(lambda: _results(paired, [x, weight, bias, None], upstream))
    launched = cuda.launches - before
    kind = "any" if columns == 5 else ""
    assert launched["_".join(filter(None, ("layer_norm_backward", kind)))] == len(SWEEP)
    zeros = [x, weight, bias, np.zeros_like(x)]
    with emulator.enabled("plain"):
        (outs, grads) = _results(layer_norm, zeros, upstream)
    for a, b in zip((*found[0], *found[1]), (*outs, *grads[:3]), strict=True):
        assert a.data.tobytes() == b.data.tobytes()
