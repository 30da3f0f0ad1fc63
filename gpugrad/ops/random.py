"""Random tensors from one counter-based generator: the state is two integers.

Every draw is a pure function of (seed, offset), see ``philox``; drawing advances the offset. The
same seed gives the same integers, uniforms and masks on NumPy, the emulator and a GPU, and a
checkpoint stores the whole state with ``get_state()``. All threads share the generator.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, registry
from ..backend import DTypeLike
from . import _random as kernels
from . import philox

Size = int | Sequence[int] | None

_lock = threading.Lock()
_state = {"seed": 0, "offset": 0}


def manual_seed(seed: int) -> None:
    """Restart the generator from a seed, an integer in [0, 2**64)."""
    set_state({"seed": seed, "offset": 0})


def get_state() -> dict[str, int]:
    """Return the generator's state: its seed and the number of 128-bit blocks drawn so far."""
    with _lock:
        return dict(_state)


def set_state(state: dict[str, int]) -> None:
    """Continue from a state that get_state returned."""
    seed, offset = state["seed"], state["offset"]
    if not (isinstance(seed, int) and 0 <= seed < 2**64):
        raise ValueError(f"random: the seed must be an integer in [0, 2**64), got {seed!r}")
    if not (isinstance(offset, int) and offset >= 0):
        raise ValueError(f"random: the offset must be an integer >= 0, got {offset!r}")
    with _lock:
        _state["seed"], _state["offset"] = seed, offset


def reserve(blocks: int) -> tuple[int, int]:
    """Return (seed, offset) of the next draw and advance the generator by that many blocks."""
    with _lock:
        seed, offset = _state["seed"], _state["offset"]
        _state["offset"] = offset + blocks
    return seed, offset


def _size(size: Size) -> tuple[int, ...]:
    lengths = () if size is None else tuple(size) if isinstance(size, (tuple, list)) else (size,)
    lengths = tuple(int(n) for n in lengths)
    if any(n < 0 for n in lengths):
        raise ValueError(f"random: a size has no negative lengths: {lengths}")
    return lengths


def _draw(
    size: Size, dtype: DTypeLike, device: str | None
) -> tuple[Any, tuple[int, int, int], tuple[int, ...], np.dtype]:
    """Return the array library, (seed, offset, n), the lengths and the dtype of a draw."""
    lengths = _size(size)
    wanted = backend.as_dtype(dtype or backend.float32)
    if not backend.is_float(wanted):
        raise TypeError(f"random: dtype {wanted} is not floating; use random.integers")
    n = math.prod(lengths)
    xp = backend.namespace(device)
    seed, offset = reserve(philox.blocks_used(n, 2 if wanted == backend.float64 else 1))
    return xp, (seed, offset, n), lengths, wanted


def uniform(
    low: float = 0.0,
    high: float = 1.0,
    size: Size = None,
    dtype: DTypeLike = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Return numbers spread evenly over [low, high)."""
    if not low <= high:
        raise ValueError(f"random.uniform: low {low} is larger than high {high}")
    xp, draw, lengths, wanted = _draw(size, dtype, device)
    last = high  # the largest number below high: rounding may reach high
    if low < high:
        last = np.nextafter(np.asarray(high, wanted), np.asarray(low, wanted))
    if kernels.active(xp):
        values = kernels.uniform(xp, *draw, wanted, float(low), float(high - low), float(last))
    else:
        values = philox.uniform(np, *draw, backend.promote(wanted, backend.float32))
        if high - low != 1.0:
            values *= high - low
        if low:
            values += low
        values = values.astype(wanted, copy=False)
        if low < high:
            values = np.minimum(values, last)
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
    if not scale >= 0:
        raise ValueError(f"random.normal: scale must be >= 0, got {scale}")
    xp, draw, lengths, wanted = _draw(size, dtype, device)
    if kernels.active(xp):
        values = kernels.normal(xp, *draw, wanted, float(loc), float(scale))
    else:
        values = philox.normal(np, *draw, backend.promote(wanted, backend.float32))
        if scale != 1.0:
            values *= scale
        if loc:
            values += loc
        values = values.astype(wanted, copy=False)
    return registry.Tensor(values.reshape(lengths), requires_grad=requires_grad)


def integers(
    low: int,
    high: int | None = None,
    size: Size = None,
    dtype: DTypeLike = None,
    device: str | None = None,
) -> Any:
    """Return integers spread evenly over [low, high), or [0, low) if high is None; int64."""
    first, end = (0, low) if high is None else (low, high)
    if not first < end:
        raise ValueError(f"random.integers: there is no integer in [{first}, {end})")
    lengths = _size(size)
    n = math.prod(lengths)
    seed, offset = reserve(philox.blocks_used(n, 2))
    values = philox.randint(backend.namespace(device), seed, offset, n, first, end)
    wanted = backend.as_dtype(dtype or backend.int64)
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
    seed, offset = reserve(philox.blocks_used(n))
    mask = philox.keep_mask(backend.namespace(device), seed, offset, n, 1 - p)
    return registry.Tensor(mask.astype(backend.as_dtype(dtype or backend.float32)).reshape(lengths))


def permutation(n: int, device: str | None = None) -> Any:
    """Return 0, 1, ..., n - 1 in random order, int64."""
    if n < 0:
        raise ValueError(f"random.permutation: n must be >= 0, got {n}")
    seed, offset = reserve(philox.blocks_used(n, 2))
    xp = backend.namespace(device)
    keys = philox.uniform(xp, seed, offset, n, backend.float64)
    return registry.Tensor(xp.argsort(keys, kind="stable"))
