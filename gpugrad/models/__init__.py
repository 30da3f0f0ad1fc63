"""Language models."""

from __future__ import annotations

from .cache import KVCache
from .config import GPTConfig, flops_per_token, nearest_heads, parameter_count
from .gpt import GPT
from .presets import PRESETS, Preset, preset

__all__ = [
    "GPT",
    "PRESETS",
    "GPTConfig",
    "KVCache",
    "Preset",
    "flops_per_token",
    "nearest_heads",
    "parameter_count",
    "preset",
]
