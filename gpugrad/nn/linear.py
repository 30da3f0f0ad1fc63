"""Linear layers, and Flatten, which usually comes before one."""

from __future__ import annotations

import math
from typing import Any

from .. import fused, ops
from ..backend import DTypeLike
from ..tensor import Tensor
from . import init
from .module import Module, shape_error
from .parameter import Parameter, empty_parameter


class Linear(Module):
    """x @ weight.T + bias: (..., in_features) to (..., out_features); weight is (out, in).

    Both start uniform within 1/sqrt(in_features), as in PyTorch (kaiming_uniform_, a=sqrt(5)).
    """

    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = empty_parameter(out_features, in_features, device=device, dtype=dtype)
        self.bias = empty_parameter(out_features, device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(max(1, self.in_features))
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Any) -> Tensor:
        """Return (..., out_features)."""
        x = ops.asarray(input)
        if x.shape[-1:] != (self.in_features,):
            raise shape_error(self, f"(..., {self.in_features})", x)
        weight, bias = self.weight, self.bias
        return ops.linear(x, weight) if bias is None else fused.affine(x, weight, bias)

    def extra_repr(self) -> str:
        """Return the sizes."""
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"


class Flatten(Module):
    """Merges the axes from start_dim to end_dim into one: (N, ...) to (N, D) by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Any) -> Tensor:
        """Return the same elements with fewer axes."""
        return ops.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """Return the axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """Returns its input: a place where another module can be put."""

    def forward(self, input: Any) -> Any:
        """Return the input."""
        return input
