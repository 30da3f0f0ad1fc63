"""The CUDA kernel in the emulator: no fault, the same bits in any order, the spec's values."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, testing
from gpugrad.cuda import source
from gpugrad.fused.cross_entropy import _cross_entropy

PATH = source.folder() / "cross_entropy.cu"
IGNORED = -100


def _inputs(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows * columns)
    logits = (rng.normal(size=(rows, columns)) * 5).astype(np.float32)
    target = rng.integers(0, columns, rows)
    return logits, target, rng.normal(size=rows).astype(np.float32)


def _spec(
    logits: np.ndarray, target: np.ndarray, upstream: np.ndarray, smoothing: float, dtype: str
) -> tuple[gg.Tensor, gg.Tensor]:
    x = gg.tensor(logits, dtype=dtype, requires_grad=True)
    loss = _cross_entropy.spec(
        x,
        gg.tensor(target),
        None,
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="none",
    )
    (g,) = gg.grad(loss, x, gg.tensor(upstream, dtype=dtype))
    return loss.detach(), g


def _kernel(
    logits: np.ndarray, target: np.ndarray, upstream: np.ndarray, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = logits.shape
    launch = {"grid": (rows, 1, 1), "block": (256, 1, 1)}
    loss, top, total = (emulator.empty(rows, np.float32) for _ in range(3))
    args = [logits, target, loss, top, total, columns, IGNORED, smoothing]
    _, _, loss, top, total, *_ = emulator.check(PATH, "cross_entropy_forward", args=args, **launch)
    out = emulator.empty(logits.shape, np.float32)
    args = [logits, target, top, total, upstream, out, columns, IGNORED, smoothing]
    out = emulator.check(PATH, "cross_entropy_backward", args=args, **launch)[5]
    return loss, out


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 257), (4, 1023)], ids=str)
def test_agrees_with_the_spec(shape, smoothing):
    logits, target, upstream = _inputs(*shape)
    if shape[0] > 2:
        target[0] = IGNORED
    loss, g = _kernel(logits, target, upstream, smoothing)
    exact = _spec(logits, target, upstream, smoothing, "float64")
    plain = _spec(logits, target, upstream, smoothing, "float32")
    scale = float(np.abs(logits).max())
    testing.assert_close(loss, exact[0], plain[0], factor=2, scale=scale, name="loss")
    testing.assert_close(g, exact[1], plain[1], factor=3, name="gradient")
    if shape[0] > 2:
        assert loss[0] == 0
        assert not g[0].any()


def test_extreme_rows():
    logits, target, upstream = _inputs(4, 300)
    logits[0], logits[1] = 1e30, -1e30
    logits[2, 1:] = -np.inf
    logits[3, 7] = np.nan
    target[2] = 0
    loss, g = _kernel(logits, target, upstream, 0.0)
    assert loss[:2] == pytest.approx([np.log(300)] * 2, rel=1e-6)
    assert loss[2] == 0
    assert np.isnan(loss[3])
    assert np.isfinite(g[:3]).all()
    assert np.isnan(g[3]).all()


def test_the_gradient_may_replace_the_logits():
    logits, target, upstream = _inputs(2, 33)
    _, expected = _kernel(logits, target, upstream, 0.0)
    module = emulator.Module(source.inline(PATH), name=PATH.name)
    loss, top, total = (np.empty(2, np.float32) for _ in range(3))
    with emulator.enabled("checked"):
        args = (logits, target, loss, top, total, 33, IGNORED, 0.0)
        module.get_function("cross_entropy_forward")((2, 1, 1), (256, 1, 1), args, 0)
        args = (logits, target, top, total, upstream, logits, 33, IGNORED, 0.0)
        module.get_function("cross_entropy_backward")((2, 1, 1), (256, 1, 1), args, 0)
    np.testing.assert_array_equal(logits, expected)
