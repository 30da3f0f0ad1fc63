"""A small text and small settings, for runs of a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpugrad.train.config import TrainConfig
from gpugrad.train.data import Data, open_data, read_corpus, store
from gpugrad.train.folder import RunFolder

TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(400))

SMALL = {
    "device": "cpu",
    "tokenizer": "char",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 4,
    "max_steps": 12,
    "warmup_steps": 2,
    "eval_interval": 4,
    "eval_windows": 10,
    "log_interval": 3,
    "sample_tokens": 20,
}


@pytest.fixture
def text(tmp_path) -> Path:
    """A text file."""
    path = tmp_path / "input.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def make_config(text, tmp_path):
    """Return settings of a small run, some of them changed."""

    def make(**settings) -> TrainConfig:
        return TrainConfig(**{**SMALL, "data": str(text), "out": str(tmp_path / "run"), **settings})

    return make


@pytest.fixture
def make_data(tmp_path):
    """Return the data of a run with such settings."""

    def make(config: TrainConfig) -> Data:
        folder = RunFolder(tmp_path / "data")
        folder.path.mkdir(exist_ok=True)
        store(read_corpus(config), folder)
        return open_data(config, folder)

    return make
