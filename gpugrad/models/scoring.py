"""How likely a language model finds a given text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import backend
from ..engine import no_grad
from ..nn.module import evaluating
from ..tensor import Tensor
from .sampler import log_softmax
from .texts import LanguageModel, Texts, as_prompt

TOGETHER = 1 << 11  # tokens in the windows of one call: more of them are hardly faster


def perplexity(loss: float) -> float:
    """Return exp(loss) for a loss in nats per token: inf where float64 holds no such number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class LogProbability:
    """Log-probabilities of a text's tokens, each given all before it: float64 (N,), in nats."""

    tokens: npt.NDArray[np.float64]

    @property
    def total(self) -> float:
        """The log-probability of the text: their sum."""
        return float(self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp(-total / N): how many equally likely tokens would be as hard to guess."""
        return perplexity(-self.total / len(self.tokens))

    def bits_per(self, count: int) -> float:
        """Return -total / (count ln 2): bits per character, for the number of characters."""
        if count < 1:
            raise ValueError(f"LogProbability.bits_per: count must be at least 1, got {count}")
        return -self.total / (count * math.log(2))


def log_probability(
    model: LanguageModel, ids: Any, prompt: Any = None, *, use_cache: bool = True
) -> LogProbability:
    """Return the log-probability of the text ids (N,) after ``prompt`` (T,).

    Without a prompt the first id is given and the others count: N - 1 of them. The probabilities
    are those that decoding at temperature 1 draws from; of a text longer than block_size a token
    has the block_size tokens before it as context. The model works in eval mode, recording
    nothing. Raises ValueError for ids that are empty, none to count, or no integers, IndexError
    for ids that the model does not know.
    """
    text = as_prompt("log_probability", ids, None)
    given = text[:1] if prompt is None else as_prompt("log_probability", prompt, None)
    if text.ndim != 1 or given.ndim != 1:
        raise ValueError(
            f"log_probability: ids and prompt must be one sequence (T,) each, got shapes "
            f"{text.shape} and {given.shape}"
        )
    counted = text[1:] if prompt is None else text
    if not counted.size:
        raise ValueError(
            "log_probability: a single id and no prompt: there is nothing it could follow from"
        )
    whole = np.concatenate([given, counted])
    rows = []
    known = len(given)  # tokens up to here have their logits
    if hasattr(model, "sequence_logits") and known <= model.block_size:
        window = whole[: model.block_size]
        with no_grad(), evaluating():
            logits = backend.to_numpy(model.sequence_logits(Tensor(window[None]))._data)[0]
        rows.append(logits[known - 1 : len(whole) - 1])
        known += len(rows[0])
    if known < len(whole):
        texts = Texts(model, [whole[:known]], use_cache)
        while known < len(whole):
            rows.append(texts.next_logits())
            texts.append(whole[known : known + 1])
            known += 1
            if known > model.block_size:  # each of the others has a window of its own
                break
        rows += _of_windows(model, whole, known)
    log_p = log_softmax(np.concatenate(rows))
    if (counted < 0).any() or (counted >= log_p.shape[1]).any():
        raise IndexError(
            f"log_probability: ids {counted.min()} to {counted.max()}, but the vocabulary has "
            f"{log_p.shape[1]}"
        )
    return LogProbability(log_p[np.arange(len(counted)), counted])


def _of_windows(
    model: LanguageModel, ids: npt.NDArray[np.int64], start: int
) -> Iterator[npt.NDArray[Any]]:
    """Yield the logits of ids[start:], (B, V), each from the block_size ids before it."""
    if start == len(ids):
        return
    length = model.block_size
    windows = np.lib.stride_tricks.sliding_window_view(ids, length)[start - length : -1]
    step = max(1, TOGETHER // length)
    for first in range(0, len(windows), step):
        with no_grad(), evaluating():
            logits = model.next_logits(Tensor(windows[first : first + step].copy()))
        yield backend.to_numpy(logits._data)
