from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from gpugrad.models import GPTConfig, flops_per_token, nearest_heads, parameter_count, preset


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
        ({"block_size": -1}, "block_size must be an integer >= 1, got -1"),
        ({"n_layer": 1.5}, "n_layer must be an integer >= 1, got 1.5"),
        ({"n_layer": True}, "n_layer must be an integer >= 1, got True"),
        ({"n_head": 0}, "n_head must be"),
        ({"n_embd": -768}, "n_embd must be"),
        ({"n_embd": 2048, "n_head": 24}, "n_embd 2048 does not divide into n_head 24; .* is 16"),
        ({"n_embd": 5140, "n_head": 40}, "nearest number of heads that fits is 20"),
        ({"n_embd": 15, "n_head": 3, "positions": "rotary"}, "n_embd / n_head is 5, which is odd"),
        ({"n_embd": 15, "n_head": 3, "positions": "sinusoidal"}, "n_embd is 15, which is odd"),
        ({"positions": "absolute"}, "positions must be one of learned, sinusoidal, rotary"),
        ({"activation": "relu"}, "activation must be one of gelu_tanh, gelu, swiglu, got 'relu'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "dropout must lie in"),
        ({"mlp_ratio": 0}, "n_embd times mlp_ratio must be an integer >= 1, got 0"),
        ({"mlp_ratio": 0.3}, "n_embd times mlp_ratio must be an integer"),
        ({"mlp_ratio": math.inf}, "n_embd times mlp_ratio must be an integer"),
        ({"norm_eps": 0.0}, "norm_eps must be > 0, got 0.0"),
        ({"dtype": "int32"}, "dtype must be floating, got 'int32'"),
    ],
    ids=str,
)
def test_refuses_impossible_shapes(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


def test_impossible_shapes_are_refused_before_memory_is_taken() -> None:
    """A petabyte of parameters: the validator and the count answer at once."""
    huge = {"n_embd": 10**6, "n_layer": 1000, "vocab_size": 10**6}
    assert parameter_count(GPTConfig(n_head=1000, **huge)) > 10**16
    with pytest.raises(ValueError, match="does not divide"):
        GPTConfig(n_head=1001, **huge)


def test_a_ratio_that_is_no_exact_binary_fraction() -> None:
    assert GPTConfig(n_embd=768, mlp_ratio=3073 / 768).hidden_size == 3073
    assert GPTConfig(n_embd=30, n_head=3, mlp_ratio=0.1).hidden_size == 3


def test_final_norm_goes_with_norm_first_unless_said() -> None:
    assert GPTConfig().has_final_norm
    assert not replace(GPTConfig(), norm_first=False).has_final_norm
    assert GPTConfig(norm_first=False, final_norm=True).has_final_norm


def test_round_trip_through_a_dict() -> None:
    config = preset("nanogpt-cpu", dropout=0.25)
    assert GPTConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("n_embd", "n_head", "expected"),
    [(2048, 24, 16), (5140, 40, 20), (768, 12, 12), (7, 3, 1), (7, 5, 7), (1, 9, 1)],
)
def test_nearest_heads(n_embd, n_head, expected) -> None:
    assert nearest_heads(n_embd, n_head) == expected


def test_flops_count_multiplied_weights_and_attention() -> None:
    config = GPTConfig(
        vocab_size=10, block_size=7, n_layer=2, n_head=1, n_embd=4, bias=False, tied_head=False
    )
    weights = 2 * (4 * 16 + 2 * 64 + 8) + 4 + 40  # blocks, final norm, head
    assert flops_per_token(config) == 6 * weights + 12 * 2 * 4 * 7
    assert flops_per_token(config, 3) == 6 * weights + 12 * 2 * 4 * 3
    tied = replace(config, tied_head=True)
    assert flops_per_token(tied) == flops_per_token(config)


def test_flops_of_gpt3_are_six_per_parameter_and_token() -> None:
    """Brown et al. 2020, table D.1: 175B parameters x 300B tokens, 3.14e23 without attention."""
    config = preset("gpt3-175b")
    total = 300e9 * flops_per_token(config, length=0)
    assert total == pytest.approx(3.14e23, rel=2e-3)
    assert total / 8.64e19 == pytest.approx(3646, rel=5e-3)
