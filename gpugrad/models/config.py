"""The shape of a GPT: what is possible, and how large it is, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .. import backend

Positions = Literal["learned", "sinusoidal", "rotary"]
Activation = Literal["gelu_tanh", "gelu"]


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides a GPT's shape and arithmetic; the defaults are GPT-2 (124M).

    vocab_size: number of token ids. block_size: longest sequence, in tokens.
    n_layer, n_head, n_embd: blocks, attention heads per block, width of the residual stream.
    dropout: probability, on the embeddings, the attention weights and both branches of a block.
    bias: whether linear layers and layer norms have one.
    norm_first: pre-LN (GPT-2) or, False, post-LN (GPT-1, Vaswani et al. 2017).
    final_norm: a layer norm before the head; None means only with norm_first.
    positions: "learned" vectors; "sinusoidal" ones, added to token vectors times sqrt(n_embd)
        (Vaswani et al. 2017); or "rotary", which turns queries and keys (Su et al. 2021).
    tied_head: the head uses the token embedding's weight.
    mlp_ratio: width of the hidden layer of each block as a multiple of n_embd.
    activation: "gelu_tanh" (GPT-2) or the exact "gelu" (nanoGPT).
    norm_eps: added to the variance in layer norms. dtype: of the parameters.

    Raises ValueError for a shape that cannot be, naming the field.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    norm_first: bool = True
    final_norm: bool | None = None
    positions: Positions = "learned"
    tied_head: bool = True
    mlp_ratio: float = 4
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"GPTConfig: {name} must be an integer >= 1, got {value!r}")
        for name, kind in (("positions", Positions), ("activation", Activation)):
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ValueError(
                    f"GPTConfig: {name} must be one of {allowed}, got {getattr(self, name)!r}"
                )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"GPTConfig: n_embd {self.n_embd} does not divide into n_head {self.n_head}; the "
                f"nearest number of heads that fits is {nearest_heads(self.n_embd, self.n_head)}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                "GPTConfig: rotary positions turn pairs of features, but n_embd / n_head is "
                f"{self.head_size}, which is odd"
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            raise ValueError(
                f"GPTConfig: sinusoidal positions are pairs of sine and cosine, but n_embd is "
                f"{self.n_embd}, which is odd"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig: dropout must lie in [0, 1), got {self.dropout!r}")
        hidden = self.n_embd * self.mlp_ratio
        if not 0.5 <= hidden < math.inf or abs(hidden - round(hidden)) > 1e-6:
            raise ValueError(
                f"GPTConfig: n_embd times mlp_ratio must be an integer >= 1, got {hidden!r}"
            )
        if not 0 < self.norm_eps < math.inf:
            raise ValueError(f"GPTConfig: norm_eps must be > 0, got {self.norm_eps!r}")
        if not backend.is_float(backend.as_dtype(self.dtype)):
            raise ValueError(f"GPTConfig: dtype must be floating, got {self.dtype!r}")

    @property
    def head_size(self) -> int:
        """The number of features of one attention head."""
        return self.n_embd // self.n_head

    @property
    def hidden_size(self) -> int:
        """The width of the hidden layer of a block."""
        return round(self.n_embd * self.mlp_ratio)

    @property
    def has_final_norm(self) -> bool:
        """Whether a layer norm precedes the head."""
        return self.norm_first if self.final_norm is None else self.final_norm


def nearest_heads(n_embd: int, n_head: int) -> int:
    """Return the number of heads nearest to n_head that divides n_embd, of two the smaller."""
    divisors = (n for n in range(1, n_embd + 1) if n_embd % n == 0)
    return min(divisors, key=lambda n: (abs(n - n_head), n))


def parameter_count(config: GPTConfig) -> int:
    """Return the exact number of trained parameters; a tied head counts once."""
    c, hidden = config.n_embd, config.hidden_size
    block = 4 * c * c + 2 * c * hidden + 2 * c
    final = c
    if config.bias:
        block += 4 * c + hidden + c + 2 * c
        final += c
    return (
        config.vocab_size * c * (1 if config.tied_head else 2)
        + config.block_size * c * (config.positions == "learned")
        + config.n_layer * block
        + final * config.has_final_norm
    )


def flops_per_token(config: GPTConfig, length: int | None = None) -> int:
    """Return the floating-point operations of forward and backward, per token of a sequence.

    6 per weight that is multiplied (not the position vectors, nor an untied embedding's look-up)
    and 12 n_layer n_embd length for attention as if it were not causal: the convention of
    Chowdhery et al., "PaLM" (2022), appendix B. ``length`` is block_size by default.
    """
    looked_up = config.block_size * (config.positions == "learned")
    looked_up += config.vocab_size * (not config.tied_head)
    multiplied = parameter_count(config) - looked_up * config.n_embd
    length = config.block_size if length is None else length
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * length
