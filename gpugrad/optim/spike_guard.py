"""Leaving out the steps whose gradient is no number, or far larger than it was lately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array
from ..cuda import recording, transfer
from .checks import require

LEAST = 0.1  # standard deviation of log(norm): what is a tenth larger than usual is no spike
MOST = 2**31 - 1
NO_GUARD = (None, None, math.inf, 1.0, 0)  # the arguments of grad_norm_finish without a guard


class SpikeGuard:
    """Leaves out steps whose gradient norm is not finite or, by its z-score, a spike.

        guard = SpikeGuard(threshold=6.0)
        norm = optimizer.step(max_norm=1.0, guard=guard)

    With x = log(norm) the guard keeps running estimates of x's mean m and variance v. After
    ``warmup`` norms a step is a spike where (x - m) / max(sqrt(v), 0.1) > ``threshold``. Then

        d = x - m;  m += a d;  v = (1 - a) (v + a d^2)

    with a = 1/n for the n-th norm (Welford's estimates) but never below 1/``window`` (exponential
    ones: West, "Updating mean and variance estimates", 1979). After the warm-up d counts at most
    ``threshold`` deviations, so that one spike does not hide the next, and a lasting change of
    scale is followed after some steps rather than refused forever. Norms of 0, and those that are
    not finite, do not enter. An infinite threshold leaves out only the latter.

    Chowdhery et al., "PaLM" (2022), section 5.1, went back and skipped the batches around a spike
    of the loss by hand; Kumar et al., "ZClip" (2025), take z-scores of the norm of the gradient.

    What is left out changes no parameter, no moment and no count of steps. Estimates, float64, and
    counters, int32, lie on the ``device``, where kernels use and change them: nothing waits for a
    GPU until somebody asks. One optimiser takes all steps of a guard.

    Raises ValueError for a setting that makes no sense.
    """

    def __init__(
        self,
        threshold: float = math.inf,
        window: int = 128,
        warmup: int = 64,
        device: str | None = None,
    ) -> None:
        name = type(self).__name__
        if threshold != math.inf:
            require(name, "threshold", threshold, 1)
        for key, value in (("window", window), ("warmup", warmup)):
            if not isinstance(value, int) or not 2 <= value <= MOST:
                raise ValueError(f"{name}: {key} must be an integer >= 2, got {value!r}")
        self.threshold, self.window, self.warmup = float(threshold), window, warmup
        device = backend.default_device() if device is None else device
        self._estimates: Array = backend.to_device(np.zeros(2), device)  # mean and variance
        # norms that entered; steps left out: not finite, spikes; not finite without a break
        self._counts: Array = backend.to_device(np.zeros(4, np.int32), device)

    @property
    def not_finite(self) -> int:
        """The number of steps left out as their norm was not finite; this waits for a GPU."""
        return int(self._counts[1])

    @property
    def spikes(self) -> int:
        """The number of steps left out as spikes; this waits for a GPU."""
        return int(self._counts[2])

    @property
    def in_a_row(self) -> int:
        """The number of last steps whose norms were all not finite; this waits for a GPU."""
        return int(self._counts[3])

    @property
    def skipped(self) -> int:
        """The number of steps that were left out so far; this waits for a GPU."""
        return self.not_finite + self.spikes

    def take(self, norm: float) -> bool:
        """Return whether to take a step of this norm, on the host, as kernels do."""
        if not math.isfinite(norm):
            self._counts[1] += 1
            self._counts[3] += 1
            return False
        self._counts[3] = 0
        if norm == 0:
            return True
        entered = int(self._counts[0])
        mean, variance = map(float, self._estimates)
        limit = self.threshold * max(math.sqrt(variance), LEAST)
        change = math.log(norm) - mean
        ready = entered >= self.warmup
        spike = ready and change > limit
        if ready:
            change = min(max(change, -limit), limit)
        entered = min(entered + 1, MOST)
        share = max(1 / entered, 1 / self.window)
        self._estimates[0] = mean + share * change
        self._estimates[1] = (1 - share) * (variance + share * change * change)
        self._counts[0] = entered
        self._counts[2] += spike
        return not spike

    @property
    def arrays(self) -> tuple[Array, Array]:
        """The estimates and counters, where they lie."""
        return self._estimates, self._counts

    def arguments(self) -> tuple[Array, Array, float, float, int]:
        """Return what the kernel that judges takes: state, and settings."""
        settings = self._settings
        trace = recording.current()
        if trace is not None:
            trace.guards.append(lambda: settings == self._settings)
        return *self.arrays, *settings

    @property
    def _settings(self) -> tuple[float, float, int]:
        return self.threshold, 1 / self.window, self.warmup

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, fit for JSON; this waits for a GPU."""
        mean, variance = map(float, self._estimates)
        entered, not_finite, spikes, in_a_row = map(int, self._counts)
        return {
            "mean": mean,
            "variance": variance,
            "entered": entered,
            "not_finite": not_finite,
            "spikes": spikes,
            "in_a_row": in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; the settings stay those of this object.

        Raises ValueError for what cannot be a state.
        """
        estimates = [state[name] for name in ("mean", "variance")]
        counts = [state[name] for name in ("entered", "not_finite", "spikes", "in_a_row")]
        if not all(math.isfinite(x) for x in estimates) or estimates[1] < 0:
            raise ValueError(f"SpikeGuard: mean and variance cannot be {estimates}")
        if not all(isinstance(n, int) and 0 <= n <= MOST for n in counts):
            raise ValueError(f"SpikeGuard: counters cannot be {counts}")
        for array, values in ((self._estimates, estimates), (self._counts, counts)):
            for i, value in enumerate(values):
                transfer.fill(array[i : i + 1], value)

    def __repr__(self) -> str:
        return (
            f"SpikeGuard(threshold={self.threshold:g}, window={self.window}, "
            f"warmup={self.warmup}): {self.not_finite} not finite, {self.spikes} spikes"
        )


def check_guard(name: str, guard: Any) -> None:
    """Raise TypeError unless guard is a SpikeGuard or None."""
    if guard is not None and not isinstance(guard, SpikeGuard):
        raise TypeError(
            f"{name}.step: guard must be a gg.optim.SpikeGuard, got {type(guard).__name__}"
        )
