"""The CUDA kernel in the emulator: no fault, and in any order the bits of the NumPy path."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.optim import SGD, chunks

pytestmark = pytest.mark.usefixtures("without_openblas")

SHAPES = [(), (1,), (3,), (0, 4), (1023,), (5, 7, 2), (2011, 3), (64, 16)]
STEPS = 10


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    """Three rounds of vectors in a chunk, three chunks in the largest parameter."""
    monkeypatch.setattr(chunks, "CHUNK", 2560)


def set_gradients(params, seed, dtype):
    rng = np.random.default_rng(seed)
    for p in params:
        p._grad = gg.tensor(rng.normal(size=p.shape), dtype=dtype)


def trained(settings, dtype="float32", g_dtype="float32", wide=False):
    """Return the parameters, then the momentum; ``wide``: in float64 from the same values."""
    rng = np.random.default_rng(2)
    params = [gg.tensor(rng.normal(size=s), dtype=dtype, requires_grad=True) for s in SHAPES]
    if wide:
        params = [gg.tensor(p.numpy().astype(np.float64), requires_grad=True) for p in params]
    optimizer = SGD(params, lr=0.1, **settings)
    for step in range(STEPS):
        set_gradients(params, step, g_dtype)
        if wide:
            for p in params:
                p._grad = p._grad.astype("float64")
        optimizer.step()
    states = optimizer.state_dict()["state"].values()
    return [p.numpy() for p in params] + [
        a for state in states for name, a in state.items() if name != "step"
    ]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.astype(np.float64), y.astype(np.float64))


@pytest.mark.parametrize("weight_decay", [0.0, 0.25], ids=["plain", "decay"])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.0, True), (0.5, 0.3, False)],
    ids=["sgd", "momentum", "nesterov", "dampened"],
)
@pytest.mark.parametrize(
    ("dtype", "g_dtype"), [("float32", "float32"), ("float32", "float16"), ("bfloat16",) * 2]
)
def test_agrees_with_numpy(dtype, g_dtype, momentum, dampening, nesterov, weight_decay):
    settings = {
        "momentum": momentum,
        "dampening": dampening,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
    }
    how = emulator.SWEEP if g_dtype == "float32" else emulator.SWEEP[2:3]
    before = cuda.launches["sgd"]
    found = emulator.sweep(lambda: trained(settings, dtype, g_dtype), how)
    assert cuda.launches["sgd"] == before + STEPS * len(how)
    plain = trained(settings, dtype, g_dtype)
    assert_same(found, plain)
    exact = trained(settings, dtype, g_dtype, wide=True)
    for x, e, p in list(zip(found, exact, plain, strict=False))[: len(SHAPES)]:
        testing.assert_close(x, e, p, factor=2)


@pytest.mark.gpu
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_agrees_with_numpy_on_a_gpu(monkeypatch, dtype, momentum):
    settings = {"momentum": momentum, "weight_decay": 0.25}
    before = cuda.launches["sgd"]
    found = trained(settings, dtype, dtype)
    assert cuda.launches["sgd"] == before + STEPS
    monkeypatch.setenv("GPUGRAD_DEVICE", "cpu")
    exact, plain = trained(settings, dtype, dtype, wide=True), trained(settings, dtype, dtype)
    for x, e, p in list(zip(found, exact, plain, strict=False))[: len(SHAPES)]:
        testing.assert_close(x, e, p, factor=2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_values_that_are_not_finite(momentum, weight_decay):
    def run():
        p = gg.tensor(np.array([1, np.inf, -np.inf, 0, 1], "float32"), requires_grad=True)
        optimizer = SGD([p], lr=0.5, momentum=momentum, weight_decay=weight_decay)
        for values in ([np.nan, 1, 1, np.inf, 3e38], [1, 1, 0, 1, 3e38]):
            p.grad = gg.tensor(np.array(values, "float32"))
            optimizer.step()
        return [p.numpy()]

    with emulator.enabled("checked"):
        found = run()
    with np.errstate(all="ignore"):
        assert_same(found, run())


def test_settings_of_groups_and_momentum_switched_on_later():
    def run():
        params = [gg.tensor(np.ones(n, np.float32), requires_grad=True) for n in (5, 300)]
        optimizer = SGD([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], lr=0.1)
        for momentum in (0.0, 0.5, 0.5):
            optimizer.param_groups[1]["momentum"] = momentum
            set_gradients(params, 1, "float32")
            optimizer.step()
        return [p.numpy() for p in params]

    before = cuda.launches["sgd"]
    with emulator.enabled("checked"):
        found = run()
    assert cuda.launches["sgd"] == before + 3
    assert_same(found, run())
