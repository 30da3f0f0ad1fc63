"""Replays of fused operations: they do again all that is done with values, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, fused, processes, threads
from gpugrad.cuda import recording, replay
from gpugrad.fused import FUSED
from gpugrad.registry import Sample

PREPARED = {
    name: op
    for name, op in FUSED.items()
    if "numpy" in op.implementations and op.implementations["numpy"].prepared
}
EVERY = "float16", "bfloat16", "float32", "float64"
IDS = np.array([[3, 0, 3], [2, 3, 2]])
# what the samples of an operation leave out, as NumPy takes it where it is large only
LARGE = {
    "affine": [Sample((75, 200), (300, 200), (300,))],
    "mlp": [
        Sample((100, 150), (600, 150), (600,), (150, 600), None, approximate="tanh"),
        Sample((2, 60, 130), (300, 130), None, (140, 300), (140,), approximate="none"),
    ],
    "layer_norm_affine": [
        Sample((520, 128), (128,), (128,), (520, 128), (100, 128), (100,), eps=1e-5),
        Sample((2, 260, 128), None, (128,), None, (100, 128), None, eps=1e-5),
    ],
    "layer_norm_mlp": [
        Sample(
            *((2, 260, 128), (128,), (128,), (2, 260, 128)),
            *((256, 128), (256,), (128, 256), (128,)),
            eps=1e-5,
            approximate="tanh",
        )
    ],
}
MORE = {
    "cross_entropy": [
        Sample((300, 400), IDS.repeat(50, 0).reshape(-1) * 100, (400,)),
        Sample((2, 3, 5), np.where(IDS == 2, -100, IDS), None),
    ],
    "layer_norm": [Sample((700, 200), (200,), (200,), (700, 200), eps=1e-5, paired=True)],
    "packed_attention": [Sample((4, 70, 3, 4, 24))],
    "scaled_dot_product_attention": [Sample((3, 4, 70, 8), (3, 4, 70, 8), (3, 4, 70, 8), (70, 70))],
}


def _cases() -> list[Any]:
    found = []
    for name, op in PREPARED.items():
        statics = op.samples[-1].statics
        more = MORE.get(name, [])
        for sample in more:
            sample.statics = {**statics, **sample.statics}
        samples = LARGE.get(name) or [*op.samples, *more]
        for dtype in EVERY[2:] if name in LARGE else EVERY:
            for turned in (False, True):
                for i, sample in enumerate(samples):
                    case = f"{name}-{i}-{dtype}{'-turned' * turned}"
                    found.append(pytest.param(op, sample, dtype, turned, id=case))
    return found


def _drawn(sample: Sample, dtype: str, turned: bool, rng: np.random.Generator) -> list[Any]:
    """Return arrays, those of several dimensions with the last two exchanged."""
    found = []
    for array in sample.draw(rng):
        if array is not None and array.dtype.kind == "f":
            array = array.astype(getattr(backend, dtype))
            if turned and array.ndim > 1:
                array = np.ascontiguousarray(array.swapaxes(-1, -2))
        found.append(array)
    return found


def _step(op: Any, sample: Sample, turned: bool) -> Callable[..., Any]:
    """Return what returns the results of an operation and the gradients of their squares."""
    function = getattr(fused, op.name)
    names, differentiable = op.arguments, op.differentiable
    statics = {name: value for name, value in sample.statics.items() if name != "draw"}

    def step(*tensors: Any) -> Any:
        leaves = [t if t is None else t.detach() for t in tensors]
        given = []
        for i, t in enumerate(leaves):
            if t is not None and t.dtype.kind not in "ib":
                t.requires_grad = names[i] in differentiable
                t = t.mT if turned and t.ndim > 1 else t
            given.append(t)
        outs = function(*given, **statics)
        outs = outs if isinstance(outs, tuple) else (outs,)
        for out in outs:
            (out.astype("float32") ** 2).sum().backward(retain_graph=True)
        return *outs, *(t.grad for t in leaves if t is not None and t.grad is not None)

    return step


@pytest.mark.parametrize(("count", "helped"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("op", "sample", "dtype", "turned"), _cases())
def test_replays_like_a_new_call(monkeypatch, rng, op, sample, dtype, turned, count, helped):
    """Bit for bit, whatever was in the memory of the step; the call itself is made once.

    Other processes take a part where ``helped``.
    """
    monkeypatch.setenv(processes.VARIABLE, str(int(helped)))
    monkeypatch.setattr(processes, "LEAST", 0)
    calls: list[str] = []
    whole, run = recording.Whole.__call__, replay.Replay.run

    def counted(self: Any, *args: Any) -> None:
        calls.append(self.function.__name__)
        whole(self, *args)

    def poisoned(self: Any) -> None:
        self.arena[...] = 0xFF  # NaN in every dtype
        run(self)

    monkeypatch.setattr(recording.Whole, "__call__", counted)
    monkeypatch.setattr(replay.Replay, "run", poisoned)
    step, before = _step(op, sample, turned), op.launches["numpy"]
    compiled = gg.compile(step, device="cpu")
    with threads.num_threads(count):
        for time in range(5):
            arrays = _drawn(sample, dtype, turned, rng)
            tensors = [a if a is None else gg.Tensor(a) for a in arrays]
            if time == 1:
                calls.clear()
            gg.manual_seed(time)
            found = compiled(*tensors)
            gg.manual_seed(time)
            expected = step(*tensors)
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a.data, b.data, strict=True)
    assert not {op.name, f"{op.name}_backward"} & set(calls)
    assert op.launches["numpy"] > before


def test_all_that_transformers_use_is_prepared():
    """The operations of a GPT's training step; what it takes to be there is tested above."""
    assert set(PREPARED) >= {
        "affine",
        "cross_entropy",
        "embedding",
        "layer_norm",
        "layer_norm_affine",
        "layer_norm_mlp",
        "mlp",
        "packed_attention",
        "rms_norm",
        "scaled_dot_product_attention",
    }


@pytest.mark.skipif(
    not (sys.platform == "linux" and processes.platform.machine() == "x86_64"),
    reason="helpers are forked on Linux on x86-64",
)
@pytest.mark.parametrize("name", sorted({*LARGE, *MORE}))
def test_the_large_ones_are_helped(monkeypatch, rng, name):
    """So that what is the same above is what other processes have done."""
    monkeypatch.setenv(processes.VARIABLE, "1")
    monkeypatch.setattr(processes, "LEAST", 0)
    op, (sample, *_) = PREPARED[name], (LARGE.get(name) or MORE[name])
    compiled = gg.compile(_step(op, sample, turned=False), device="cpu")
    arrays = _drawn(sample, "float32", False, rng)
    with threads.num_threads(3):
        compiled(*[a if a is None else gg.Tensor(a) for a in arrays])
    (recording,) = (one for found in compiled._found.values() for one in found)
    assert len(recording.replay._helped._team) > 0
