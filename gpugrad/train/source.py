"""Where fine-tuning starts: the model in the folder of a run, or in one of Hugging Face's form."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..models import GPTConfig, huggingface
from .folder import RunFolder
from .presets import SHAPE, shape_settings

# Parameters have the same names and shapes with another value of these, but mean something else.
MEANING = ("n_head", "norm_first", "norm", "positions", "activation")


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a model that save_pretrained or Hugging Face wrote."""
    return Path(path, huggingface.TENSORS).is_file()


def source_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that a run takes over from the model it starts from.

    The shape and the tokenizer, if the folder has one. Raises FileNotFoundError when the folder
    holds neither a run nor a model, ValueError for a model that no settings of a run describe.
    """
    tokenizer = RunFolder(path).tokenizer
    found: dict[str, Any] = {"tokenizer": str(tokenizer)} if tokenizer.is_file() else {}
    if is_pretrained(path):
        return found | _shape(path, huggingface.read_config(path))
    try:
        saved = RunFolder(path).read_config()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"init_from: {path} holds neither a run nor a model (config.json and "
            f"{huggingface.TENSORS})"
        ) from None
    return found | {name: saved[name] for name in SHAPE if name in saved}


def _shape(path: str | os.PathLike[str], config: GPTConfig) -> dict[str, Any]:
    known = {name: getattr(config, name) for name in (*SHAPE, "vocab_size", "dtype")}
    expressible = GPTConfig(**known)
    for field in fields(GPTConfig):
        ours, theirs = getattr(expressible, field.name), getattr(config, field.name)
        if ours != theirs and (field.name != "final_norm" or theirs != config.norm_first):
            raise ValueError(
                f"init_from: {path} has {field.name} {theirs!r}; a run of gpugrad train has "
                f"{ours!r} always"
            )
    return shape_settings(config)
