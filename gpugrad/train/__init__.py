"""Training: settings, data, the loop, checkpoints, and a whole run in a folder.

config = resolve({"preset": "tiny", "data": "input.txt", "out": "runs/mine"})
with begin(config) as run:
    run.train()
model, tokenizer = load_model("runs/mine")
"""

from __future__ import annotations

from .config import TrainConfig, resolve
from .loop import DivergedError, Trainer
from .sampling import load_model, sample_text
from .session import Session, begin, go_on

__all__ = [
    "DivergedError",
    "Session",
    "TrainConfig",
    "Trainer",
    "begin",
    "go_on",
    "load_model",
    "resolve",
    "sample_text",
]
