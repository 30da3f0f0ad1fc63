"""Learning rates over the steps of a run: pure functions of the step, and one that applies them.

    schedule = cosine(1e-3, steps=2000, warmup=100, final=1e-4)
    schedule(0), schedule(100), schedule(2000)     # 9.9e-06, 1e-3, 1e-4

Steps count from 0. During ``warmup`` the rate rises linearly, lr (step + 1) / (warmup + 1), so
that no step is taken with rate 0; step ``warmup`` is the first of the decay and has the full rate;
from step ``steps`` on the rate stays ``final``. Nothing is remembered between calls, so a resumed
run needs only its step number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .group import set_rate
from .optimizer import Optimizer

Schedule: TypeAlias = Callable[[int], float]


def constant(lr: float, warmup: int = 0) -> Schedule:
    """Return a schedule that stays at ``lr`` after the warm-up."""
    _check("constant", warmup=warmup, lr=lr)
    return _warmed(lr, warmup, lambda step: lr)


def linear(lr: float, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return a schedule that falls on a straight line from ``lr`` to ``final``."""
    _check("linear", warmup=warmup, steps=steps, lr=lr, final=final)

    def decayed(step: int) -> float:
        return lr + (final - lr) * _progress(step, warmup, steps)

    return _warmed(lr, warmup, decayed)


def cosine(lr: float, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return a schedule that falls on half a cosine from ``lr`` to ``final``.

    final + (lr - final) (1 + cos(pi progress)) / 2, Loshchilov, Hutter, "SGDR" (ICLR 2017),
    without restarts.
    """
    _check("cosine", warmup=warmup, steps=steps, lr=lr, final=final)

    def decayed(step: int) -> float:
        return final + (lr - final) * (1 + math.cos(math.pi * _progress(step, warmup, steps))) / 2

    return _warmed(lr, warmup, decayed)


def exponential(lr: float, decay: float, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return a schedule that multiplies the rate by ``decay`` every step, not below ``final``."""
    _check("exponential", warmup=warmup, lr=lr, final=final)
    if not 0 < decay <= 1:
        raise ValueError(f"exponential: decay must be in (0, 1], got {decay!r}")
    return _warmed(lr, warmup, lambda step: max(lr * decay ** (step - warmup), final))


class LRScheduler:
    """Sets the learning rate of an optimiser's groups, now and after each ``step()``.

    ``schedule`` is one for all groups or a sequence of one per group; a group gets its rate times
    its ``"lr_scale"`` (``discriminative_groups``). Call ``step()`` after ``optimizer.step()``, as
    in PyTorch.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule | Sequence[Schedule]) -> None:
        groups = optimizer.param_groups
        schedules = [schedule] * len(groups) if callable(schedule) else list(schedule)
        if len(schedules) != len(groups):
            raise ValueError(
                f"LRScheduler: {len(schedules)} schedules for {len(groups)} parameter groups"
            )
        self.optimizer = optimizer
        self.schedules = schedules
        self.last_step = 0
        self._apply()

    def _apply(self) -> None:
        for group, schedule in zip(self.optimizer.param_groups, self.schedules, strict=True):
            set_rate(group, schedule(self.last_step))

    def step(self) -> None:
        """Go on to the next step's learning rate."""
        self.last_step += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the step number."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a step number, with its learning rate."""
        self.last_step = int(state_dict["last_step"])
        self._apply()


def _progress(step: int, warmup: int, steps: int) -> float:
    """Return how much of the decay is over: 0 at the end of the warm-up, 1 from ``steps`` on."""
    return min((step - warmup) / (steps - warmup), 1.0)


def _warmed(lr: float, warmup: int, decayed: Schedule) -> Schedule:
    def schedule(step: int) -> float:
        if step < 0:
            raise ValueError(f"schedule: steps count from 0, got {step}")
        return lr * (step + 1) / (warmup + 1) if step < warmup else decayed(step)

    return schedule


def _check(name: str, warmup: int, steps: int | None = None, **rates: float) -> None:
    for key, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise ValueError(f"{name}: {key} must be a finite number >= 0, got {rate!r}")
    if rates.get("final", 0.0) > rates["lr"]:
        raise ValueError(f"{name}: final {rates['final']} is above lr {rates['lr']}")
    if warmup < 0:
        raise ValueError(f"{name}: warmup must be a number of steps >= 0, got {warmup!r}")
    if steps is not None and steps <= warmup:
        raise ValueError(f"{name}: steps must be more than warmup {warmup}, got {steps!r}")
