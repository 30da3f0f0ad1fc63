"""LayerNorm and RMSNorm, over the last axes of their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import fused
from ..backend import DTypeLike
from ..fused import _rows
from ..fused._arguments import nonnegative
from ..fused.layer_norm_affine import fits
from ..ops import asarray
from ..tensor import Tensor
from . import functional as F
from . import init
from .linear import Linear
from .module import Module, plain, shape_error
from .parameter import Parameter, empty_parameter

Stream = tuple[Tensor, ...]  # one tensor, or two that are yet to be added


class _Norm(Module):
    """What both share: the lengths of the last axes, a weight of ones and a bias of zeros."""

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None,
        weight: bool,
        bias: bool,
        device: str | None,
        dtype: DTypeLike,
    ) -> None:
        super().__init__()
        lengths = normalized_shape
        self.normalized_shape = (lengths,) if isinstance(lengths, int) else tuple(lengths)
        self.eps = None if eps is None else nonnegative(type(self).__name__, "eps", eps)
        self.elementwise_affine = weight
        for name, wanted in (("weight", weight), ("bias", bias)):
            shape = self.normalized_shape
            made = empty_parameter(*shape, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def _checked(self, input: Any) -> Tensor:
        x = asarray(input)
        if x.shape[-len(self.normalized_shape) :] != self.normalized_shape:
            raise shape_error(self, f"(..., {', '.join(map(str, self.normalized_shape))})", x)
        return x

    def extra_repr(self) -> str:
        """Return the shape and the arguments."""
        affine = f"elementwise_affine={self.elementwise_affine}"
        return f"{self.normalized_shape}, eps={self.eps}, {affine}"


class LayerNorm(_Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes; see F.layer_norm.

    ``normalized_shape`` is the length of the last axis, or the lengths of several.
    """

    eps: float

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        has_bias = elementwise_affine and bias
        super().__init__(normalized_shape, eps, elementwise_affine, has_bias, device, dtype)

    def forward(self, input: Any, residual: Any = None, paired: bool = False) -> Any:
        """Return the input normalised; with a residual, (normalised sum, input + residual).

        ``paired`` gives the pair (normalised input, input) without a residual too.
        """
        x, shape, eps = self._checked(input), self.normalized_shape, self.eps
        w, b = self.weight, self.bias
        if len(shape) == 1:
            return fused.layer_norm(x, w, b, residual, eps, paired=paired)
        return F.layer_norm(x, shape, w, b, eps, residual=residual, paired=paired)


class RMSNorm(_Norm):
    """x / sqrt(mean(x*x) + eps) * weight over the last axes; see F.rms_norm."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, device, dtype)

    def forward(self, input: Any, residual: Any = None, paired: bool = False) -> Any:
        """Return the input normalised; with a residual, (normalised sum, input + residual).

        ``paired`` gives the pair (normalised input, input) without a residual too.
        """
        x, shape, eps = self._checked(input), self.normalized_shape, self.eps
        normalized = F.rms_norm(x, shape, self.weight, eps, residual=residual)
        return (normalized, x) if paired and residual is None else normalized


def joins(norm: Any, stream: Stream, *layers: Any) -> bool:
    """Return whether the norm of a residual stream and the linear layers behind it are computed as
    one operation: they are what they seem to be, and there are so many rows that it pays.
    """
    x, *residual = stream
    if x.size < _rows.ALONE:  # all rows fit into a cache, as ``fits`` would find
        return False
    if x.device != "cpu" or not plain(norm, LayerNorm) or norm.normalized_shape != x.shape[-1:]:
        return False
    parameters = []
    for layer in layers:
        if not plain(layer, Linear) or layer.weight.shape != (
            layer.out_features,
            layer.in_features,
        ):
            return False
        parameters += [layer.weight, layer.bias]
    return fits(x, norm.weight, norm.bias, residual[0] if residual else None, *parameters)
