"""A small GPT trained on Python source: the same run whatever the device, dtype or library."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from training import Run

import gpugrad as gg
from gpugrad.models import GPT, GPTConfig
from gpugrad.optim import AdamW, decay_groups
from gpugrad.text import RandomWindows


def batches(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the inputs and targets of every step, int64 of shape (batch, block)."""
    tokens = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8)
    windows = RandomWindows(tokens, run.block, run.batch, run.seed)
    return (next(windows) for _ in range(run.steps))


def build(run: Run, dtype: str = "float32", device: str = "cpu") -> GPT:
    """Return the model with the initial weights of this seed, equal on every device."""
    gg.manual_seed(run.seed)
    config = GPTConfig(
        vocab_size=run.vocabulary,
        block_size=run.block,
        n_layer=run.layers,
        n_head=run.heads,
        n_embd=run.width,
        dtype=dtype,
    )
    return GPT(config, device)


@dataclass(frozen=True)
class Outcome:
    """The loss before each step, and the seconds each took."""

    losses: Sequence[float]
    seconds: Sequence[float]


def train(run: Run, model: GPT) -> Outcome:
    """Train the model in place and return the losses."""
    optimizer = AdamW(
        decay_groups(model, run.weight_decay), lr=run.lr, betas=run.betas, eps=run.eps
    )
    losses, seconds = [], []
    for x, y in batches(run):
        start = time.perf_counter()
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gg.synchronize()
        seconds.append(time.perf_counter() - start)
    return Outcome(losses, seconds)
