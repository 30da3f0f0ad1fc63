"""Integer arguments that name a row or a class: made tensors, their type and range checked.

NumPy and CuPy wrap a negative index around silently, and CuPy one that is too large. What lies on a
GPU is not looked at, which would make the host wait for it: there results are NaN for an id out of
range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend
from ..cuda import recording
from ..registry import describe
from ..tensor import Tensor


def on_device_of(value: Any, x: Tensor) -> Tensor:
    """Return value as a tensor: arrays stay where they are, numbers and lists go where x is."""
    if isinstance(value, Tensor):
        return value
    return Tensor(value, device=None if backend.is_array(value) else x.device)


def refuse_non_integer(op: str, name: str, ids: Tensor) -> None:
    """Raise TypeError for ids that are not integers; booleans are none."""
    if ids.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: {name} must be integer ids, got {describe(ids)}; convert with .astype(gg.int64)"
        )


def in_range(ids: Tensor, count: int) -> Tensor:
    """Return which ids lie in [0, count), as booleans."""
    return (ids >= 0) & (ids < count)


def refuse_out_of_range(
    op: str, name: str, ids: Tensor, count: int, what: str, allowed: int | None = None
) -> None:
    """Raise IndexError that names the first id outside [0, count) and its position.

    ``allowed`` is one more id that may occur, and ``what`` says what there are ``count`` of. Only
    ids on the CPU are checked.
    """
    array = ids._data
    if backend.is_numpy(array):
        _refuse(op, name, array, count, what, allowed)


@recording.whole
def _refuse(
    op: str, name: str, array: np.ndarray, count: int, what: str, allowed: int | None
) -> None:
    bad = (array < 0) | (array >= count)
    if allowed is not None:
        bad &= array != allowed
    if bad.any():
        position = tuple(map(int, np.unravel_index(int(bad.argmax()), array.shape)))
        where = f"{name}[{', '.join(map(str, position))}]" if position else name
        also = "" if allowed is None else f", or ignore_index={allowed}"
        raise IndexError(
            f"{op}: {where} is {int(array[position])}, but {what} {count}: ids must lie in "
            f"[0, {count}){also}"
        )
