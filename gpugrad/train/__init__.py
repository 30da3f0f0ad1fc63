"""Training: settings, data, the loop, checkpoints, and a whole run in a folder.

config = resolve({"preset": "tiny", "data": "input.txt", "out": "runs/mine"})
with begin(config) as run:
    run.train()
model, tokenizer = load_model("runs/mine")

found = Search("runs/search", grid({"n_layer": [2, 3], "lr": [1e-2, 1e-3]}), {"preset": "tiny"})
found.run()
found.best, evaluate(found.best.config.out, "test", best=True)
"""

from __future__ import annotations

from .config import TrainConfig, resolve
from .evaluation import Evaluation, evaluate
from .loop import DivergedError, Trainer
from .sampling import load_model, sample_text
from .search import Search, Trial
from .session import Session, begin, go_on
from .space import Range, draw, grid
from .stopping import Patience

__all__ = [
    "DivergedError",
    "Evaluation",
    "Patience",
    "Range",
    "Search",
    "Session",
    "TrainConfig",
    "Trainer",
    "Trial",
    "begin",
    "draw",
    "evaluate",
    "go_on",
    "grid",
    "load_model",
    "resolve",
    "sample_text",
]
