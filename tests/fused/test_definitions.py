"""Generated from the registry: every fused operation at each of its samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import FUSED, Fused
from gpugrad.registry import Sample

CASES = [
    pytest.param(op, sample, id=f"{name}-{sample!r}")
    for name, op in FUSED.items()
    for sample in op.samples
]
each_sample = pytest.mark.parametrize(("op", "sample"), CASES)


def numpy_of(op: Fused) -> Any:
    """Return the implementation for NumPy's arrays, None if there is none."""
    return op.implementations.get("numpy")


def drawn(op: Fused, sample: Sample) -> list[Any]:
    """Return the sample's inputs as float64 tensors; None and integers stay what they are."""
    inputs = []
    arrays = sample.draw(np.random.default_rng(5))
    for name, array in zip(op.arguments, arrays, strict=True):
        grows = array is not None and array.dtype.kind == "f" and name in op.differentiable
        inputs.append(None if array is None else gg.Tensor(array, requires_grad=grows))
    return inputs


def bound(run: Any, sample: Sample) -> Any:
    """Return run with the sample's keywords, as a function of the tensors alone."""
    return lambda *inputs: run(*inputs, **sample.statics)


@each_sample
def test_spec_has_the_gradient_of_finite_differences(op, sample):
    testing.gradcheck(bound(op.spec, sample), drawn(op, sample))


@each_sample
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_implementation_agrees_with_the_spec(op, sample, dtype):
    scale = 1e3 if dtype == "float64" else 0.0  # the float64 spec is its own reference
    fast, spec = bound(op, sample), bound(op.spec, sample)
    testing.assert_implements(fast, spec, drawn(op, sample), dtype, scale=scale)


@each_sample
def test_second_derivative_is_that_of_finite_differences(op, sample):
    testing.gradgradcheck(bound(op, sample), drawn(op, sample))


@each_sample
def test_fast_path_runs_once_and_create_graph_replays_the_spec(op, sample, launching):
    inputs = drawn(op, sample)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    # "spec" where the parts are fused
    chosen = op.choose([None if x is None else x.data for x in inputs], sample.statics)
    with launching(op.name, chosen=chosen):
        out = op(*inputs, **sample.statics)
    outs = out if isinstance(out, tuple) else (out,)
    upstream = [gg.Tensor(np.ones(o.shape)) for o in outs]
    with launching(op.name, times=0):
        plain = gg.grad(outs, wanted, upstream, retain_graph=True)
        recorded = gg.grad(outs, wanted, upstream, create_graph=True)
    for a, b in zip(plain, recorded, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-9, atol=1e-12)


@each_sample
def test_only_what_is_asked_for_gets_a_gradient(op, sample):
    inputs = drawn(op, sample)
    for k, x in enumerate(inputs):
        if x is None or not x.requires_grad:
            continue
        alone = [i if i is None else i.detach() for i in inputs]
        alone[k] = x
        together, single = (op(*args, **sample.statics) for args in (inputs, alone))
        together, single = (o if isinstance(o, tuple) else (o,) for o in (together, single))
        # of several results of a spec some may have nothing to do with x
        reached = [i for i, o in enumerate(single) if o.requires_grad]
        upstream = [gg.Tensor(np.ones(single[i].shape)) for i in reached]
        a, b = (
            gg.grad([outs[i] for i in reached], [x], upstream)[0] for outs in (together, single)
        )
        assert a.data.tobytes() == b.data.tobytes()


@each_sample
def test_inputs_and_gradients_are_not_changed(op, sample):
    inputs = drawn(op, sample)
    before = [None if x is None else x.data.copy() for x in inputs]
    out = op(*inputs, **sample.statics)
    outs = out if isinstance(out, tuple) else (out,)
    upstream = [gg.Tensor(np.full(o.shape, 0.5)) for o in outs]
    gg.grad(outs, [x for x in inputs if x is not None and x.requires_grad], upstream)
    for x, array in zip(inputs, before, strict=True):
        if x is not None:
            np.testing.assert_array_equal(x.data, array)
    assert all((u.data == 0.5).all() for u in upstream)


@each_sample
def test_under_no_grad_nothing_is_recorded_and_no_memory_shared_with_the_inputs(op, sample):
    inputs = drawn(op, sample)
    with gg.no_grad():
        out = op(*inputs, **sample.statics)
    for o in out if isinstance(out, tuple) else (out,):
        assert not o.requires_grad
        assert not any(x is not None and np.shares_memory(o.data, x.data) for x in inputs)


@pytest.mark.parametrize(
    ("op", "sample"), [c for c in CASES if getattr(numpy_of(c.values[0]), "unread", ())]
)
def test_what_backward_does_not_read_may_be_anything(op, sample):
    implementation = numpy_of(op)
    arrays = [x if x is None else x.data for x in drawn(op, sample)]
    out, residuals = implementation.forward(*arrays, **sample.statics)
    several = isinstance(out, tuple)
    outs = out if several else (out,)
    g = [np.random.default_rng(6).standard_normal(o.shape) for o in outs]
    wanted = tuple(
        a is not None and name in op.differentiable
        for name, a in zip(op.arguments, arrays, strict=True)
    )
    poisoned = [
        np.full_like(a, math.nan) if a is not None and name in implementation.unread else a
        for name, a in zip(op.arguments, arrays, strict=True)
    ]
    upstream = g if several else g[0]
    expected, found = (
        implementation.backward(wanted, upstream, given, residuals, **sample.statics)
        for given in (arrays, poisoned)
    )
    for a, b, w in zip(expected, found, wanted, strict=True):
        if w:
            np.testing.assert_array_equal(a, b)
