"""Text from a model in training, or from the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..generate import beam_search, stream
from ..models import GPT
from ..nn import lora
from ..nn.utils import skip_init
from ..text import StreamDecoder, Tokenizer, load_tokenizer, until
from . import checkpoint
from .config import TrainConfig, resumed
from .folder import RunFolder
from .loop import find_device
from .model import make_model


class LoadedRun(NamedTuple):
    """A trained model with its tokenizer, its settings, and the updates it has seen."""

    model: GPT
    tokenizer: Tokenizer
    config: TrainConfig
    step: int


def load_run(path: str | os.PathLike[str], device: str = "auto", best: bool = False) -> LoadedRun:
    """Return what the newest or the best checkpoint of a run holds, with adapters merged.

    Raises FileNotFoundError when there is no run or checkpoint, ValueError when one is damaged.
    """
    folder = RunFolder(path)
    config = resumed(folder.read_config(), {})
    tokenizer = load_tokenizer(folder.tokenizer)
    found = _best(folder) if best else folder.latest()
    shape = config.model(tokenizer.vocab_size)
    model = skip_init(make_model, config, shape, find_device(device))
    model.load_state_dict(found.state["model"])
    if lora.layers(model):
        lora.remove(lora.merge(model))
    model.requires_grad_()
    return LoadedRun(model, tokenizer, config, found.step)


def _best(folder: RunFolder) -> checkpoint.Checkpoint:
    """Return the best checkpoint, also of a run that goes on training meanwhile."""
    while True:
        newest = folder.latest()
        step = newest.state["patience"]["best_step"]
        if step == newest.step:
            return newest
        path = folder.checkpoints / f"step-{step:08d}"
        try:
            return checkpoint.read(path)
        except checkpoint.CheckpointError:
            if path.exists() or checkpoint.steps(folder.checkpoints)[-1] <= newest.step:
                raise  # else there is a better one by now, and this one was removed


def load_model(
    path: str | os.PathLike[str], device: str = "auto", best: bool = False
) -> tuple[GPT, Tokenizer]:
    """Return the model and the tokenizer of a run: see `load_run`.

    The model is in training mode: call ``.eval()`` before its layers if they have dropout.
    Sampling and scoring do so by themselves.
    """
    return load_run(path, device, best)[:2]


def opening(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return ids to begin a text with: a newline, or the first id where there is no newline."""
    try:
        ids = tokenizer.encode("\n")
    except ValueError:  # a vocabulary of characters has those of its text only
        ids = np.empty(0, np.int64)
    return ids if len(ids) else np.zeros(1, np.int64)  # words have no white space


def sample_text(
    model: GPT,
    tokenizer: Tokenizer,
    ids: npt.NDArray[np.int64],
    count: int,
    *,
    stop: Sequence[str] = (),
    **settings: Any,
) -> Iterator[str]:
    """Return the pieces of what the model writes after `ids`, each when it is ready.

    It ends before the first of the texts `stop`, however they are cut into tokens. The other
    settings are those of `generate.stream`. All are checked at once.
    """
    new = stream(model, ids, count, **settings)
    return until(_decoded(new, StreamDecoder(tokenizer, after=ids)), stop)


def beam_text(
    model: GPT,
    tokenizer: Tokenizer,
    ids: npt.NDArray[np.int64],
    count: int,
    *,
    stop: Sequence[str] = (),
    **settings: Any,
) -> str:
    """Return the best continuation of `ids` that beam search finds, up to one of the texts `stop`.

    Here these end a text as they are encoded. The other settings are those of
    `generate.beam_search`.
    """
    ends = [tokenizer.encode(text).tolist() for text in stop]
    best = beam_search(model, ids, count, stop=ends, **settings)[0]
    decoder = StreamDecoder(tokenizer, after=ids)
    return "".join(until([decoder.feed(best.ids[len(ids) :]), decoder.finish()], stop))


def _decoded(ids: Iterator[int], decoder: StreamDecoder) -> Iterator[str]:
    for id in ids:
        yield decoder.feed([id])
    yield decoder.finish()
