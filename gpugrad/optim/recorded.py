"""A step of an optimiser as one launch of a step that ``gg.compile`` records for NumPy."""

from __future__ import annotations

from collections.abc import Callable

from .. import backend
from ..backend import Array
from ..cuda import recording
from ..tensor import Tensor
from .group import Group
from .scaler import LossScaler


def record(
    moving: list[tuple[Tensor, Group]],
    groups: list[Group],
    arrays: list[Array],
    scaler: LossScaler | None,
    step: Callable[[], Array | None],
) -> Array:
    """Have each run call ``step`` with the gradients that the parameters have now in the recording.

    ``moving`` are the parameters that have one, ``arrays`` those that remember something of them.
    Returns what stands for the result of ``step``: the norm and the factor, float64; it is not
    written where ``step`` returns None.
    """
    trace = recording.current()
    assert trace is not None
    found = recording.new(recording.ARENA, (2,), backend.float64, trace.buffer)
    gradients = {p: p._grad._data for p, _ in moving if p._grad is not None}
    data = [p._data for p in gradients]  # which the step may have assigned
    others = [p for group in groups for p in group["params"] if p not in gradients]
    changed = [*data, *arrays]
    if scaler is not None:
        changed += scaler.arguments()[:2]
    trace.record(
        _run,
        (step, list(gradients), data, list(gradients.values()), others, found),
        reads=[*gradients.values(), *changed],
        writes=[*changed, found],
        name="optimizer_step",
    )
    return found


def _run(
    step: Callable[[], Array | None],
    moving: list[Tensor],
    data: list[Array],
    gradients: list[Array],
    others: list[Tensor],
    found: Array,
) -> None:
    """Take a step with this data and these gradients; tensors hold afterwards what they held."""
    before = [(p, p._data, p._grad) for p in (*moving, *others)]
    try:
        for p, x, g in zip(moving, data, gradients, strict=True):
            p._data, p._grad = x, Tensor._wrap(g, None)
        for p in others:
            p._grad = None
        clip = step()
    finally:
        for p, x, g in before:
            p._data, p._grad = x, g
    if clip is not None:
        found[...] = clip
