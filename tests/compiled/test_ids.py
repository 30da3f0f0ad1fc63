"""gg.compile: ids out of range are seen by kernels alone, which give NaN and touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.cuda import recording
from gpugrad.fused.base import FUSED
from gpugrad.nn import functional as F

IDS = np.array([[0, 4, 5], [-1, 2, 2**40]])
KNOWN = (IDS >= 0) & (IDS < 5)


@pytest.fixture(params=["plain", "checked"])
def mode(request):
    with emulator.enabled(request.param):
        yield request.param


def outputs(step, *args):
    """Return what a step gives in the first and second call: the same."""
    run = gg.compile(step)
    first, second = ([t.numpy() for t in run(*args)] for _ in range(2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    return first


@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_rows_of_a_table(mode, kind):
    rng = np.random.default_rng(1)
    table = gg.tensor(rng.standard_normal((5, 3)).astype("f"), requires_grad=True)
    ids = IDS.astype(kind) if kind == "int64" else np.minimum(IDS, 2**31 - 1).astype(kind)
    weights = rng.standard_normal((2, 3, 3)).astype("f")

    def step(ids, weights):
        table.grad = None
        rows = F.embedding(ids, table)
        rows.backward(weights)
        return rows, table.grad

    rows, gradient = outputs(step, ids, weights)
    expected = np.where(KNOWN[..., None], table.numpy()[np.where(KNOWN, IDS, 0)], np.nan)
    np.testing.assert_array_equal(rows, expected)
    wanted = np.zeros((5, 3), np.float32)
    np.add.at(wanted, IDS[KNOWN], weights[KNOWN])
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)
    if kind == "int64":  # the kernels that run without a recording, which look at no value either
        eager = FUSED["embedding"](gg.tensor(ids), table.detach(), padding_idx=None)
        np.testing.assert_array_equal(rows, eager.numpy())


def test_classes(mode):
    rng = np.random.default_rng(2)
    logits = gg.tensor(rng.standard_normal((6, 5)).astype("f"), requires_grad=True)

    def step(targets):
        logits.grad = None
        losses = F.cross_entropy(logits, targets, reduction="none")
        losses.sum().backward()
        return losses, logits.grad

    losses, gradient = outputs(step, IDS.reshape(-1))
    known = KNOWN.reshape(-1)
    assert np.isnan(losses[~known]).all()
    plain = F.cross_entropy(logits.detach()[known], IDS[KNOWN], reduction="none")
    np.testing.assert_array_equal(losses[known], plain.numpy())
    assert np.isfinite(gradient[known]).all()


def test_ids_made_of_a_tensor_from_outside_follow_it(mode):
    x = gg.tensor(np.array([1.5, 2.5], np.float32))
    run = gg.compile(lambda: x.astype("int64"))
    assert run().tolist() == [1, 2]
    with gg.no_grad():
        x += 1
    assert run().tolist() == [2, 3]


def test_what_the_host_sees_is_refused_as_ever(mode):
    table = gg.tensor(np.ones((5, 3), np.float32))
    run = gg.compile(lambda: F.embedding(IDS, table))
    with pytest.raises(IndexError, match=r"ids\[0, 2\] is 5, but the number of rows"):
        run()
    assert recording.current() is None
    assert cuda.emulated()
