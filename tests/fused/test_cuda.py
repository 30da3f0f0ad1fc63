"""Generated from the registry: the CUDA kernels of every fused operation at its samples.

In the checked emulator everywhere; on the GPU, where there is one, also at the sizes of the
benchmarks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.fused import FUSED
from gpugrad.testing.kernels import drawn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench

WITH_KERNELS = {name: op for name, op in FUSED.items() if "cuda" in op.implementations}
CASES = [
    pytest.param(op, sample, id=f"{name}-{sample!r}")
    for name, op in WITH_KERNELS.items()
    for sample in op.samples
]
LARGE = [
    pytest.param(case.op, case.at("cpu"), id=f"{case.op}-{case.title('cpu')}")
    for name in bench.names()
    for case in bench.cases(name)
    if isinstance(case, bench.Case)  # the others are no fused operations
]
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def agrees(op, sample, dtype, inputs):
    """Hold the operation against its spec; return how often each implementation was launched."""
    # weights of classes and masks are not in the dtype of the rest
    fixed = {
        i: x.astype("float32")
        for i, (x, name) in enumerate(zip(inputs, op.arguments, strict=True))
        if x is not None and name not in op.differentiable and x.dtype.kind == "f"
    }

    def complete(args):
        return [fixed.get(i, x) for i, x in enumerate(args)]

    def run(*args):
        return op(*complete(args), **sample.statics)

    def spec(*args):
        return op.spec(*complete(args), **sample.statics)

    before = op.launches.copy()
    run.__name__ = op.name
    testing.assert_implements(run, spec, inputs, dtype)
    return op.launches - before


@pytest.mark.parametrize(("op", "sample"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_emulator(op, sample, dtype):
    with emulator.enabled("checked"):
        assert agrees(op, sample, dtype, drawn(op, sample))["spec"] == 0


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_the_kernels_ran_for_some_sample(name):
    op = WITH_KERNELS[name]
    before = op.launches["cuda"]
    with emulator.enabled():
        for sample in op.samples:
            inputs = [
                x if x is None or x.dtype.kind != "f" else x.astype("float32")
                for x in drawn(op, sample)
            ]
            with gg.no_grad():
                op(*inputs, **sample.statics)
    assert op.launches["cuda"] > before


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "sample"), CASES)
@dtypes
def test_on_the_gpu(op, sample, dtype):
    inputs = [x if x is None else x.to("cuda") for x in drawn(op, sample)]
    agrees(op, sample, dtype, inputs)


def test_large_ones_are_fused_operations():
    assert {param.values[0] for param in LARGE} <= {*WITH_KERNELS}
    assert len(LARGE) > 10


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "sample"), LARGE)
@dtypes
def test_large_on_the_gpu(name, sample, dtype):
    op = FUSED[name]
    inputs = bench.inputs(op, sample, "float32", "cuda")
    assert agrees(op, sample, dtype, inputs)["cuda"] >= 1
