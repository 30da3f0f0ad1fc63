"""A transformer block: attention and a two-layer perceptron around a residual stream."""

from __future__ import annotations

from typing import Any, Literal

from .. import fused, ops
from ..backend import DTypeLike
from ..tensor import Tensor
from ..transforms import checkpoint
from . import functional as F
from .attention import Heads, MultiHeadAttention
from .dropout import Dropout
from .linear import Linear
from .module import Module, plain
from .normalization import LayerNorm, RMSNorm, Stream, joins

Recompute = Literal["none", "attention", "block"]


def added(stream: Stream) -> Tensor:
    """Return the sum of the one or two tensors of a residual stream."""
    return stream[0] if len(stream) == 1 else stream[0] + stream[1]


class MLP(Module):
    """down(gelu(up(x))): (..., C) to (..., hidden_dim) and back; hidden_dim is 4C by default."""

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int | None = None,
        bias: bool = True,
        approximate: str = "none",
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        super().__init__()
        hidden = 4 * embed_dim if hidden_dim is None else hidden_dim
        self.approximate = approximate
        self.up = Linear(embed_dim, hidden, bias, device, dtype)
        self.down = Linear(hidden, embed_dim, bias, device, dtype)

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        up, down = self.up, self.down
        if not (plain(up, Linear) and plain(down, Linear)):  # replaced, as LoRA does
            return down(F.gelu(up(input), approximate=self.approximate))
        parameters = up.weight, up.bias, down.weight, down.bias
        return fused.mlp(input, *parameters, approximate=self.approximate)

    def behind(self, norm: Any, stream: Stream) -> tuple[Tensor, Tensor]:
        """Return self(norm(stream)), and the residual stream as one tensor.

        ``stream`` is a tuple of one tensor, or of two that are yet to be added.
        """
        up, down = self.up, self.down
        x, *residual = stream
        if not joins(norm, stream, up, down):
            kept = {"residual": residual[0]} if residual else {"paired": True}
            normalized, h = norm(x, **kept)
            return self(normalized), h
        return fused.layer_norm_mlp(
            x,
            norm.weight,
            norm.bias,
            residual[0] if residual else None,
            up.weight,
            up.bias,
            down.weight,
            down.bias,
            norm.eps,
            self.approximate,
        )


class GatedMLP(Module):
    """down(silu(gate(x)) * up(x)): (..., C) to (..., hidden_dim) and back. Shazeer (2020).

    hidden_dim is 4C by default; 8C/3 has as many parameters as an MLP of 4C.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int | None = None,
        bias: bool = True,
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        super().__init__()
        hidden = 4 * embed_dim if hidden_dim is None else hidden_dim
        self.gate = Linear(embed_dim, hidden, bias, device, dtype)
        self.up = Linear(embed_dim, hidden, bias, device, dtype)
        self.down = Linear(hidden, embed_dim, bias, device, dtype)

    def forward(self, input: Any) -> Tensor:
        """Return a tensor of the same shape."""
        return self.down(F.swiglu(self.gate(input), self.up(input)))


class TransformerBlock(Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), on x (B, T, C); or with the norms last.

    ``norm_first`` is the order of GPT-2 (pre-LN); without it, norm1(x + attention(x)) and
    norm2(x + mlp(x)) as in Vaswani et al. (2017). ``dropout`` acts in training on the attention
    weights and on both branches before they are added. ``approximate`` is the kind of gelu.
    ``norm`` "rms" takes RMSNorm for LayerNorm, ``gated`` a GatedMLP, ``num_kv_heads`` fewer heads
    of keys and values than of queries: together, without biases, the block of Llama.

    Raises ValueError for another ``norm``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        norm_first: bool = True,
        approximate: str = "none",
        eps: float = 1e-5,
        device: str | None = None,
        dtype: DTypeLike = None,
        norm: str = "layer",
        gated: bool = False,
        num_kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = norm_of(norm, embed_dim, eps, bias, device, dtype)
        self.attention = MultiHeadAttention(
            embed_dim, num_heads, bias, dropout, causal, device, dtype, num_kv_heads
        )
        self.norm2 = norm_of(norm, embed_dim, eps, bias, device, dtype)
        self.mlp: MLP | GatedMLP
        if gated:
            self.mlp = GatedMLP(embed_dim, hidden_dim, bias, device, dtype)
        else:
            self.mlp = MLP(embed_dim, hidden_dim, bias, approximate, device, dtype)
        self.dropout = Dropout(dropout)

    def forward(self, input: Any, attn_mask: Any = None, heads: Heads | None = None) -> Tensor:
        """Return (B, T, C); the mask and ``heads`` are passed on to MultiHeadAttention."""
        return self.step((ops.asarray(input),), attn_mask, heads, paired=False)[0]

    def step(
        self,
        stream: Stream,
        attn_mask: Any = None,
        heads: Heads | None = None,
        recompute: Recompute = "none",
        paired: bool = True,
    ) -> Stream:
        """Return the residual stream behind the block: one tensor, or two that are yet to be added.

        ``stream`` is of the same kind. With the norms first the next norm adds the two: no sum
        takes a pass of its own, and in the backward pass both gradients of the stream meet in that
        norm. Where none follows, ``paired=False`` gives one tensor, which the dropout of the second
        branch adds up. ``recompute`` says what is not kept for the backward pass but computed again
        there, with the same results: the way from the stream to the branch of the attention, or the
        whole block; then the sum comes first, and of the two tensors it alone is kept.
        """
        if recompute == "block":
            return checkpoint(
                lambda x: self.step((x,), attn_mask, heads, paired=paired), added(stream)
            )
        if recompute not in ("none", "attention"):
            raise ValueError(
                f"TransformerBlock: recompute must be none, attention or block, got {recompute!r}"
            )
        again = recompute == "attention"

        def attend(*stream: Tensor) -> Stream:
            """Return the branch of the attention, and the stream it starts from as one tensor."""
            attention = self.attention
            if self.norm_first and plain(attention, MultiHeadAttention):
                branch, x = attention.behind(self.norm1, stream, attn_mask, heads)
                return self.dropout(branch), x
            if self.norm_first:
                normalized, x = self.norm1(*stream, paired=True)
            else:
                normalized = x = added(stream)
            return self.dropout(attention(normalized, attn_mask, heads)), x

        branch, x = checkpoint(attend, added(stream)) if again else attend(*stream)
        if self.norm_first:
            if isinstance(self.mlp, MLP) and plain(self.mlp, MLP):
                branch, x = self.mlp.behind(self.norm2, (branch, x))
            else:
                normalized, x = self.norm2(branch, residual=x)
                branch = self.mlp(normalized)
            return (x, self.dropout(branch)) if paired else (self.dropout(branch, x),)
        x, _ = self.norm1(branch, residual=x)
        x, _ = self.norm2(self.dropout(self.mlp(x)), residual=x)
        return (x,)

    def extra_repr(self) -> str:
        """Return the order."""
        return f"norm_first={self.norm_first}"


def norm_of(
    kind: str, size: int, eps: float, bias: bool, device: str | None, dtype: DTypeLike
) -> LayerNorm | RMSNorm:
    """Return a "layer" or an "rms" norm; the latter never has a bias."""
    if kind == "layer":
        return LayerNorm(size, eps, bias=bias, device=device, dtype=dtype)
    if kind != "rms":
        raise ValueError(f"TransformerBlock: norm must be 'layer' or 'rms', got {kind!r}")
    return RMSNorm(size, eps, device=device, dtype=dtype)
