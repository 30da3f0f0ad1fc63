"""What an optimiser remembers of its parameters: steps, and arrays laid end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array
from ..cuda import recording, transfer
from ..tensor import Tensor
from . import blocks

MASTER = "master"

# Elements to a multiple of which parts of a flat buffer begin; on a GPU, where kernels read vectors
# and a warp reads whole cache lines, 128 bytes of float32.
CPU_ALIGNMENT, GPU_ALIGNMENT = 1, 32


class State:
    """The steps taken with one parameter, and its 1-D parts of the flat buffers.

    ``steps`` is one int32 beside the parameter: a kernel counts there, as it alone knows whether a
    step was taken.
    """

    __slots__ = ("arrays", "dtype", "shape", "steps")

    def __init__(self, parameter: Tensor, steps: Array, arrays: dict[str, Array]) -> None:
        self.steps = steps
        self.arrays = arrays
        self.dtype = parameter.dtype
        self.shape = parameter.shape

    @property
    def step(self) -> int:
        """The steps taken; this waits for a GPU."""
        return int(self.steps[0])

    def copied(self) -> dict[str, Any]:
        """Return the steps and copies of the arrays, as NumPy arrays of the parameter's shape."""
        arrays = {
            name: backend.to_numpy(a).reshape(self.shape).copy() for name, a in self.arrays.items()
        }
        return {"step": self.step, **arrays}

    def take(self, other: State) -> bool:
        """Copy another state of the same parameter into this one's memory; return if it fits."""
        if self.arrays.keys() != other.arrays.keys() or self.dtype != other.dtype:
            return False
        pairs = [(self.arrays[name], other.arrays[name]) for name in self.arrays]
        pairs.append((self.steps, other.steps))
        if any(
            backend.device_of(a) != backend.device_of(b) or a.shape != b.shape for a, b in pairs
        ):
            return False
        self.shape = other.shape
        for mine, new in pairs:
            mine[...] = new
        return True

    def load(self, saved: Mapping[str, Any], label: str) -> None:
        """Take over what ``copied`` returned; ValueError, starting with label, if it cannot be.

        ``{"step": 0}`` is the state of a parameter that took no step.
        """
        if saved.keys() == {"step"} and saved["step"] == 0:
            return
        names = {"step", *self.arrays}
        if set(saved) != names:
            raise ValueError(f"{label}: the state has {sorted(saved)}, expected {sorted(names)}")
        step = saved["step"]
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"{label}: step must be an integer >= 0, got {step!r}")
        self.steps[0] = step
        for name, array in self.arrays.items():
            value = saved[name]
            value = value._data if isinstance(value, Tensor) else value
            value = backend.as_array(value, device=backend.device_of(array))
            if value.shape != self.shape:
                raise ValueError(f"{label}: {name} has shape {value.shape}, expected {self.shape}")
            array[...] = value.reshape(-1)


def lay_out(parameters: Sequence[Tensor], names: Sequence[str]) -> dict[Tensor, State]:
    """Return new states of zeros: per dtype and device, one flat buffer for each name.

    Those of small parameters come last, end to end: they are updated together. Parameters of half
    precision get a float32 ``master`` copy beside. State is made at once, also while a step is
    recorded.
    """
    kinds: dict[tuple, list[Tensor]] = {}
    for p in parameters:
        kinds.setdefault((p.dtype, backend.device_of(recording.array_of(p))), []).append(p)
    for members in kinds.values():
        members.sort(key=lambda p: p.size <= blocks.SMALL)
    states = {}
    for (dtype, _), members in kinds.items():
        like = recording.array_of(members[0])
        work = backend.float64 if dtype == backend.float64 else backend.float32
        unit = CPU_ALIGNMENT if isinstance(like, np.ndarray) else GPU_ALIGNMENT
        total = sum(-(-p.size // unit) * unit for p in members)
        kept = [*names] if dtype == work else [*names, MASTER]
        buffers = {name: zeros((total,), work, like) for name in kept}
        steps = zeros((len(members),), backend.int32, like)
        start = 0
        for i, p in enumerate(members):
            part = slice(start, start + p.size)
            start += -(-p.size // unit) * unit
            arrays = {name: buffer[part] for name, buffer in buffers.items()}
            states[p] = State(p, steps[i : i + 1], arrays)
            if MASTER in buffers and not isinstance(like, backend.Symbolic):
                buffers[MASTER][part] = recording.array_of(p).reshape(-1)
    return states


def zeros(shape: tuple[int, ...], dtype: np.dtype, like: Array) -> Array:
    """Return zeros where ``like`` is; memory without elements for a model without any."""
    if isinstance(like, backend.Symbolic):
        return recording.new(recording.META, shape, dtype)
    made = backend.xp_of(like).empty(shape, dtype)
    transfer.fill(made, 0)
    return made


def follow(master: Array, x: Array) -> None:
    """Take over into the master copy what somebody else wrote into the parameter x, both 1-D."""
    changed = master.astype(x.dtype) != x
    backend.xp_of(x).copyto(master, x.astype(master.dtype), where=changed)
