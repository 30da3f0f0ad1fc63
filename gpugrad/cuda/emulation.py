"""Whether kernels run in the emulator, and how."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

MODES = ("plain", "checked")
ORDERS = ("ascending", "descending", "random")


class Settings(NamedTuple):
    """How kernels run: the order of blocks and threads, and what memory holds before.

    ``poison`` is the byte that fills shared memory before a block, ``seconds`` the processor time
    a launch may take, ``late_copies`` lets asynchronous copies land as late as they may. With
    ``blocks`` only so many of a launch run, the first ones in that order ("descending": the last):
    what they do at indices that nobody could wait for.
    """

    mode: str = "plain"
    order: str = "ascending"
    seed: int = 0
    poison: int = 0xFF
    seconds: float = 60.0
    late_copies: bool = False
    blocks: int | None = None

    def checked(self) -> Settings:
        """Return self, or raise ValueError naming the setting that is wrong."""
        if self.mode not in MODES:
            raise ValueError(f"emulator mode {self.mode!r} is unknown; use {' or '.join(MODES)}")
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r} is unknown; use one of {', '.join(ORDERS)}")
        if not 0 <= self.poison <= 255:
            raise ValueError(f"poison {self.poison} is not a byte (0 to 255)")
        if not 0 < self.seconds < 1e6:
            raise ValueError(f"seconds must lie between 0 and 1e6, not {self.seconds}")
        if self.blocks is not None and not 0 < self.blocks < 2**63:
            raise ValueError(f"blocks to run must be at least 1, not {self.blocks}")
        return self


_OFF = Settings("off")
_current: contextvars.ContextVar[Settings | None] = contextvars.ContextVar("emulator", default=None)


def settings() -> Settings | None:
    """Return how kernels run on the CPU now; None if they do not."""
    chosen = _current.get()
    if chosen is not None:
        return None if chosen is _OFF else chosen
    if not os.environ.get("GPUGRAD_EMULATE"):  # the common case, without a detour
        return None
    mode = asked()
    return None if mode == "off" else Settings(mode)


def asked() -> str:
    """Return what GPUGRAD_EMULATE asks for, a mode or "off"; ValueError for something else."""
    asked = _variable()
    if asked not in (*MODES, "off"):
        raise ValueError(f"GPUGRAD_EMULATE={asked!r} is not a mode; use {', '.join(MODES)} or off")
    return asked


def _variable() -> str:
    value = os.environ.get("GPUGRAD_EMULATE", "").strip().lower()
    return "off" if value in ("", "0") else value


_at_start = _variable() != "off"


def expected() -> bool:
    """Return whether kernels may run on the CPU now: a cheap guess for hot paths.

    It knows the environment as it was at import; ``settings`` looks again.
    """
    chosen = _current.get()
    return _at_start if chosen is None else chosen is not _OFF


def active() -> str | None:
    """Return the mode in which CUDA kernels run on the CPU now: "plain", "checked" or None."""
    now = settings()
    return None if now is None else now.mode


@contextlib.contextmanager
def enabled(mode: str = "plain", **how: Any) -> Iterator[None]:
    """Run CUDA kernels on the CPU inside the ``with`` block.

    ``mode`` is "plain" (fast) or "checked" (reports races, uninitialised reads and accesses out of
    bounds); keywords are the fields of Settings. Raises ValueError for unknown values.
    """
    token = _current.set(Settings(mode, **how).checked())
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Keep numpy arrays from CUDA kernels inside the ``with`` block: for what kernels are compared
    with.
    """
    token = _current.set(_OFF)
    try:
        yield
    finally:
        _current.reset(token)
