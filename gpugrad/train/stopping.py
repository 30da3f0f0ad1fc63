"""When to stop before the last step: validation that no longer improves, parameters that rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import backend
from ..backend import Array
from ..tensor import Tensor


class Patience:
    """Stop after `patience` evaluations in a row without a new best validation loss; 0: never.

    A loss is a new best when it is below the best so far by more than `min_delta`. Prechelt,
    "Early stopping - but when?" (1998).
    """

    def __init__(self, patience: int = 0, min_delta: float = 0.0) -> None:
        if patience < 0 or not min_delta >= 0:
            raise ValueError(
                f"Patience: patience and min_delta must be at least 0, got {patience}, {min_delta}"
            )
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    def update(self, loss: float, step: int) -> bool:
        """Take the loss of one evaluation and return whether it is the best so far."""
        improved = loss == loss and (self.best is None or loss < self.best - self.min_delta)
        if improved:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether to stop."""
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, fit for JSON."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; `patience` and `min_delta` stay those of this object."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]


class Movement:
    """Measure how far an update moves the parameters: the 2-norm of the change of all of them.

    Copies the parameters, so it costs their memory and a pass over them each time.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._before: list[Array] = []

    def start(self) -> None:
        """Remember where the parameters are."""
        self._before = [p._data.copy() for p in self._parameters]

    def distance(self) -> float:
        """Return the distance from where `start` was called."""
        total: Any = 0.0
        for p, before in zip(self._parameters, self._before, strict=True):
            change = (p._data.astype(backend.float64) - before).reshape(-1)
            total = total + change @ change
        self._before = []
        return float(total) ** 0.5
