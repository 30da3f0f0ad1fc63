"""Activation functions as modules."""

from __future__ import annotations

from typing import Any

from ..tensor import Tensor
from . import functional as F
from .module import Module


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.relu(input)


class GELU(Module):
    """x times the normal distribution function at x, exactly or (``"tanh"``) approximately."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        """Return the argument."""
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x * sigmoid(x)."""

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.silu(input)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.sigmoid(input)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.tanh(input)


class _AlongAxis(Module):
    def __init__(self, dim: int | None = None, *, axis: int | None = None) -> None:
        super().__init__()
        self.dim = F.axis_of(type(self).__name__, dim, axis)

    def extra_repr(self) -> str:
        """Return the axis."""
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """exp(x) divided by its sum along ``dim`` (or ``axis``), the last one by default."""

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.softmax(input, self.dim)


class LogSoftmax(_AlongAxis):
    """The logarithm of Softmax, without overflow."""

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return F.log_softmax(input, self.dim)
