"""A small GPT trained on Python source: the same run whatever the device, dtype or library."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.models import GPT, GPTConfig
from gpugrad.optim import AdamW, decay_groups
from gpugrad.text import RandomWindows

VOCABULARY = 256  # bytes


@dataclass(frozen=True)
class Run:
    """Sizes and settings. GPT-2's architecture on bytes, without dropout."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    block: int = 64
    batch: int = 12
    steps: int = 50
    vocabulary: int = VOCABULARY
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    seed: int = 1337

    def settings(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the inputs and targets of every step, int64 of shape (batch, block)."""
        tokens = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8)
        windows = RandomWindows(tokens, self.block, self.batch, self.seed)
        return (next(windows) for _ in range(self.steps))

    def model(self, dtype: str = "float32", device: str = "cpu") -> GPT:
        """Return the model with the initial weights of this seed, equal on every device."""
        gg.manual_seed(self.seed)
        config = GPTConfig(
            vocab_size=self.vocabulary,
            block_size=self.block,
            n_layer=self.layers,
            n_head=self.heads,
            n_embd=self.width,
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
    for x, y in run.batches():
        start = time.perf_counter()
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gg.synchronize()
        seconds.append(time.perf_counter() - start)
    return Outcome(losses, seconds)
