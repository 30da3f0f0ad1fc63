"""Published GPT shapes by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from .config import GPTConfig


class Preset(NamedTuple):
    """A shape, the learning rate published with it if any, and what differs from publication."""

    config: GPTConfig
    learning_rate: float | None = None
    note: str = ""


def _gpt3(n_layer: int, n_embd: int, n_head: int, learning_rate: float, note: str = "") -> Preset:
    config = GPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=2048)
    return Preset(config, learning_rate, note)


# Radford et al. 2018 and 2019 (GPT-1, GPT-2); Brown et al. 2020, table 2.1 (GPT-3)
PRESETS: dict[str, Preset] = {
    "tiny": Preset(GPTConfig(vocab_size=256, block_size=32, n_layer=2, n_head=2, n_embd=32)),
    "nanogpt-cpu": Preset(
        GPTConfig(
            vocab_size=65,
            block_size=64,
            n_layer=4,
            n_head=4,
            n_embd=128,
            bias=False,
            activation="gelu",
        ),
        1e-3,
        "nanoGPT's character-level model for a CPU; vocab_size is that of tiny Shakespeare",
    ),
    "llama-cpu": Preset(
        GPTConfig(
            vocab_size=256,
            block_size=64,
            n_layer=4,
            n_head=4,
            n_kv_head=2,
            n_embd=128,
            bias=False,
            positions="rotary",
            activation="swiglu",
            mlp_ratio=2.6875,
            norm="rms",
        ),
        None,
        "the architecture of Llama 2 (Touvron et al. 2023), with a tied head, for a CPU; the gated "
        "hidden layer is 8/3 as wide as the stream, to a multiple of 8",
    ),
    "gpt1": Preset(GPTConfig(vocab_size=40478, block_size=512, norm_first=False), 2.5e-4),
    "gpt2": Preset(GPTConfig()),
    "gpt2-medium": Preset(GPTConfig(n_layer=24, n_head=16, n_embd=1024)),
    "gpt2-large": Preset(GPTConfig(n_layer=36, n_head=20, n_embd=1280)),
    "gpt2-xl": Preset(GPTConfig(n_layer=48, n_head=25, n_embd=1600)),
    "gpt3-small": _gpt3(12, 768, 12, 6e-4),
    "gpt3-medium": _gpt3(24, 1024, 16, 3e-4),
    "gpt3-large": _gpt3(24, 1536, 16, 2.5e-4),
    "gpt3-xl": _gpt3(
        24,
        2048,
        16,
        2e-4,
        "published with 24 heads, which do not divide 2048; 16 are the nearest that do and give "
        "the published head size of 128",
    ),
    "gpt3-2.7b": _gpt3(32, 2560, 32, 1.6e-4),
    "gpt3-6.7b": _gpt3(32, 4096, 32, 1.2e-4),
    "gpt3-13b": _gpt3(
        40,
        5140,
        20,
        1e-4,
        "published with 40 heads, which do not divide 5140; 20 are the nearest that do",
    ),
    "gpt3-175b": _gpt3(96, 12288, 96, 0.6e-4),
}


def preset(name: str, **changes: Any) -> GPTConfig:
    """Return the shape of this name, with some fields changed.

    Raises ValueError for an unknown name, listing those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is none of {', '.join(PRESETS)}")
    return replace(PRESETS[name].config, **changes)
