"""Steps that are left out: by NumPy, by kernels, and in recorded steps alike."""

from __future__ import annotations

import contextlib
import json
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator
from gpugrad.optim import SGD, AdamW, LossScaler, SpikeGuard

WAYS = ["numpy", "emulated", "compiled", "compiled numpy"]


def gradients(steps: int = 60) -> list[np.ndarray]:
    """Return gradients with spikes (20, 30, 31), NaN (5, 40) and inf (41), and a new scale (50)."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(steps):
        x = rng.normal(size=(5, 7)) * math.exp(rng.normal() * 0.2)
        if i in (20, 30, 31):
            x *= 100
        if i >= 50:
            x *= 50
        if i in (5, 40, 41):
            x[i % 5, 0] = np.nan if i < 41 else np.inf
        found.append(x.astype(np.float32))
    return found


class Run:
    """A parameter that an optimiser moves by given gradients, in one of the WAYS."""

    def __init__(self, way: str, guard: SpikeGuard, dtype: str = "float32", **how: object) -> None:
        self.p = gg.tensor(np.zeros((5, 7), dtype), requires_grad=True)
        self.optimizer = AdamW([self.p], lr=1e-2)
        self.guard = guard

        def step(x: gg.Tensor) -> gg.Tensor:
            (self.p * x).sum().backward()
            norm = self.optimizer.step(max_norm=1.0, guard=guard, **how)
            self.optimizer.zero_grad()
            return norm

        self.step = gg.compile(step) if way.startswith("compiled") else step
        self.context = contextlib.nullcontext if way.endswith("numpy") else emulator.enabled

    def __call__(self, given: list[np.ndarray]) -> list[tuple[float, int, int]]:
        found = []
        with self.context():
            for x in given:
                norm = float(self.step(gg.tensor(x)))
                found.append((norm, self.guard.skipped, self.guard.in_a_row))
        return found

    @property
    def steps(self) -> int:
        return self.optimizer._states[self.p].step


@pytest.fixture(scope="module")
def expected():
    run = Run("numpy", SpikeGuard(4.0, window=20, warmup=10))
    return run, run(gradients())


def test_what_is_left_out(expected):
    run, found = expected
    totals = [total for _, total, _ in found]
    skipped = [i for i, total in enumerate(totals) if total > (totals[i - 1] if i else 0)]
    assert skipped[:6] == [5, 20, 30, 31, 40, 41]
    assert all(i >= 50 for i in skipped[6:])
    assert 0 < len(skipped[6:]) < 8  # a new scale is followed
    assert [in_a_row for *_, in_a_row in found[39:43]] == [0, 1, 2, 0]
    assert (run.guard.not_finite, run.guard.spikes) == (3, len(skipped) - 3)
    assert run.steps == 60 - len(skipped)
    assert np.isnan(found[5][0])
    assert found[20][0] == pytest.approx(np.linalg.norm(gradients()[20]), rel=1e-6)


@pytest.mark.parametrize("way", WAYS[1:])
def test_kernels_and_recordings_do_the_same(expected, way):
    straight, norms = expected
    run = Run(way, SpikeGuard(4.0, window=20, warmup=10))
    found = run(gradients())
    assert [x[1:] for x in found] == [x[1:] for x in norms]
    np.testing.assert_allclose([x[0] for x in found], [x[0] for x in norms], rtol=1e-13)
    np.testing.assert_allclose(run.p.numpy(), straight.p.numpy(), rtol=1e-5, atol=1e-8)
    assert run.steps == straight.steps
    for name, value in straight.guard.state_dict().items():
        assert run.guard.state_dict()[name] == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize(
    ("way", "dtype"),
    [*((way, "float32") for way in WAYS), ("numpy", "float64"), ("compiled numpy", "float64")],
)
def test_a_step_left_out_changes_nothing(way, dtype):
    run = Run(way, SpikeGuard(2.0, window=10, warmup=2), dtype)
    run([np.ones((5, 7), dtype)] * 6)
    state = run.optimizer.state_dict()["state"]["0"]
    before = [run.p.numpy().copy(), *(np.array(value) for value in state.values())]
    for factor in (1e6, -1e9, np.nan, np.inf):
        (found,) = run([np.full((5, 7), factor, dtype)])
        assert found[1] > 0
        state = run.optimizer.state_dict()["state"]["0"]
        for x, y in zip(before, [run.p.numpy(), *state.values()], strict=True):
            np.testing.assert_array_equal(x, y)
    assert (run.guard.not_finite, run.guard.spikes) == (2, 2)
    run([np.ones((5, 7), dtype)])
    assert run.steps == 7


@pytest.mark.parametrize("way", WAYS[:3])
def test_it_goes_on_from_its_state_bit_for_bit(way):
    given = gradients()
    straight, broken = (Run(way, SpikeGuard(4.0, window=20, warmup=10)) for _ in range(2))
    straight(given)
    broken(given[:33])
    resumed = Run(way, SpikeGuard(4.0, window=20, warmup=10))
    resumed(given[:3])
    resumed.p.data[...] = broken.p.numpy()
    resumed.optimizer.load_state_dict(broken.optimizer.state_dict())
    resumed.guard.load_state_dict(json.loads(json.dumps(broken.guard.state_dict())))
    resumed(given[33:])
    assert resumed.p.numpy().tobytes() == straight.p.numpy().tobytes()
    assert resumed.guard.state_dict() == straight.guard.state_dict()


def test_the_estimates_are_the_formulas():
    guard = SpikeGuard(window=16, warmup=8)
    x = np.random.default_rng(1).normal(size=40)
    for i, value in enumerate(x):
        assert guard.take(math.exp(value))
        state = guard.state_dict()
        if i < 16:  # Welford's
            assert state["mean"] == pytest.approx(x[: i + 1].mean(), abs=1e-12)
            assert state["variance"] == pytest.approx(x[: i + 1].var(), abs=1e-12)
    mean, variance = x[:16].mean(), x[:16].var()
    for value in x[16:]:  # weights that fall by 15/16
        mean, before = mean + (value - mean) / 16, mean
        variance = 15 / 16 * (variance + (value - before) ** 2 / 16)
    assert state["mean"] == pytest.approx(mean, abs=1e-12)
    assert state["variance"] == pytest.approx(variance, abs=1e-12)
    assert guard.take(0.0)
    assert guard.state_dict() == state


def test_small_norms_and_small_changes_are_no_spikes():
    guard = SpikeGuard(threshold=5.0, warmup=4)
    for _ in range(20):
        assert guard.take(3.0)
    assert guard.take(3.0 * math.exp(0.49))  # of a deviation of 0, but less than five tenths
    assert not guard.take(3.0 * math.exp(0.6))
    for norm in (1e-30, 5e-324, 1e-3, 3.0):
        assert guard.take(norm)
    assert guard.take(1.7e308) is False
    assert guard.spikes == 2


def test_beside_a_scaler():
    """A gradient that overflows shrinks the scale and is counted; a spike leaves the scale."""
    guard = SpikeGuard(2.0, window=10, warmup=2)
    for way in WAYS[:2]:
        scaler = LossScaler(4.0, growth_interval=1000)
        guard = SpikeGuard(2.0, window=10, warmup=2)
        run = Run(way, guard, scaler=scaler)
        run([np.full((5, 7), 4.0, np.float32)] * 5)
        assert guard.state_dict()["mean"] == pytest.approx(math.log(math.sqrt(35)))  # unscaled
        run([np.full((5, 7), 4e9, np.float32)])
        assert (guard.spikes, scaler.get_scale(), scaler.skipped) == (1, 4.0, 0)
        run([np.full((5, 7), np.inf, np.float32)])
        assert (guard.not_finite, scaler.get_scale(), scaler.skipped) == (1, 2.0, 1)
        assert run.steps == 5


def test_without_clipping_and_without_gradients():
    p = gg.tensor([1.0], requires_grad=True)
    optimizer, guard = SGD([p], lr=0.1), SpikeGuard()
    assert optimizer.step(guard=guard) is None
    assert guard.state_dict()["entered"] == 0
    (p * math.inf).sum().backward()
    assert optimizer.step(guard=guard) is None
    assert p.item() == 1.0
    assert guard.not_finite == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.5}, "threshold must be a number >= 1, got 0.5"),
        ({"threshold": math.nan}, "threshold"),
        ({"window": 1}, "window must be an integer >= 2, got 1"),
        ({"warmup": 2.5}, "warmup must be an integer >= 2, got 2.5"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        SpikeGuard(**settings)


def test_what_is_no_guard_and_no_state():
    optimizer = SGD([gg.tensor([1.0], requires_grad=True)], lr=0.1)
    with pytest.raises(TypeError, match=r"guard must be a gg\.optim\.SpikeGuard, got float"):
        optimizer.step(guard=3.0)
    guard = SpikeGuard()
    state = guard.state_dict()
    for name, value in (("mean", math.nan), ("variance", -1.0), ("spikes", -1), ("entered", 0.5)):
        with pytest.raises(ValueError, match="SpikeGuard: "):
            guard.load_state_dict({**state, name: value})
    with pytest.raises((KeyError, ValueError), match="mean"):
        guard.load_state_dict({})
    assert guard.state_dict() == state
