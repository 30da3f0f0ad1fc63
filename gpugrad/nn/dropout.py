"""Dropout."""

from __future__ import annotations

from typing import Any

from .. import fused
from ..fused.dropout import probability
from ..tensor import Tensor
from . import functional as F
from .module import Module


class Dropout(Module):
    """In training, zeroes each element with probability p and divides the others by 1 - p."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = probability("Dropout", "p", p)

    def forward(self, input: Any, residual: Any = None) -> Tensor:
        """Return a tensor of the same shape, added to a residual if one is given.

        After .eval() nothing is zeroed: the input itself, or residual + input.
        """
        training = self.training
        if residual is not None:
            return fused.dropout_add(input, residual, self.p, training)
        if not training and isinstance(input, Tensor):
            return input
        return F.dropout(input, self.p, training)

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"p={self.p}"
