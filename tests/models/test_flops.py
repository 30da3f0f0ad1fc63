"""Operations per token against counts by hand, and against what a recorded step launches."""

from __future__ import annotations

import pytest

from gpugrad import backend, ops
from gpugrad.cuda import recording
from gpugrad.models import GPT, GPTConfig
from gpugrad.models.flops import arithmetic

GPT2 = GPTConfig(vocab_size=50304)
KINDS = ("none", "attention", "block")


def test_gpt2_by_hand():
    """124M: 12 layers of 12 C^2 weights and a head of 50304 C; a token sees 512.5 keys."""
    found = arithmetic(GPT2)
    assert found.products == 6 * (12 * 12 * 768**2 + 50304 * 768)
    assert found.attention == 12 * 7 * 768 * 1025
    assert round(found.products / 1e6) == 741
    assert round(found.attention / 1e6) == 66
    assert found.total == found.products + found.attention
    assert (found.backward_products, found.backward_attention) == (
        2 * found.forward_products,
        5 * found.forward_attention // 2,
    )


def test_a_head_of_its_own_multiplies_as_much_as_a_tied_one():
    assert arithmetic(GPT2) == arithmetic(GPTConfig(vocab_size=50304, tied_head=False))


def test_shorter_sequences_have_less_attention():
    short = arithmetic(GPT2, 63)
    assert short.products == arithmetic(GPT2).products
    assert short.attention == 12 * 7 * 768 * 64


def test_what_is_computed_again():
    plain, attention, block = (arithmetic(GPT2, None, kind) for kind in KINDS)
    assert plain[0] == attention[0] == block[0]
    assert attention.products - plain.products == 12 * 2 * 3 * 768**2  # not out_proj
    assert block.products - plain.products == 12 * 2 * (12 - 4) * 768**2  # not the MLP's last
    for again in (attention, block):
        assert again.attention - plain.attention == plain.forward_attention


def test_what_cannot_be_computed_again_is_told():
    with pytest.raises(ValueError, match="none, attention or block, got 'mlp'"):
        arithmetic(GPT2, None, "mlp")


@pytest.mark.parametrize("recompute", KINDS)
@pytest.mark.parametrize("head_chunk", [None, 32])
def test_a_recorded_step_multiplies_as_much(recompute, head_chunk):
    config = GPTConfig(
        vocab_size=96, block_size=16, n_layer=2, n_head=2, n_embd=32, dtype="bfloat16"
    )
    model = GPT(config, "meta")
    trace = recording.Trace(90)
    with recording.recording(trace):
        x, y = (ops.asarray(trace.input((4, 16), backend.int64)) for _ in range(2))
        model.loss(x, y, recompute=recompute, head_chunk=head_chunk).backward()
        trace.drop_unread([p.grad.data.settle() for p in model.parameters()])
    launched = sum(launch.flops for launch in trace.launches)
    assert launched == arithmetic(config, None, recompute).products * 4 * 16
