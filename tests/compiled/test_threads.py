"""gg.compile with threads: each computes as if it were alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from plain_and_compiled import WAYS

import gpugrad as gg
from gpugrad import nn
from gpugrad.cuda import recording

both = pytest.mark.parametrize("launched", WAYS)  # entered within


@pytest.fixture
def rng():
    return np.random.default_rng()


def in_a_thread(function):
    """Return what a function returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def make_model():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4))


@both
def test_another_thread_sees_the_arrays_of_a_model_that_is_being_recorded(launched, rng):
    model = make_model()
    x = rng.standard_normal((3, 4)).astype("f")
    expected = model(x).detach().numpy()
    weight = model[0].weight
    found = []

    def look():
        return (
            model(x).detach().numpy(),
            weight.data,
            weight.numpy(),
            weight.grad,
            weight.T.tolist(),
        )

    @gg.compile
    def step(x):
        loss = model(x).sum()
        loss.backward()
        assert isinstance(weight.data, recording.Buffer)
        assert isinstance(weight.grad.data, recording.Buffer)
        found.append(in_a_thread(look))
        return loss

    with WAYS[launched]():
        loss = step(x)
    ((out, data, values, gradient, turned),) = found
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert data is weight.data
    assert values is data
    assert gradient is None
    assert turned == data.T.tolist()
    assert type(weight) is nn.Parameter
    np.testing.assert_allclose(loss.item(), expected.sum(), rtol=1e-4)
    assert weight.grad is not None


@both
def test_eager_threads_while_steps_are_recorded(launched, rng):
    model = make_model()
    x = rng.standard_normal((3, 4)).astype("f")
    expected = model(x).detach().numpy()
    done = threading.Event()

    def compute():
        count = 0
        while not done.is_set():
            with gg.no_grad():
                np.testing.assert_array_equal(model(x).numpy(), expected)
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        counts = [pool.submit(compute) for _ in range(2)]
        try:
            with WAYS[launched](), gg.no_grad():
                for factor in range(8):
                    step = gg.compile(lambda x: model(x) * factor)  # noqa: B023
                    out = step(x).numpy()
                    np.testing.assert_allclose(out, expected * factor, rtol=1e-4, atol=1e-5)
        finally:
            done.set()
        assert all(count.result() for count in counts)


@both
def test_threads_record_steps_on_one_model(launched, rng):
    model = make_model()
    x = rng.standard_normal((3, 4)).astype("f")
    expected = model(x).detach().numpy()
    start = threading.Barrier(4)

    def work(factor):
        step = gg.compile(lambda x: model(x) * factor)
        start.wait()
        with WAYS[launched](), gg.no_grad():
            for _ in range(2):
                out = step(x)
        return out.numpy(), step.recordings

    with ThreadPoolExecutor(4) as pool:
        for factor, (out, recordings) in enumerate(pool.map(work, range(4))):
            np.testing.assert_allclose(out, expected * factor, rtol=1e-4, atol=1e-5)
            assert recordings == 1


@both
def test_a_step_that_threads_share_is_recorded_once(launched, rng):
    w = gg.tensor([1.0, 2.0])
    step = gg.compile(lambda x: w * x)
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        with WAYS[launched]():
            return [step(np.full(2, number + i, np.float32)).tolist() for i in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(work, range(4))):
            assert found == [[number + i, 2.0 * (number + i)] for i in range(20)]
    assert step.recordings == 1


@both
def test_an_error_in_a_recording_lets_the_next_thread_record(launched):
    def fail(x):
        raise ZeroDivisionError

    with WAYS[launched](), pytest.raises(ZeroDivisionError):
        gg.compile(fail)(np.ones(2, np.float32))

    def work():
        with WAYS[launched]():
            return gg.compile(lambda x: x * 2)(np.ones(2, np.float32)).tolist()

    assert in_a_thread(work) == [2, 2]


def test_one_recording_at_a_time_in_a_thread():
    again = recording.recording(recording.Trace())
    with recording.recording(recording.Trace()), pytest.raises(RuntimeError, match="one at a time"):
        again.__enter__()
