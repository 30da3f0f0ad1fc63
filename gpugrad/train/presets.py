"""Named configurations: for each, only what differs from the defaults, and why."""

from __future__ import annotations

from typing import Any

from ..models import GPTConfig, preset

# The fields that a run's settings share with a model's, under the same names.
SHAPE = (
    "n_layer",
    "n_head",
    "n_kv_head",
    "n_embd",
    "block_size",
    "bias",
    "dropout",
    "norm_first",
    "positions",
    "tied_head",
    "activation",
    "mlp_ratio",
    "norm",
)


def shape_settings(config: GPTConfig) -> dict[str, Any]:
    """Return the settings of a run that stand for a model's shape."""
    shape = {field: getattr(config, field) for field in SHAPE}
    return {**shape, "n_kv_head": config.n_kv_head or 0}


def _shape(name: str) -> dict[str, Any]:
    return shape_settings(preset(name))


def _gpt2(name: str, lr: float) -> dict[str, Any]:
    """Return GPT-2's shape, trained as Brown et al. (2020) trained GPT-3: about half a million
    tokens per step, a cosine down to a tenth, no dropout.
    """
    return {
        **_shape(name),
        "tokenizer": "bpe",
        "vocab_size": 50257,
        "max_chars": 0,
        "train_fraction": 0.99,
        "batch_size": 8,
        "accumulate": 60,
        "max_steps": 600_000,
        "warmup_steps": 2000,
        "lr": lr,
        "min_lr": lr / 10,
        "beta2": 0.95,
        "eval_interval": 1000,
        "eval_windows": 512,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # Two to three minutes on one CPU core, with the text every Python brings along. For the same
    # time, short windows and many steps learn more than long windows, rotary positions more than
    # learned ones.
    "default": {},
    # Seconds: to see that everything works.
    "tiny": {
        **_shape("tiny"),
        "max_chars": 200_000,
        "batch_size": 8,
        "max_steps": 1000,
        "warmup_steps": 50,
        "lr": 5e-3,
        "min_lr": 5e-4,
        "eval_interval": 200,
        "eval_windows": 64,
    },
    # The CPU configuration of nanoGPT's README, for its character-level Shakespeare; evaluated, as
    # there, on 20 batches of 12 windows.
    "nanogpt-cpu": {
        **_shape("nanogpt-cpu"),
        "tokenizer": "char",
        "max_chars": 0,
        "batch_size": 12,
        "max_steps": 2000,
        "warmup_steps": 100,
        "lr": 1e-3,
        "min_lr": 1e-4,
        "beta2": 0.99,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "eval_interval": 250,
        "eval_windows": 240,
    },
    # The same budget as nanogpt-cpu, with the parts of Llama: see which learns more.
    "llama-cpu": {
        **_shape("llama-cpu"),
        "batch_size": 12,
        "max_steps": 2500,
        "warmup_steps": 100,
        "lr": 3e-3,
        "min_lr": 3e-4,
        "beta2": 0.95,
    },
    "gpt2": _gpt2("gpt2", 6e-4),
    "gpt2-124m": _gpt2("gpt2", 6e-4),  # the same, by its size
    "gpt2-medium": _gpt2("gpt2-medium", 3e-4),
    "gpt2-large": _gpt2("gpt2-large", 2.5e-4),
    "gpt2-xl": _gpt2("gpt2-xl", 2e-4),
}
