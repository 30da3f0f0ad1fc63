"""Arguments of fused operations: made tensors of a floating dtype, their shapes checked."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..ops import asarray
from ..tensor import Tensor


def floating(value: Any) -> Tensor:
    """Return value as a tensor of floating dtype; integers and booleans become float32."""
    if isinstance(value, Tensor) and value._data.dtype.kind == "f":
        return value  # the common case, without a detour
    x = asarray(value)
    return x if backend.is_float(x.dtype) else x.astype(backend.float32)


def features(op: str, value: Any) -> Tensor:
    """Return value as a floating tensor whose last axis is its features, refusing one without."""
    x = floating(value)
    if not x.ndim:
        raise ValueError(f"{op}: x has no axes; its shape must be (..., features)")
    return x


def parameter(op: str, name: str, value: Any, x: Tensor) -> Tensor | None:
    """Return an optional vector with one element per feature of x, refusing other shapes."""
    if value is None:
        return None
    vector = floating(value)
    if vector.shape != x.shape[-1:]:
        raise ValueError(
            f"{op}: {name} has shape {vector.shape}, but the last axis of x, of shape {x.shape}, "
            f"needs ({x.shape[-1]},)"
        )
    return vector


def with_residual(op: str, x: Tensor, value: Any) -> tuple[Tensor, Tensor | None]:
    """Return x and an optional residual of its shape, both in their common dtype."""
    if value is None:
        return x, None
    residual = floating(value)
    if residual.shape != x.shape:
        raise ValueError(
            f"{op}: residual has shape {residual.shape} but x has {x.shape}; they must be equal "
            "(gg.broadcast_to makes them so)"
        )
    if x.dtype == residual.dtype:
        return x, residual
    dtype = backend.promote(x.dtype, residual.dtype)
    return x.astype(dtype), residual.astype(dtype)


def nonnegative(op: str, name: str, value: float) -> float:
    """Return a number, refusing what is negative or NaN."""
    if not value >= 0:
        raise ValueError(f"{op}: {name} must not be negative, got {value}")
    return float(value)
