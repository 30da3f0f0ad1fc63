"""What passes between a recorded step and the tensors around it: gradients, data and flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..cuda import recording
from ..cuda.recording import Buffer, Trace
from ..cuda.replay import Replay
from ..tensor import Tensor


class _Slot(NamedTuple):
    """Memory for the gradient that a tensor comes with, and the gradient that lies there."""

    tensor: Tensor
    buffer: Buffer
    gradient: Tensor


class Ends:
    """How a step takes tensors from outside, and leaves them: made at the end of its recording.

    A gradient that a tensor comes with is copied to memory of the recording, its slot, unless it
    lies there already. What replaces a gradient that the step has used is written to that slot,
    where the next run finds it, if its axes have the same order; other gradients stay where they
    were computed (``kept``). Data that the step assigns is written to the array that the tensor
    came with.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        data = _assigned_data(trace)
        self._gradients, filled = _gradients(trace)
        for target, value in [*data, *filled]:  # when nothing reads any more what was there
            recording.copy_to(target, value)
        self._flags = [
            (leaf.tensor, leaf.tensor._requires_grad)
            for leaf in trace.leaves.values()
            if leaf.tensor._requires_grad is not leaf.requires_grad
        ]
        self.kept = [end for _, end in self._gradients if isinstance(end, Buffer)]

    def place(self, replay: Replay) -> None:
        """Find the memory that a replay gives to gradients."""
        own = {b: Tensor._wrap(replay.left(b), None) for b in dict.fromkeys(self.kept)}
        self._replay, self._slots, self._own = replay, [], own
        for leaf in self._trace.leaves.values():
            if leaf.slot is not None and replay.holds(leaf.slot):
                if leaf.slot not in own:
                    own[leaf.slot] = Tensor._wrap(replay.left(leaf.slot), None)
                self._slots.append(_Slot(leaf.tensor, leaf.slot, own[leaf.slot]))
        self._left = [(t, own[g] if isinstance(g, Buffer) else g) for t, g in self._gradients]

    def take(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Fill the slots before a run; return the arguments, copied if they lie in slots."""
        replay = self._replay
        incoming = [
            (slot.buffer, replay.outlasting(slot.tensor._grad._data))  # may be in another slot
            for slot in self._slots
            if slot.tensor._grad is not None
            and (replay.is_shared or slot.tensor._grad is not slot.gradient)
        ]
        if incoming:
            arguments = [replay.outlasting(array) for array in arguments]
        for buffer, value in incoming:
            replay.write(buffer, value)
        return arguments

    def leave(self) -> None:
        """Set gradients and flags as the step does."""
        if self._replay.is_shared:
            for buffer, own in self._own.items():
                own._data = self._replay.left(buffer)
        for tensor, gradient in self._left:
            tensor._grad = gradient
        for tensor, requires_grad in self._flags:
            tensor._requires_grad = requires_grad


_Pairs = list[tuple[Buffer, Buffer]]  # where something is written at the end, and what


def changes_at_end(trace: Trace, buffer: Buffer) -> bool:
    """Return whether a step writes to a Buffer when it ends: a gradient, or data it assigns."""
    if buffer.storage.kind == recording.REAL:
        return any(leaf.buffer.overlaps(buffer) for leaf in _reassigned(trace))
    return buffer.storage.kind == recording.GRADIENT


def _reassigned(trace: Trace) -> list[recording.Leaf]:
    """Return the tensors from outside that have other data when the step ends."""
    return [leaf for leaf in trace.leaves.values() if leaf.tensor._data is not leaf.buffer]


def _assigned_data(trace: Trace) -> _Pairs:
    """Return the arrays that tensors came with, and copies of the data that the step assigns."""
    leaves, found = trace.leaves.values(), _reassigned(trace)
    for leaf in found:
        if any(other is not leaf and leaf.buffer.overlaps(other.buffer) for other in leaves):
            raise recording.not_recordable(
                f"assigning data to a tensor ({leaf.array.dtype}{list(leaf.array.shape)}) that "
                "shares its memory with another one, which would change as well (.copy_() changes "
                "both),"
            )
    return [(leaf.buffer, leaf.tensor._data.copy()) for leaf in found]


def _gradients(trace: Trace) -> tuple[list[tuple[Tensor, Buffer | Tensor | None]], _Pairs]:
    """Return the tensors that the step leaves with another gradient, with that, and what slots get.

    A gradient is a Buffer, a tensor from outside, or None for none.
    """
    found: list[tuple[Tensor, Buffer | Tensor | None]] = []
    filled: _Pairs = []
    for leaf in list(trace.leaves.values()):
        tensor, now = leaf.tensor, leaf.tensor._grad
        if now is None:
            if leaf.assigned or leaf.gradient is not None:
                found.append((tensor, None))
            continue
        trace.lift_tensor(now)
        if now in trace.leaves:
            found.append((tensor, now))
            continue
        made: Buffer = now._data.settle()
        if made is leaf.slot:
            if any(b.storage is made.storage for one in trace.launches for b in one.writes):
                found.append((tensor, made))
            continue
        lasts = made.storage.kind in (recording.ARENA, recording.REAL)
        if not lasts or changes_at_end(trace, made):
            made = made.copy()
        if leaf.slot is not None and leaf.observed and _alike(made, leaf.slot):
            filled.append((leaf.slot, made))
            made = leaf.slot
        found.append((tensor, made))
    return found, filled


def _alike(made: Buffer, slot: Buffer) -> bool:
    """Return whether a gradient may lie in a slot: NumPy's sums depend on the order of its axes."""
    return not made.by_numpy or made.strides == slot.strides
