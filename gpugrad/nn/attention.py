"""Multi-head self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import fused, ops
from ..backend import DTypeLike
from ..fused.dropout import probability
from ..tensor import Tensor
from . import functional as F
from . import init
from .linear import Linear
from .module import Module, shape_error
from .normalization import Stream, joins

Heads = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class MultiHeadAttention(Module):
    """Self-attention of x (B, T, C) in ``num_heads`` heads of C / num_heads features.

    ``in_proj`` computes queries, keys and values at once, in this order: its weight is (3C, C).
    ``causal`` lets position t see positions up to t only. ``dropout`` acts on the attention
    weights in training. Initial values as in PyTorch: Xavier for in_proj, zero biases.
    Vaswani et al., "Attention is all you need" (2017).

    With ``num_kv_heads``, a divisor of num_heads, each head of keys and values serves
    num_heads / num_kv_heads heads of queries, neighbours, and in_proj has
    (num_heads + 2 num_kv_heads) C / num_heads rows. Ainslie et al., "GQA" (2023).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        device: str | None = None,
        dtype: DTypeLike = None,
        num_kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiHeadAttention: embed_dim {embed_dim} does not divide into {num_heads} heads"
            )
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if kv_heads < 1 or num_heads % kv_heads:
            raise ValueError(
                f"MultiHeadAttention: num_heads {num_heads} does not divide into groups for "
                f"{kv_heads} heads of keys and values"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = kv_heads
        self.dropout = probability("MultiHeadAttention", "dropout", dropout)
        self.causal = causal
        rows = (num_heads + 2 * kv_heads) * (embed_dim // num_heads)
        self.in_proj = Linear(embed_dim, rows, bias, device, dtype)
        self.out_proj = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        self.out_proj.reset_parameters()
        init.xavier_uniform_(self.in_proj.weight)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                init.zeros_(projection.bias)

    def forward(self, input: Any, attn_mask: Any = None, heads: Heads | None = None) -> Tensor:
        """Return (B, T, C).

        ``attn_mask`` broadcasts to (B, heads, T, S): true where attention is allowed, or numbers
        that are added. ``heads`` may replace queries, (B, heads, T, D), keys and values,
        (B, num_kv_heads, T, D), before they meet: rotary positions, or a cache that puts earlier
        keys and values before the new ones. S keys for T queries are the positions that end with
        the queries'.
        """
        x = ops.asarray(input)
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise shape_error(self, f"(B, T, {self.embed_dim})", x)
        return self._attended(self.in_proj(x), attn_mask, heads)

    def behind(
        self, norm: Any, stream: Stream, attn_mask: Any = None, heads: Heads | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return self(norm(stream), attn_mask, heads), and the residual stream as one tensor.

        ``stream`` is a tuple of one tensor (B, T, C), or of two that are yet to be added.
        """
        x, *residual = stream
        projection = self.in_proj
        if x.ndim != 3 or not joins(norm, stream, projection):
            normalized, h = norm(*stream, paired=True)
            return self(normalized, attn_mask, heads), h
        packed, h = fused.layer_norm_affine(
            x,
            norm.weight,
            norm.bias,
            residual[0] if residual else None,
            projection.weight,
            projection.bias,
            norm.eps,
        )
        return self._attended(packed, attn_mask, heads), h

    def _attended(self, projected: Tensor, attn_mask: Any, heads: Heads | None) -> Tensor:
        """Return what forward does, from the queries, keys and values in one array."""
        b, t, _ = projected.shape
        c = self.embed_dim
        p = self.dropout if self.training else 0.0
        size, groups = c // self.num_heads, self.num_heads // self.num_kv_heads
        cuts = self.num_heads, self.num_heads + self.num_kv_heads
        if groups == 1 and attn_mask is None and heads is None:
            packed = ops.reshape(projected, (b, t, 3, self.num_heads, size))
            return self.out_proj(fused.packed_attention(packed, p, self.causal))
        if t == 1:  # of one position heads are rows already
            q, k, v = ops.split(ops.reshape(projected, (b, -1, 1, size)), cuts, axis=1)
        else:
            parts = ops.split(ops.reshape(projected, (b, t, -1, size)), cuts, axis=2)
            q, k, v = (ops.swapaxes(part, 1, 2) for part in parts)  # (B, heads, T, D)
        if heads is not None:
            q, k, v = heads(q, k, v)
        past = k.shape[-2] - t  # keys before those of the first query
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask, p, self.causal, offset=past, enable_gqa=groups > 1
        )
        out = out if t == 1 else ops.swapaxes(out, 1, 2)
        return self.out_proj(ops.reshape(out, (b, t, c)))

    def extra_repr(self) -> str:
        """Return the arguments."""
        text = f"{self.embed_dim}, {self.num_heads}, causal={self.causal}"
        if self.num_kv_heads != self.num_heads:
            text += f", num_kv_heads={self.num_kv_heads}"
        return f"{text}, dropout={self.dropout}" if self.dropout else text
