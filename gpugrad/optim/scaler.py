"""Scaling the loss against the underflow of float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array
from ..cuda import recording, transfer
from ..engine import mutations
from ..tensor import Tensor
from .checks import require

SMALLEST = float(np.finfo(np.float32).smallest_normal)
NO_SCALE = (None, None, 1.0, 1.0, 1)  # the arguments of grad_norm_finish without a scaler


class LossScaler:
    """A factor for the loss that keeps small gradients within the range of float16.

        scaler = LossScaler()
        scaler.scale(loss).backward()
        optimizer.step(max_norm=1.0, scaler=scaler)

    Names, defaults and rule are those of PyTorch's GradScaler; what is its ``unscale_``, ``step``
    and ``update`` is ``optimizer.step(scaler=scaler)`` here. The step divides the gradients by the
    scale as it reads them; ``.grad`` stays as it is. Where a gradient is infinite or NaN nothing
    is updated, no step counts, and the scale shrinks by ``backoff_factor``; after
    ``growth_interval`` steps in a row without that it grows by ``growth_factor``. It never leaves
    the normal numbers of float32. Factors of 1 keep it as it is.

    The scale, float32, and the counters, int32, lie in memory of the ``device`` (that of the loss
    from the first ``scale`` on), where kernels use and change them: nothing waits for a GPU until
    somebody asks. One optimiser takes all steps of a scaler. Micikevicius et al., "Mixed precision
    training" (ICLR 2018), section 3.2.

    Raises ValueError for a setting that makes no sense.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        device: str | None = None,
    ) -> None:
        device = backend.default_device() if device is None else device
        self._scale = Tensor._wrap(backend.to_device(np.zeros((), np.float32), device), None)
        # steps since the scale last changed; steps that were left out
        self._counts: Array = backend.to_device(np.zeros(2, np.int32), device)
        self._set(init_scale, growth_factor, backoff_factor, growth_interval, 0, 0)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, in float32 at least."""
        if not isinstance(loss._data, backend.Symbolic) and loss.device != self._scale.device:
            self._scale = Tensor._wrap(backend.to_device(self._scale._data, loss.device), None)
            self._counts = backend.to_device(self._counts, loss.device)
        return loss * self._scale

    def get_scale(self) -> float:
        """Return the scale; this waits for a GPU."""
        return float(self._scale._data)

    @property
    def skipped(self) -> int:
        """The number of steps that were left out so far; this waits for a GPU."""
        return int(self._counts[1])

    def update(self, finite: bool) -> None:
        """Adapt the scale after a step, on the host, as kernels do (kernels/grad_norm.cu)."""
        scale = np.float32(self.get_scale())
        if not finite:
            smaller = scale * np.float32(self.backoff_factor)
            self._write(smaller if smaller >= SMALLEST else scale, 0, self.skipped + 1)
            return
        good = int(self._counts[0]) + 1
        if good >= self.growth_interval:
            with np.errstate(over="ignore"):
                larger = scale * np.float32(self.growth_factor)
            scale, good = larger if np.isfinite(larger) else scale, 0
        self._write(scale, good, self.skipped)

    @property
    def settings(self) -> tuple[float, float, int]:
        """The factors and the interval."""
        return self.growth_factor, self.backoff_factor, self.growth_interval

    def arguments(self) -> tuple[Array, Array, float, float, int]:
        """Return what the kernel that adapts the scale takes: state, and settings."""
        settings = self.settings
        trace = recording.current()
        if trace is not None:
            trace.guards.append(lambda: settings == self.settings)
        return self._scale._data, self._counts, *settings

    def changed(self, by: str) -> None:
        """Let the engine refuse a graph that was made with the scale before."""
        mutations.record(self._scale._data, by)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, fit for JSON; this waits for a GPU."""
        return {
            "scale": self.get_scale(),
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "growth_tracker": int(self._counts[0]),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, settings included.

        Raises ValueError for what cannot be a state, with nothing changed.
        """
        self._set(
            state["scale"],
            state["growth_factor"],
            state["backoff_factor"],
            state["growth_interval"],
            state["growth_tracker"],
            state["skipped"],
        )

    def _set(
        self,
        scale: float,
        growth_factor: float,
        backoff_factor: float,
        growth_interval: int,
        good: int,
        skipped: int,
    ) -> None:
        name = type(self).__name__
        require(name, "init_scale", scale, SMALLEST, 2.0**128)
        require(name, "growth_factor", growth_factor, 1)
        require(name, "backoff_factor", backoff_factor, SMALLEST)
        if backoff_factor > 1:
            raise ValueError(f"{name}: backoff_factor must be at most 1, got {backoff_factor!r}")
        for key, value, low in (
            ("growth_interval", growth_interval, 1),
            ("growth_tracker", good, 0),
            ("skipped", skipped, 0),
        ):
            if not isinstance(value, int) or not low <= value < 2**31:
                raise ValueError(f"{name}: {key} must be an integer >= {low}, got {value!r}")
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval = growth_interval
        self._write(scale, good, skipped)

    def _write(self, scale: float, good: int, skipped: int) -> None:
        for place, value in (
            (self._scale._data, scale),
            (self._counts[:1], good),
            (self._counts[1:], skipped),
        ):
            transfer.fill(place, value)

    def __repr__(self) -> str:
        return (
            f"LossScaler(scale={self.get_scale():g}, growth_factor={self.growth_factor:g}, "
            f"backoff_factor={self.backoff_factor:g}, growth_interval={self.growth_interval})"
        )


def check_scaler(name: str, scaler: Any) -> None:
    """Raise TypeError unless scaler is a LossScaler or None."""
    if scaler is not None and not isinstance(scaler, LossScaler):
        raise TypeError(
            f"{name}.step: scaler must be a gg.optim.LossScaler, got {type(scaler).__name__}"
        )
