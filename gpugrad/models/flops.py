"""The arithmetic of a GPT: what a training step computes, per token, from its shape alone."""

from __future__ import annotations

from typing import NamedTuple

from .config import GPTConfig

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5  # of attention: the backward pass has its scores again
PETAFLOP_DAY = 86_400 * 10**15  # operations at 1e15 a second for a day


class Arithmetic(NamedTuple):
    """Floating-point operations per token: in products with weights, and in attention.

    A product of m by k with k by n numbers is 2 m n k operations. All else, elementwise, is left
    out: it is a matter of memory, not of arithmetic.
    """

    forward_products: int
    backward_products: int
    forward_attention: int
    backward_attention: int

    @property
    def products(self) -> int:
        """Operations in products with weights, forward and backward."""
        return self.forward_products + self.backward_products

    @property
    def attention(self) -> int:
        """Operations in attention, forward and backward."""
        return self.forward_attention + self.backward_attention

    @property
    def total(self) -> int:
        """All of them."""
        return self.products + self.attention


def arithmetic(config: GPTConfig, length: int | None = None, recompute: str = "none") -> Arithmetic:
    """Return what the kernels compute per token of sequences of ``length`` (block_size).

    Products: 2 operations per weight forward and 4 backward, for the gradients of both factors; a
    tied head's weight is multiplied once, looking up vectors is no product. Attention: 2 products
    of a token with the keys it sees forward, 5 backward. Kernels skip what the causal mask hides:
    a token sees (length + 1) / 2 keys on average. What ``recompute`` ("none", "attention", "block",
    see GPT.features) has computed a second time counts as backward, without the last product of
    each part: no gradient needs its result, and a recorded step leaves it out.

    Unlike ``flops_per_token``, the convention for model FLOPs utilisation, which takes attention as
    not causal, the same for every ``recompute`` and 4 products backward.
    """
    if recompute not in ("none", "attention", "block"):
        raise ValueError(
            f"arithmetic: recompute must be none, attention or block, got {recompute!r}"
        )
    c, layers = config.n_embd, config.n_layer
    length = config.block_size if length is None else length
    down = 2 * layers * c * config.hidden_size
    attention_weights = c * (config.qkv_size + c)
    blocks = 2 * layers * attention_weights + config.mlp_matrices * down
    forward = blocks + 2 * c * config.vocab_size
    product = layers * c * (length + 1)  # 2 c operations for each of (length + 1) / 2 keys
    attention = FORWARD_PRODUCTS * product
    again = {"none": 0, "attention": 2 * layers * c * config.qkv_size, "block": blocks - down}[
        recompute
    ]
    return Arithmetic(
        forward,
        2 * forward + again,
        attention,
        BACKWARD_PRODUCTS * product + attention * (recompute != "none"),
    )


def training_flops(parameters: int, tokens: int) -> int:
    """Return 6 N D, what training N parameters on D tokens computes, by the rule of thumb.

    A weight takes part in a multiplication and an addition per token forward, and in twice as many
    backward; attention's own products are left out (Kaplan et al., "Scaling laws for neural
    language models", 2020). ``arithmetic`` counts what kernels compute. Raises ValueError for
    negative numbers.
    """
    if parameters < 0 or tokens < 0:
        raise ValueError(
            f"training_flops: {parameters} parameters and {tokens} tokens must be at least 0"
        )
    return 6 * parameters * tokens


def petaflop_days(flops: float) -> float:
    """Return operations in petaflop/s-days, of which each is 1e15 for 86,400 seconds: 8.64e19."""
    return flops / PETAFLOP_DAY
