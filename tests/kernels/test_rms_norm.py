"""The CUDA kernels in the emulator: no fault, the same bits in any order, the spec's values.

The kernels are those of layer_norm.cu without the mean; test_layer_norm.py says more of them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.emulator.check import SWEEP
from gpugrad.fused import _norms, rms_norm
from gpugrad.fused.rms_norm import _rms_norm

EPS = 1e-6


def _inputs(shape, given="weight residual", dtype="float32", seed=0):
    """Return x, weight, residual (None if not given) and the upstream gradients."""
    rng = np.random.default_rng(seed)
    kind = gg.asarray([0.0]).astype(dtype).dtype
    arrays = [
        rng.normal(0.3, 1, shape),
        rng.normal(size=shape[-1:]) if "weight" in given else None,
        rng.normal(size=shape) if "residual" in given else None,
    ]
    upstream = [rng.normal(size=shape) for _ in range(2 if "residual" in given else 1)]
    return [a if a is None else a.astype(kind) for a in arrays], [g.astype(kind) for g in upstream]


def _results(function, arrays, upstream, dtype=None, wanted=(True,) * 3, eps=EPS):
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


def _check(arrays, upstream, settings=SWEEP, eps=EPS):
    """Compare with the spec; return results and gradients."""
    before = _rms_norm.launches["cuda"]
    found = emulator.sweep(lambda: _results(rms_norm, arrays, upstream, eps=eps), settings)
    assert _rms_norm.launches["cuda"] == before + len(settings)
    with np.errstate(all="ignore"):
        exact = _results(_rms_norm.spec, arrays, upstream, "float64", eps=eps)
        plain = _results(_rms_norm.spec, arrays, upstream, arrays[0].dtype, eps=eps)
    for factor, *three in zip((2, 3), found, exact, plain, strict=True):
        for i, (a, e, p) in enumerate(zip(*three, strict=True)):
            what = f"{'result' if factor == 2 else 'gradient'} {i}"
            testing.assert_close(a, e, p, factor=factor, name=what)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3, 5), (2, 1023), (130, 8), (3, 2, 64), (6, 768), (2, 1544)],
    ids=str,
)
def test_agrees_with_the_spec(shape, dtype):
    # with one element eps is all that does not cancel
    _check(*_inputs(shape, dtype=dtype), eps=EPS if shape[-1] > 1 else 0.1)


def test_float16():
    _check(*_inputs((5, 200), dtype="float16"))


@pytest.mark.parametrize("given", ["", "weight", "residual"])
@pytest.mark.parametrize("columns", [13, 16])
def test_arguments_are_optional(columns, given):
    _check(*_inputs((5, columns), given))


@pytest.mark.parametrize("columns", [9223, 9224])
def test_rows_too_long_for_registers(columns):
    before = cuda.launches.copy()
    _check(*_inputs((2, columns), dtype="bfloat16"), settings=SWEEP[1:2])
    kernels = ("forward_any", "backward_any", "parameters_any")
    added = {f"rms_norm_{kernel}": 1 for kernel in kernels}
    assert cuda.launches - before == {**added, "column_sums_total": 1}


@pytest.mark.parametrize("shape", [(29, 768), (11, 1544), (700, 8)], ids=str)
def test_blocks_that_take_many_rows(shape, monkeypatch):
    monkeypatch.setattr(_norms, "BLOCKS", 1)
    _check(*_inputs(shape))


def test_more_rows_than_a_grid_has_in_y():
    _check(*_inputs((66_000, 4)), settings=SWEEP[4:5])


@pytest.mark.parametrize("columns", [9, 8])
def test_only_what_is_wanted_is_computed(columns):
    arrays, upstream = _inputs((6, columns))
    with emulator.enabled("checked"):
        _, everything = _results(rms_norm, arrays, upstream)
        for wanted in itertools.product((False, True), repeat=3):
            before = cuda.launches.copy()
            _, grads = _results(rms_norm, arrays, upstream, wanted=wanted)
            expected = [g for g, w in zip(everything, wanted, strict=True) if w]
            assert [g.numpy().tobytes() for g in grads] == [g.numpy().tobytes() for g in expected]
            launched = cuda.launches - before
            assert launched["column_sums_total"] == wanted[1]
            if columns == 9:
                assert launched["rms_norm_backward_any"] == (wanted[0] or wanted[2])
                assert launched["rms_norm_parameters_any"] == wanted[1]


def test_only_the_sum_has_a_gradient():
    arrays, _ = _inputs((3, 8))
    with emulator.enabled("checked"):
        x, weight, residual = (gg.tensor(a, requires_grad=True) for a in arrays)
        _, total = rms_norm(x, weight, residual)
        (total * 2).sum().backward()
    for t in (x, residual):
        np.testing.assert_array_equal(t.grad.data, np.full((3, 8), 2))
    assert weight.grad is None


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_does_not_change_a_bit(layout):
    arrays, upstream = _inputs((4, 3, 32))
    moved = [dict(testing.layouts(a))[layout] for a in arrays]
    with emulator.enabled("checked"):
        expected = _results(rms_norm, arrays, upstream)
        found = _results(rms_norm, moved, [dict(testing.layouts(g))[layout] for g in upstream])
    for a, b in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("columns", [37, 1024])
@pytest.mark.parametrize(("offset", "spread"), [(0, 1e-6), (1e3, 1), (1e3, 1e15)])
def test_small_and_huge_spreads(offset, spread, columns):
    arrays, upstream = _inputs((2, columns), "weight")
    arrays[0] = np.float32(offset + spread * arrays[0].astype(np.float64))
    _check(arrays, upstream, settings=SWEEP[:1])


@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(bad, columns):
    arrays, upstream = _inputs((3, columns), "weight")
    arrays[0][1, 2] = bad
    found = _check(arrays, upstream, settings=SWEEP[:1])
    (out,), grads = found
    assert np.isnan(out.data[1, 2])
    assert np.isfinite(out.data[[0, 2]]).all()
    assert np.isfinite(grads[0].data[[0, 2]]).all()


@pytest.mark.parametrize("columns", [5, 8])
def test_a_row_of_zeros(columns):
    with emulator.enabled("checked"):
        assert not rms_norm(gg.zeros(2, columns)).data.any()
        assert np.isnan(rms_norm(gg.zeros(2, columns), eps=0.0).data).all()


def test_what_the_kernels_do_not_take_goes_elsewhere():
    before = _rms_norm.launches["cuda"]
    with emulator.enabled("checked"):
        rms_norm(gg.ones(2, 4).astype("float64"))
        rms_norm(gg.ones(2, 4), gg.ones(4).astype("bfloat16"))
        rms_norm(gg.ones(0, 4))
    assert _rms_norm.launches["cuda"] == before
