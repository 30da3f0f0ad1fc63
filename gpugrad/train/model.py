"""What a run trains: a model with adapters and frozen parameters, in groups for its optimiser."""

from __future__ import annotations

from typing import Any

from ..models import GPT, GPTConfig
from ..nn import freeze, lora
from ..nn.patterns import fits
from ..optim import decay_groups, discriminative_groups, layer_scales
from .config import TrainConfig
from .patterns import factors, patterns


def make_model(config: TrainConfig, shape: GPTConfig, device: str) -> GPT:
    """Return a run's model with new weights, with adapters and frozen parameters as it says.

    Raises ValueError for a pattern that fits nothing.
    """
    model = GPT(shape, device)
    if config.lora_rank:
        targets = patterns(config.lora_targets)
        lora.adapt(model, config.lora_rank, config.lora_alpha, targets, config.lora_dropout)
    if config.freeze:
        freeze(model, *patterns(config.freeze))
    return model


def parameter_groups(model: GPT, config: TrainConfig) -> list[dict[str, Any]]:
    """Return what the optimiser trains: which parameters decay, and the factors of their rates."""
    groups = decay_groups(model, config.weight_decay)
    if not any(group["params"] for group in groups):
        raise ValueError(f"freeze {config.freeze!r} leaves no parameter to train")
    if config.layer_decay != 1:
        trained = [name for group in groups for name, _ in group["params"]]
        scales = layer_scales(model, config.layer_decay)
        used = {p: f for p, f in scales.items() if any(fits(name, p) for name in trained)}
        groups = discriminative_groups(groups, used)
    if config.lr_scales:
        groups = discriminative_groups(groups, factors(config.lr_scales))
    return groups
