"""The shape of a GPT: what is possible, and how large it is, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .. import backend
from ._checks import require_flags

Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "relative"]
Activation = Literal["gelu_tanh", "gelu", "swiglu"]
Norm = Literal["layer", "rms"]

BUCKETS = 32  # of distances, for relative positions


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
        (Vaswani et al. 2017); "rotary", which turns queries and keys (Su et al. 2021); "alibi",
        which lowers the score of a key by its distance (Press et al. 2022); or "relative", a
        learned number for each head and bucket of distances (Raffel et al. 2020, T5).
    tied_head: the head uses the token embedding's weight.
    mlp_ratio: width of the hidden layer of each block as a multiple of n_embd.
    activation: "gelu_tanh" (GPT-2), the exact "gelu" (nanoGPT), or "swiglu", whose hidden layer
        is gated by a second one of the same width (Shazeer 2020).
    n_kv_head: heads of keys and values, each shared by n_head / n_kv_head heads of queries
        (grouped-query attention, Ainslie et al. 2023); None: as many as n_head.
    norm: "layer" or "rms" (Zhang, Sennrich 2019).
    norm_eps: added to the variance in norms. dtype: of the parameters.

    Llama's architecture (Touvron et al. 2023) is norm="rms", activation="swiglu",
    positions="rotary", bias=False, tied_head=False.

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
    n_kv_head: int | None = None
    norm: Norm = "layer"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"GPTConfig: {name} must be an integer >= 1, got {value!r}")
        if self.n_kv_head is not None and (
            type(self.n_kv_head) is not int or self.n_kv_head < 1 or self.n_head % self.n_kv_head
        ):
            raise ValueError(
                f"GPTConfig: n_kv_head must be a divisor of n_head {self.n_head} or None, got "
                f"{self.n_kv_head!r}"
            )
        for name, kind in (("positions", Positions), ("activation", Activation), ("norm", Norm)):
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ValueError(
                    f"GPTConfig: {name} must be one of {allowed}, got {getattr(self, name)!r}"
                )
        require_flags(self)
        if self.final_norm not in (True, False, None):
            raise ValueError(f"GPTConfig: final_norm must be a bool or None, got {self.final_norm}")
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
    def kv_heads(self) -> int:
        """The number of heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def qkv_size(self) -> int:
        """The features that queries, keys and values of a token have together."""
        return (self.n_head + 2 * self.kv_heads) * self.head_size

    @property
    def mlp_matrices(self) -> int:
        """The number of n_embd x hidden_size matrices in a block: 3 where one is a gate."""
        return 3 if self.activation == "swiglu" else 2

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
    c, hidden, qkv = config.n_embd, config.hidden_size, config.qkv_size
    norm = c * (1 + (config.bias and config.norm == "layer"))
    block = c * qkv + c * c + config.mlp_matrices * c * hidden + 2 * norm
    if config.bias:
        block += qkv + c + (config.mlp_matrices - 1) * hidden + c
    return (
        config.vocab_size * c * (1 if config.tied_head else 2)
        + config.block_size * c * (config.positions == "learned")
        + BUCKETS * config.n_head * (config.positions == "relative")
        + config.n_layer * block
        + norm * config.has_final_norm
    )


def flops_per_token(config: GPTConfig, length: int | None = None) -> int:
    """Return the floating-point operations of forward and backward, per token of a sequence.

    6 per weight that is multiplied (no vectors or numbers that are looked up: positions, the
    tokens of an untied embedding)
    and 12 n_layer n_embd length for attention as if it were not causal: the convention of
    Chowdhery et al., "PaLM" (2022), appendix B. ``length`` is block_size by default.
    """
    looked_up = config.block_size * (config.positions == "learned")
    looked_up += config.vocab_size * (not config.tied_head)
    multiplied = parameter_count(config) - looked_up * config.n_embd
    multiplied -= BUCKETS * config.n_head * (config.positions == "relative")
    length = config.block_size if length is None else length
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * length
