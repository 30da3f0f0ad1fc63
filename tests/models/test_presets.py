from __future__ import annotations

import pytest

from gpugrad.models import GPT, PRESETS, parameter_count, preset


def test_nanogpt_cpu_is_the_issues_model() -> None:
    config = preset("nanogpt-cpu")
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (4, 4, 128, 64)
    assert (config.dropout, config.bias, config.activation) == (0.0, False, "gelu")
    assert PRESETS["nanogpt-cpu"].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("name", "millions"), [("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6)]
)
def test_gpt2_family(name, millions) -> None:
    assert parameter_count(preset(name)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", ["tiny", "nanogpt-cpu"])
def test_small_presets_can_be_made(name) -> None:
    model = GPT(preset(name))
    assert sum(p.size for p in model.parameters()) == parameter_count(model.config)


def test_fields_can_be_changed_and_are_checked() -> None:
    assert preset("gpt2", vocab_size=50304).vocab_size == 50304
    with pytest.raises(ValueError, match="does not divide"):
        preset("gpt2", n_head=7)
    with pytest.raises(ValueError, match="preset 'gpt5' is none of tiny, nanogpt-cpu"):
        preset("gpt5")
