"""Optimisers with PyTorch's names and arguments, clipping, loss scaling, schedules."""

from __future__ import annotations

from ..boundary import name_all
from . import schedule
from .adam import Adam, AdamW
from .clip import clip_grad_norm_
from .groups import decay_groups, discriminative_groups, layer_scales
from .optimizer import Optimizer
from .scaler import LossScaler
from .schedule import LRScheduler
from .sgd import SGD
from .spike_guard import SpikeGuard

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "LRScheduler",
    "LossScaler",
    "Optimizer",
    "SpikeGuard",
    "clip_grad_norm_",
    "decay_groups",
    "discriminative_groups",
    "layer_scales",
    "schedule",
]

name_all(globals(), "gpugrad.optim.")
name_all(vars(schedule), "gpugrad.optim.")
