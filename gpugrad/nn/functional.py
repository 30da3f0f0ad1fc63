"""What layers compute, as functions: PyTorch's names, argument names and defaults.

Where PyTorch says ``dim``, ``axis`` is accepted too. Arguments that follow a deprecated one in
PyTorch (``size_average``, ``reduce``) are keyword-only, so that no position changes its meaning.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, fused, ops
from ..backend import DTypeLike
from ..boundary import name_all
from ..fused._ids import refuse_non_integer, refuse_out_of_range
from ..fused.fuse import fuse
from ..ops import asarray
from ..registry import describe
from ..tensor import Tensor
from .loss import binary_cross_entropy_with_logits, cross_entropy, dpo_loss, mse_loss, nll_loss

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dpo_loss",
    "dropout",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "swiglu",
    "tanh",
]


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """Return input @ weight.T + bias: input (..., in), weight (out, in), bias (out)."""
    return ops.linear(input, weight) if bias is None else fused.affine(input, weight, bias)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """Return the rows of weight (V, C) that the ids of input (...) name: (..., C).

    The row padding_idx gets no gradient. Raises IndexError naming the first id out of range; on a
    GPU, where ids are not looked at, such an id gives a row of NaN.
    """
    return fused.embedding(input, weight, padding_idx=padding_idx)


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """Return int64 vectors that are 1 at the class and 0 elsewhere: (..., num_classes).

    By default (-1) there are as many classes as the largest one asks for. Raises IndexError naming
    a class out of range; on a GPU, where classes are not looked at, such a class gives zeros.
    """
    classes = asarray(tensor)
    refuse_non_integer("one_hot", "tensor", classes)
    num_classes = operator.index(num_classes)
    if num_classes < -1:
        raise ValueError(f"one_hot: num_classes must be >= 0, or -1 to infer, got {num_classes}")
    if not classes.size and num_classes < 0:
        raise ValueError(f"one_hot: give num_classes, {describe(classes)} holds no class")
    count = int(classes.max()) + 1 if num_classes < 0 else num_classes
    refuse_out_of_range("one_hot", "tensor", classes, count, "the number of classes is")
    xp = backend.xp_of(classes._data)
    found = classes._data[..., None] == xp.arange(count)
    return Tensor(found.astype(backend.int64))


# Activations


def relu(input: Any) -> Tensor:
    """Return max(x, 0). The gradient at 0 is 0."""
    return ops.relu(input)


def gelu(input: Any, approximate: str = "none") -> Tensor:
    """Return x times the normal distribution function at x, exactly or by "tanh".

    Hendrycks, Gimpel, "Gaussian error linear units" (2016).
    """
    return fused.gelu(input, approximate=approximate)


def silu(input: Any) -> Tensor:
    """Return x * sigmoid(x), also called swish: Elfwing, Uchibe, Doya (2017)."""
    return _silu(asarray(input))


@fuse
def _silu(x: Tensor) -> Tensor:
    return x * ops.sigmoid(x)


def swiglu(gate: Any, input: Any) -> Tensor:
    """Return silu(gate) * input, two tensors of one shape: Shazeer, "GLU variants" (2020)."""
    return _swiglu(asarray(gate), asarray(input))


@fuse
def _swiglu(gate: Tensor, x: Tensor) -> Tensor:
    return gate * ops.sigmoid(gate) * x


def sigmoid(input: Any) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    return ops.sigmoid(input)


def tanh(input: Any) -> Tensor:
    """Return the hyperbolic tangent."""
    return ops.tanh(input)


def axis_of(name: str, dim: int | None, axis: int | None) -> int:
    """Return the axis given under one of its two names, the last one by default."""
    if dim is not None and axis is not None:
        raise TypeError(f"{name}: dim and axis are two names of one argument; give one")
    given = axis if dim is None else dim
    return -1 if given is None else given


def softmax(
    input: Any, dim: int | None = None, dtype: DTypeLike = None, *, axis: int | None = None
) -> Tensor:
    """Return exp(x) divided by its sum along dim, the last axis by default."""
    x = asarray(input)
    x = x if dtype is None else x.astype(dtype)
    return fused.softmax(x, axis=axis_of("softmax", dim, axis))


def log_softmax(
    input: Any, dim: int | None = None, dtype: DTypeLike = None, *, axis: int | None = None
) -> Tensor:
    """Return log(softmax(x)) without overflow, along the last axis by default."""
    x = asarray(input)
    x = x if dtype is None else x.astype(dtype)
    return fused.log_softmax(x, axis=axis_of("log_softmax", dim, axis))


def dropout(input: Any, p: float = 0.5, training: bool = True) -> Tensor:
    """Return x with each element zeroed with probability p, the rest divided by 1 - p.

    Without training, x itself. Srivastava et al., "Dropout" (2014).
    """
    return fused.dropout(input, p=p, training=training)


# Normalisation


def _flattened(
    name: str, x: Tensor, normalized_shape: int | Sequence[int], **others: Any
) -> tuple[Any, ...]:
    """Return x with its normalised axes merged into one, and the other arguments likewise."""
    if isinstance(normalized_shape, Tensor) or backend.is_array(normalized_shape):
        raise TypeError(
            f"{name}: normalized_shape is the lengths of the last axes, got "
            f"{describe(normalized_shape)}; pass weight="
        )
    lengths = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not lengths or x.shape[-len(lengths) :] != lengths:
        raise ValueError(f"{name}: the shape of input, {x.shape}, does not end in {lengths}")
    for key, value in others.items():
        expected = x.shape if key == "residual" else lengths
        if value is not None and np.shape(value) != expected:
            raise ValueError(f"{name}: {key} has shape {np.shape(value)}, expected {expected}")
    values = (x, *others.values())
    if len(lengths) == 1:
        return values
    count, merged = len(lengths), math.prod(lengths)
    return tuple(
        None if v is None else ops.reshape(v, (*np.shape(v)[:-count], merged)) for v in values
    )


def _unflattened(out: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(out, tuple):
        return tuple(_unflattened(o, shape) for o in out)
    return out if out.shape == shape else ops.reshape(out, shape)


def layer_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    residual: Any = None,
    paired: bool = False,
) -> Any:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the last axes, var biased.

    ``normalized_shape`` are the lengths of those axes and the shape of weight and bias. With a
    residual of the input's shape, x is input + residual, and the result the pair of normalised x
    and x; ``paired`` gives this pair without a residual too. Ba, Kiros, Hinton, "Layer
    normalization" (2016).
    """
    x, w, b, r = _flattened(
        "layer_norm", asarray(input), normalized_shape, weight=weight, bias=bias, residual=residual
    )
    return _unflattened(fused.layer_norm(x, w, b, r, eps=eps, paired=paired), np.shape(input))


def rms_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    eps: float | None = None,
    *,
    residual: Any = None,
) -> Any:
    """Return x / sqrt(mean(x*x) + eps) * weight over the last axes; residual as in layer_norm.

    Without eps it is the distance from 1 to the next number of the dtype it is computed in, at
    least float32. Zhang, Sennrich, "Root mean square layer normalization" (2019).
    """
    x, w, r = _flattened(
        "rms_norm", asarray(input), normalized_shape, weight=weight, residual=residual
    )
    if eps is None:
        wide = backend.float64 if x.dtype == backend.float64 else backend.float32
        eps = float(np.finfo(wide).eps)
    return _unflattened(fused.rms_norm(x, w, r, eps=eps), np.shape(input))


# Attention


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    enable_gqa: bool = False,
    offset: int = 0,
) -> Tensor:
    """Return softmax(query @ key.T * scale + mask) @ value over (..., T, D) and (..., S, D).

    ``attn_mask`` (broadcast to (..., T, S)) is boolean, true where attention is allowed, or is
    added; ``is_causal`` allows query t the keys up to t + offset, the mask permitting; ``scale``
    is 1/sqrt(D) by default. Dropout acts on the weights, whenever dropout_p is not 0. With
    ``enable_gqa`` each head (axis -3) of key and value serves several neighbouring ones of query.
    Vaswani et al. (2017).
    """
    return fused.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        offset=offset,
        enable_gqa=enable_gqa,
    )


name_all(globals(), "gpugrad.nn.")
