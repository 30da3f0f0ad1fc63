"""Parameter: what a module trains."""

from __future__ import annotations

from typing import Any

from ..backend import DTypeLike
from ..ops import empty
from ..tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: a leaf that requires grad unless told otherwise.

    Shares memory with an array or tensor it is given. Operations on it give plain tensors.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


def empty_parameter(*shape: int, device: str | None, dtype: DTypeLike) -> Parameter:
    """Return a Parameter whose elements its module still has to initialise."""
    return Parameter(empty(shape, dtype=dtype, device=device))
