"""gg.compile: what a recording depends on, what it serves, and where it runs."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from plain_and_compiled import WAYS, bits, by_kernels

import gpugrad as gg
from gpugrad import compiled, cuda, nn
from gpugrad.cuda.recording import NotRecordable
from gpugrad.nn import functional as F

pytestmark = pytest.mark.usefixtures("launched")


@gg.no_grad()
def test_modes_of_modules(rng):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    x = rng.standard_normal((4, 8)).astype("f")
    run = gg.compile(lambda x: model(x))
    model.train()
    kept = run(x).numpy()
    model.eval()
    np.testing.assert_array_equal(run(x).numpy(), model(x).numpy())
    assert (kept == 0).any()
    assert run.recordings == 2
    model.train()
    assert bits(run(x)) != bits(run(x))
    assert run.recordings == 2


@gg.no_grad()
def test_numbers_and_replaced_parameters(rng):
    w = gg.tensor(rng.standard_normal((3, 3)).astype("f"), requires_grad=True)
    run = gg.compile(lambda x, factor: F.linear(x, w) * factor)
    x = rng.standard_normal((2, 3)).astype("f")
    one, two = run(x, 1.0).numpy(), run(x, 2.0).numpy()
    np.testing.assert_array_equal(one * 2, two)
    w.data = w.data * 3
    np.testing.assert_allclose(run(x, 1.0).numpy(), one * 3, rtol=1e-5, atol=1e-6)
    assert run.recordings == 3


def test_too_many_recordings_say_so():
    run = gg.compile(lambda x, k: x * k)
    x = np.ones(3, np.float32)
    for k in range(16):
        run(x, k)
    with pytest.warns(UserWarning, match="was recorded 16 times"):
        run(x, 16)
    assert run(x, 17).tolist() == [17] * 3
    assert run(x, 3).tolist() == [3] * 3
    assert run.recordings == 16


def test_results_belong_to_the_caller():
    run = gg.compile(lambda x: {"twice": x * 2, "same": [x, 3, None]})
    first = run(np.full(4, 1, np.float32))
    second = run(np.full(4, 5, np.float32))
    assert first["twice"].tolist() == [2] * 4
    assert second["twice"].tolist() == [10] * 4
    assert first["same"][0].tolist() == [1] * 4
    assert first["same"][1:] == [3, None]


@by_kernels
def test_without_kernels_numpys_calls_are_recorded():
    ran = []

    @gg.compile
    def run(x):
        ran.append(x.shape)
        return gg.exp(x) * 2

    with cuda.emulation.disabled():
        for x in (gg.ones(3), gg.zeros(3), gg.ones(4)):
            assert bits(run(x)) == bits(gg.exp(x) * 2)
        assert ran == [(3,), (4,)]
        (first,), _ = run._found.values()
        assert [launch.name for launch in first.trace.launches] == ["exp", "multiply"]
    run(gg.ones(3))  # by kernels
    assert run.recordings == 3


@by_kernels
@gg.no_grad()
def test_a_step_runs_where_its_tensors_are(monkeypatch):
    """A machine with a GPU, and a model that was left on the CPU."""
    w = gg.tensor(np.ones(3, np.float32), requires_grad=True, device="cpu")
    run = gg.compile(lambda x: w * x)

    monkeypatch.setenv("GPUGRAD_DEVICE", "cuda")
    monkeypatch.setattr(compiled, "_capability", lambda device: 90)  # of whatever there is
    with cuda.emulation.disabled():
        for _ in range(2):
            assert run(np.full(3, 2, np.float32)).tolist() == [2] * 3
    assert run.recordings == 1


def test_a_compiled_function_inside_of_another():
    inner = gg.compile(lambda x: x * 2)
    outer = gg.compile(lambda x: inner(x) + 1)
    assert outer(np.ones(2, np.float32)).tolist() == [3, 3]
    assert (inner.recordings, outer.recordings) == (0, 1)


def test_what_escaped_from_a_recording():
    kept = queue.SimpleQueue()
    gg.compile(lambda x: kept.put(x * 2))(np.ones(3, np.float32))
    with pytest.raises(NotRecordable, match="outside of"):
        (kept.get() + 1).sum()


@gg.no_grad()
def test_other_threads_compute_meanwhile():
    w = gg.tensor(np.ones(3, np.float32), requires_grad=True)
    found = []

    @gg.compile
    def step(x):
        other = gg.tensor(np.full(3, 7, np.float32), requires_grad=True)
        thread = threading.Thread(target=lambda: found.append((other * 2).numpy()))
        thread.start()
        thread.join()
        return w * x

    step(np.ones(3, np.float32))
    assert found[0].tolist() == [14] * 3


def test_threads_take_turns(launched, rng):
    w = gg.tensor(rng.standard_normal((16, 16)).astype("f"))
    run = gg.compile(lambda x: F.softmax(F.linear(F.gelu(F.linear(x, w)), w)))
    xs = [rng.standard_normal((5, 16)).astype("f") for _ in range(8)]
    expected = [bits(run(x)) for x in xs]

    def call(x):
        with WAYS[launched]():
            return bits(run(x))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, xs)) == expected
