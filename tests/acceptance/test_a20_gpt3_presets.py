"""A20: GPT-3's table of shapes, with the nearest heads that divide where the published do not."""

from __future__ import annotations

import pytest

from gpugrad.models import PRESETS, GPTConfig, nearest_heads, parameter_count

ROWS = {  # layers, d_model, published heads, learning rate, parameters in millions
    "gpt3-small": (12, 768, 12, 6e-4, 125.2),
    "gpt3-medium": (24, 1024, 16, 3e-4, 355.9),
    "gpt3-large": (24, 1536, 16, 2.5e-4, 760.3),
    "gpt3-xl": (24, 2048, 24, 2e-4, 1315.7),
    "gpt3-2.7b": (32, 2560, 32, 1.6e-4, 2651.6),
    "gpt3-6.7b": (32, 4096, 32, 1.2e-4, 6658.4),
    "gpt3-13b": (40, 5140, 40, 1e-4, 12952.9),
    "gpt3-175b": (96, 12288, 96, 0.6e-4, 174604.3),
}


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "learning_rate", "millions"),
    [(name, *row) for name, row in ROWS.items()],
    ids=ROWS,
)
def test_a20_gpt3_presets(name, layers, width, heads, learning_rate, millions) -> None:
    config, rate, note = PRESETS[name]
    assert (config.n_layer, config.n_embd, rate) == (layers, width, learning_rate)
    assert round(parameter_count(config) / 1e6, 1) == millions
    if width % heads == 0:
        assert config.n_head == heads
        assert not note
    else:
        assert config.n_head == nearest_heads(width, heads)
        assert f"published with {heads} heads" in note
        with pytest.raises(ValueError, match=f"n_embd {width} does not divide into n_head {heads}"):
            GPTConfig(n_layer=layers, n_embd=width, n_head=heads)


def test_a20_only_xl_and_13b_differ_from_publication() -> None:
    assert [name for name in ROWS if PRESETS[name].note] == ["gpt3-xl", "gpt3-13b"]
