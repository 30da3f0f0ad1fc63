"""Random tensors from one counter-based generator: the state is two integers.

Every draw is a pure function of (seed, offset), see ``philox``; drawing advances the offset. The
same seed gives the same integers, uniforms and masks on NumPy, the emulator and a GPU, and a
checkpoint stores the whole state with ``get_state()``. All threads share the generator: which of
them draws which numbers depends on who comes first. A forked process goes on from its parent's
state, and draws the same numbers as its siblings unless each calls ``manual_seed``; a spawned one
starts anew, from seed 0.

A recorded step draws from a state that lies on the device, see ``recording``.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import backend, registry
from ..backend import DTypeLike
from . import _random as kernels
from . import philox

Size = int | Sequence[int] | None


class Draw(NamedTuple):
    """Where numbers are drawn: from block ``offset`` of a seed.

    With ``state``, an array {seed, offset} of uint64 on the device, the seed is that one and
    ``offset`` counts from there.
    """

    seed: int
    offset: int
    state: Any = None


class Draws:
    """Draws one after another from a place on. ``blocks`` is what they have taken so far."""

    def __init__(self, start: Draw) -> None:
        self.start = self.next = start

    @property
    def blocks(self) -> int:
        """The number of 128-bit blocks drawn so far."""
        return self.next.offset - self.start.offset


_lock = threading.Lock()
_generator = Draws(Draw(0, 0))  # what all threads share
_local: contextvars.ContextVar[Draws | None] = contextvars.ContextVar("draws", default=None)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that is not in the child may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def manual_seed(seed: int) -> None:
    """Restart the generator from a seed, an integer in [0, 2**64)."""
    set_state({"seed": seed, "offset": 0})


def get_state() -> dict[str, int]:
    """Return the generator's state: its seed and the number of 128-bit blocks drawn so far.

    In a step that is being recorded both are unknown: RuntimeError.
    """
    seed, offset, state = reserve(0)
    if state is not None:
        raise RuntimeError("random.get_state: a recorded step does not know its random state")
    return {"seed": seed, "offset": offset}


def set_state(state: dict[str, int]) -> None:
    """Continue from a state that get_state returned. RuntimeError in a step being recorded."""
    seed, offset = state["seed"], state["offset"]
    if not (isinstance(seed, int) and 0 <= seed < 2**64):
        raise ValueError(f"random: the seed must be an integer in [0, 2**64), got {seed!r}")
    if not (isinstance(offset, int) and offset >= 0):
        raise ValueError(f"random: the offset must be an integer >= 0, got {offset!r}")
    draws = _local.get() or _generator
    if draws.start.state is not None:
        raise RuntimeError("random: set the seed before a step that is recorded, not in it")
    with _lock:
        draws.next = Draw(seed, offset)


def reserve(blocks: int) -> Draw:
    """Return where the next draw begins and advance the generator by that many blocks."""
    blocks = operator.index(blocks)
    draws = _local.get() or _generator
    with _lock:
        draw = draws.next
        draws.next = draw._replace(offset=draw.offset + blocks)
    return draw


def give_back(draw: Draw, taken: int, used: int) -> None:
    """Go back from the blocks that a reservation took to those used, unless others drew since."""
    draws = _local.get() or _generator
    with _lock:
        if draws.next == draw._replace(offset=draw.offset + taken):
            draws.next = draw._replace(offset=draw.offset + used)


@contextlib.contextmanager
def drawing_from(start: Draw) -> Iterator[Draws]:
    """Draw from a place on inside the ``with`` block; the generator stays where it is.

    ``reserve(0)`` is the place at hand. Other threads draw as before.
    """
    draws = Draws(start)
    token = _local.set(draws)
    try:
        yield draws
    finally:
        _local.reset(token)


def recording(state: Any) -> contextlib.AbstractContextManager[Draws]:
    """Draw relative to a state {seed, offset} of uint64 on the device inside the ``with`` block.

    What is launched there then draws from whatever the array holds when it runs. Whoever replays
    the launches reserves the ``blocks`` of the Draws and writes the Draw's seed and offset there.
    The array is only handed to launches; draws are on its device, whichever was asked for.
    """
    return drawing_from(Draw(0, 0, state))


def _size(size: Size) -> tuple[int, ...]:
    lengths = () if size is None else tuple(size) if isinstance(size, (tuple, list)) else (size,)
    lengths = tuple(operator.index(n) for n in lengths)
    if any(n < 0 for n in lengths):
        raise ValueError(f"random: a size has no negative lengths: {lengths}")
    return lengths


def _draw(
    size: Size, dtype: DTypeLike, device: str | None
) -> tuple[Any, Draw, tuple[int, ...], np.dtype]:
    """Return the array library, the draw, the lengths and the dtype."""
    lengths, wanted = _size(size), _floating(dtype)
    words = 2 if wanted == backend.float64 else 1
    return *_reserve(math.prod(lengths), words, device), lengths, wanted


def _floating(dtype: DTypeLike) -> np.dtype:
    wanted = backend.as_dtype(dtype or backend.float32)
    if not backend.is_float(wanted):
        raise TypeError(f"random: dtype {wanted} is not floating; use random.integers")
    return wanted


def _reserve(n: int, words_per_element: int, device: str | None) -> tuple[Any, Draw]:
    """Return the array library of a draw of n elements, and the draw."""
    xp = backend.namespace(device)
    draw = reserve(philox.blocks_used(n, words_per_element))
    return xp if draw.state is None else backend.xp_of(draw.state), draw


def uniform(
    low: float = 0.0,
    high: float = 1.0,
    size: Size = None,
    dtype: DTypeLike = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Return numbers spread evenly over [low, high).

    Raises ValueError if low is larger than high, or for bounds that are not finite in ``dtype``, or
    whose difference is not where numbers are drawn: in float32, or float64 for that.
    """
    low, high = float(low), float(high)
    if not low <= high:
        raise ValueError(f"random.uniform: low {low} is larger than high {high}")
    wanted = _floating(dtype)
    drawn = backend.promote(wanted, backend.float32)
    largest, widest = (float(ml_dtypes.finfo(kind).max) for kind in (wanted, drawn))
    if not (max(-low, high) <= largest and high - low <= widest):
        raise ValueError(
            f"random.uniform: low {low}, high {high} or their difference overflows {wanted}; take "
            "bounds closer to 0 or a wider dtype"
        )
    xp, draw, lengths, _ = _draw(size, wanted, device)
    last = math.inf
    if low < high:  # rounding may reach high: the largest number below it
        last = float(np.nextafter(np.asarray(high, wanted), np.asarray(low, wanted)))
    at = draw.seed, draw.offset, math.prod(lengths)
    if kernels.active(xp):
        values = kernels.uniform(xp, *at, draw.state, wanted, low, high - low, last)
    else:
        values = philox.uniform(np, *at, drawn, draw.state, low, high - low, last)
        values = values.astype(wanted, copy=False)
    return registry.Tensor(values.reshape(lengths), requires_grad=requires_grad)


def normal(
    loc: float = 0.0,
    scale: float = 1.0,
    size: Size = None,
    dtype: DTypeLike = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Return normally distributed numbers of mean loc and standard deviation scale."""
    loc, scale = float(loc), float(scale)
    if not scale >= 0:
        raise ValueError(f"random.normal: scale must be >= 0, got {scale}")
    xp, draw, lengths, wanted = _draw(size, dtype, device)
    at = draw.seed, draw.offset, math.prod(lengths)
    if kernels.active(xp):
        values = kernels.normal(xp, *at, draw.state, wanted, loc, scale)
    else:
        drawn = backend.promote(wanted, backend.float32)
        values = philox.normal(np, *at, drawn, draw.state, loc, scale)
        values = values.astype(wanted, copy=False)
    return registry.Tensor(values.reshape(lengths), requires_grad=requires_grad)


def integers(
    low: int,
    high: int | None = None,
    size: Size = None,
    dtype: DTypeLike = None,
    device: str | None = None,
) -> Any:
    """Return integers spread evenly over [low, high), or [0, low) if high is None; int64.

    Raises ValueError if there is no integer in that range, or if dtype does not hold all of them.
    """
    first, end = map(operator.index, (0, low) if high is None else (low, high))
    if not first < end:
        raise ValueError(f"random.integers: there is no integer in [{first}, {end})")
    lengths, wanted = _size(size), backend.as_dtype(dtype or backend.int64)
    least, largest = backend.whole_numbers(wanted)
    if first < least or end - 1 > largest:
        raise ValueError(
            f"random.integers: {wanted} does not hold all integers in [{first}, {end}), only those "
            f"from {least} to {largest}; take a wider dtype"
        )
    n = math.prod(lengths)
    xp, draw = _reserve(n, 2, device)
    values = philox.randint(xp, draw.seed, draw.offset, n, first, end, draw.state)
    values = values if values.dtype == wanted else values.astype(wanted)
    return registry.Tensor(values.reshape(lengths))


def bernoulli(
    p: float, size: Size = None, dtype: DTypeLike = None, device: str | None = None
) -> Any:
    """Return ones with probability p and zeros else."""
    if not 0 <= p <= 1:
        raise ValueError(f"random.bernoulli: p must lie in [0, 1], got {p}")
    lengths = _size(size)
    n = math.prod(lengths)
    xp, draw = _reserve(n, 1, device)
    mask = philox.keep_mask(xp, draw.seed, draw.offset, n, 1 - p, draw.state)
    return registry.Tensor(mask.astype(backend.as_dtype(dtype or backend.float32)).reshape(lengths))


def permutation(n: int, device: str | None = None) -> Any:
    """Return 0, 1, ..., n - 1 in random order, int64."""
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"random.permutation: n must be >= 0, got {n}")
    xp, draw = _reserve(n, 2, device)
    keys = philox.uniform(xp, draw.seed, draw.offset, n, backend.float64, draw.state)
    if isinstance(keys, np.ndarray):
        order = np.argsort(keys)  # a third of the time of a stable sort
        ranked = keys[order]
        if not (ranked[1:] == ranked[:-1]).any():
            return registry.Tensor(order)
    return registry.Tensor(xp.argsort(keys, kind="stable"))
