"""Self-attention of queries, keys and values packed in one array, as a layer computes them.

    out = scaled_dot_product_attention(q, k, v),   q, k, v = the three parts of qkv

(see ``attention``). The parts are read where they lie, the result is written as the next layer
reads it, and the three gradients are written into one packed array: nothing is transposed, copied
or concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import cuda, ops
from ..ops.random import Draw
from ..registry import Sample, describe
from ..tensor import Tensor
from . import _attention_backward, _attention_forward, _attention_numpy
from ._arguments import floating
from ._rows import reshaped, wide_dtype
from ._tiles import maker
from .attention import _scaled_dot_product_attention, cost, drawn
from .base import Implementation, fused


def _parts(qkv: Any) -> tuple[Any, Any, Any]:
    """Return queries, keys and values as views (B, H, T, D)."""
    turned = qkv.transpose(2, 0, 3, 1, 4)
    return turned[0], turned[1], turned[2]


def _as_heads(g: Any, qkv: Any) -> Any:
    return reshaped(g, (*qkv.shape[:2], *qkv.shape[3:])).swapaxes(1, 2)


def _forward_of(forward: Callable[..., tuple[Any, tuple]]) -> Callable[..., tuple[Any, tuple]]:
    def packed(qkv: Any, **statics: Any) -> tuple[Any, tuple]:
        out, residuals = forward(*_parts(qkv), None, **statics)
        batch, rows, _, heads, width = qkv.shape
        return reshaped(out.swapaxes(1, 2), (batch, rows, heads * width)), residuals

    return packed


def _backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple, **statics: Any
) -> Sequence[Any]:
    (qkv,) = arrays
    make = maker(qkv.shape[1], qkv.shape[1], statics["is_causal"], statics["offset"])
    made = make(qkv.shape, wide_dtype(qkv.dtype))
    _attention_numpy.add_gradients(
        _parts(made), (True,) * 3, _as_heads(g, qkv), (*_parts(qkv), None), residuals, **statics
    )
    return (reshaped(made, made.shape, qkv.dtype),)


def _cuda_backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple, **statics: Any
) -> Sequence[Any]:
    (qkv,) = arrays
    made = cuda.empty(qkv.shape, qkv.dtype, like=qkv)
    _attention_backward.write(_parts(made), _as_heads(g, qkv), _parts(qkv), residuals, **statics)
    return (made,)


_DRAWN: dict[str, Any] = {"draw": Draw(7, 3)}


@fused(
    [
        Sample(
            (2, 3, 3, 2, 2), scale=0.7, is_causal=False, offset=0, dropout_p=0.0, draw=Draw(0, 0)
        ),
        Sample((1, 4, 3, 1, 3), scale=0.7, is_causal=True, offset=0, dropout_p=0.0, **_DRAWN),
        Sample((2, 5, 3, 2, 2), scale=0.7, is_causal=True, offset=1, dropout_p=0.4, **_DRAWN),
    ],
    arguments=("qkv",),
    cost=lambda qkv, **statics: cost(*_parts(qkv), **statics),
    numpy=Implementation(_forward_of(_attention_numpy.forward), _backward, prepared=True),
    cuda=Implementation(
        _forward_of(_attention_forward.forward),
        _cuda_backward,
        lambda qkv, **statics: _attention_forward.fits(*_parts(qkv), None, **statics),
    ),
)
def _packed_attention(qkv, **statics):
    q, k, v = (ops.swapaxes(part, 1, 2) for part in ops.unstack(qkv, 2))
    out = ops.swapaxes(_scaled_dot_product_attention.spec(q, k, v, None, **statics), 1, 2)
    batch, rows, heads, width = out.shape
    return ops.reshape(out, (batch, rows, heads * width))


def packed_attention(
    qkv: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    offset: int = 0,
) -> Tensor:
    """Return the attention of each token of a sequence to the others, (B, T, H * D).

    qkv: (B, T, 3, H, D), the queries, keys and values of H heads. ``dropout_p``, ``is_causal``,
    ``scale`` and ``offset`` are those of scaled_dot_product_attention. Raises ValueError where
    shape or dropout_p do not fit, TypeError for an offset that is no integer.
    """
    x = floating(qkv)
    if x.ndim != 5 or x.shape[2] != 3:
        raise ValueError(f"packed_attention: qkv must be (B, T, 3, H, D), got {describe(x)}")
    batch, rows, _, heads, width = x.shape
    query = batch, heads, rows, width
    statics = drawn("packed_attention", query, query, dropout_p, is_causal, scale, offset)
    return _packed_attention(x, **statics)
