"""NGram: a language model that counts, the baseline every trained one should beat.

    model = NGram(NGramConfig(vocab_size=256, order=5)).fit(train)
    model.loss(held_out), model.perplexity(held_out)    # nats per token, exp of it
    model.generate([104, 105], 100)

The probability of the token w behind the m - 1 tokens h is, with n(h w) counts, n(h) their sum over
w, t(h) the number of different w behind h, and p(w | h') the same for h without its first token

    add-k         (n(h w) + k) / (n(h) + k V)
    witten-bell   (n(h w) + t(h) p(w | h')) / (n(h) + t(h))
    kneser-ney    (max(n(h w) - D, 0) + D t(h) p(w | h')) / n(h)

down to p = 1/V. Kneser-Ney's shorter contexts do not count how often h w occurs but behind how many
different tokens, and D = n1 / (n1 + 2 n2) of each length, n1 and n2 being how many of its sequences
have count 1 and 2 (1/2 where there are none). Witten, Bell, "The zero-frequency problem" (1991);
Kneser, Ney, "Improved backing-off for m-gram language modeling" (1995), interpolated as in Chen,
Goodman, "An empirical study of smoothing techniques for language modeling" (1999).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from .. import backend
from ..ops import asarray
from ..registry import describe
from ..tensor import Tensor
from ..text.counts import Ids, Level, NGramCounts, checked_tokens
from . import decoding
from ._checks import require, require_sizes
from ._files import Saved
from .scoring import perplexity

Smoothing = Literal["add-k", "witten-bell", "kneser-ney"]
Probabilities = npt.NDArray[np.float64]
Self = TypeVar("Self", bound="NGram")


@dataclass(frozen=True)
class NGramConfig:
    """What an n-gram model counts, and how it shares probability with what it never saw.

    vocab_size: number of token ids. order: n, the context being the n - 1 tokens before.
    smoothing: "add-k", "witten-bell" or "kneser-ney". k: what add-k adds to every count.

    Raises ValueError naming the field.
    """

    vocab_size: int
    order: int = 5
    smoothing: Smoothing = "kneser-ney"
    k: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "order")
        known = get_args(Smoothing)
        message = f"smoothing must be one of {', '.join(known)}, got {self.smoothing!r}"
        require("NGramConfig", self.smoothing in known, message)
        require("NGramConfig", 0 < self.k < math.inf, f"k must be > 0, got {self.k!r}")


class _Weights(NamedTuple):
    """One length of sequences as smoothing sees it: per sequence, per context, the discount."""

    of_gram: Probabilities
    total: Probabilities
    types: Probabilities
    discount: float


class NGram(Saved):
    """An n-gram language model; see the module for the formulas. ``fit`` before use."""

    Config = NGramConfig
    generate = decoding.generate

    def __init__(self, config: NGramConfig) -> None:
        self.config = config
        self._counts: NGramCounts | None = None
        self._weights: list[_Weights] = []

    def fit(self: Self, tokens: npt.NDArray[np.integer]) -> Self:
        """Count 1-D tokens, at least ``order`` of them, in place of what was counted before."""
        config = self.config
        self._take(NGramCounts(tokens, config.vocab_size, config.order, "NGram.fit"))
        return self

    def smoothed(self, smoothing: Smoothing, k: float = 1.0) -> NGram:
        """Return a model with the same counts and another smoothing."""
        model = NGram(replace(self.config, smoothing=smoothing, k=k))
        model._take(self.counts)
        return model

    @property
    def counts(self) -> NGramCounts:
        """What was counted; RuntimeError before fit."""
        if self._counts is None:
            raise RuntimeError("NGram: nothing is counted yet; call fit(tokens) first")
        return self._counts

    def _take(self, counts: NGramCounts) -> None:
        self._counts, self._weights = counts, []
        for m, level in enumerate(counts.levels, start=1):
            chosen = level.counts
            if self.config.smoothing == "kneser-ney" and level.preceded is not None:
                chosen = level.preceded
            once, twice = int((chosen == 1).sum()), int((chosen == 2).sum())
            self._weights.append(
                _Weights(
                    chosen.astype(np.float64),
                    counts.followed(m, chosen),
                    counts.followed(m, chosen > 0),
                    once / (once + 2 * twice) if once and twice else 0.5,
                )
            )

    def _smooth(self, m: int, shorter: Probabilities, prefix: Ids, found: Ids) -> Probabilities:
        """Return p(w | m - 1 tokens) from that of one token less; numbers as in NGramCounts."""
        weights, config = self._weights[m - 1], self.config
        seen = np.where(found >= 0, weights.of_gram[found], 0)
        total = np.where(prefix >= 0, weights.total[prefix], 0)
        types = np.where(prefix >= 0, weights.types[prefix], 0)
        if config.smoothing == "add-k":
            return (seen + config.k) / (total + config.k * config.vocab_size)
        if config.smoothing == "witten-bell":
            return (seen + types * shorter) / np.maximum(total + types, 1) + shorter * (types == 0)
        kept = np.maximum(seen - weights.discount, 0) + weights.discount * types * shorter
        return kept / np.maximum(total, 1) + shorter * (types == 0)

    def token_losses(self, tokens: npt.NDArray[np.integer]) -> Probabilities:
        """Return -log p of each token but the first, in nats: (T - 1,) for 1-D tokens (T,)."""
        counts, size = self.counts, self.config.vocab_size
        text = checked_tokens(tokens, size, "NGram", "tokens", 2)
        number = np.zeros(len(text), np.int64)
        p = np.full(len(text), 1 / size)
        for m in range(1, min(self.config.order, len(text)) + 1):
            prefix = number[: len(text) - m + 1]
            number = counts.find(prefix, text[m - 1 :], m)
            p[m - 1 :] = self._smooth(m, p[m - 1 :], prefix, number)
        return -np.log(p[1:])

    def loss(self, tokens: npt.NDArray[np.integer]) -> float:
        """Return the mean of -log p over the tokens but the first, in nats per token."""
        return float(self.token_losses(tokens).mean())

    def perplexity(self, tokens: npt.NDArray[np.integer]) -> float:
        """Return exp(loss): the number of equally likely tokens that would be as hard to guess."""
        return perplexity(self.loss(tokens))

    def probabilities(self, ids: Any) -> Probabilities:
        """Return the probability of each token behind the last of ids (B, T): (B, V)."""
        ids = asarray(ids)
        if ids.ndim != 2 or not ids.shape[1] or ids.dtype.kind not in "iu":
            raise ValueError(
                f"NGram: ids must be integers of shape (B, T) with T >= 1, got {describe(ids)}"
            )
        context = backend.to_numpy(ids._data)
        checked_tokens(context.reshape(-1), self.config.vocab_size, "NGram", "ids", 0)
        length = context.shape[1]
        every = np.arange(self.config.vocab_size)
        p = np.full((len(context), len(every)), 1 / len(every))
        for m in range(1, min(self.config.order, length + 1) + 1):
            prefix = self.counts.find_all(context[:, length - m + 1 :])[:, None]
            p = self._smooth(m, p, prefix, self.counts.find(prefix, every, m))
        return p

    @property
    def block_size(self) -> int:
        """How many tokens it looks back, at least 1."""
        return max(self.config.order - 1, 1)

    def next_logits(self, ids: Any, cache: None = None) -> Tensor:
        """Return the logarithms of the probabilities of what follows ids (B, T): (B, V)."""
        return Tensor(np.log(self.probabilities(ids)))

    def new_cache(self) -> None:
        """Return None: a look-up has nothing to keep."""

    def state_dict(self) -> dict[str, Ids]:
        """Return the counts as arrays."""
        return {
            f"levels.{m}.{name}": value
            for m, level in enumerate(self.counts.levels)
            for name, value in level._asdict().items()
            if value is not None
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over counts; ValueError where they are those of another order."""
        counts: NGramCounts = object.__new__(NGramCounts)
        counts.vocab_size, counts.order = self.config.vocab_size, self.config.order
        names = [
            [f"levels.{m}.{name}" for name in Level._fields[: 2 + (m < counts.order - 1)]]
            for m in range(counts.order)
        ]
        expected = {name for level in names for name in level}
        if set(state_dict) != expected:
            raise ValueError(
                f"NGram.load_state_dict: order {counts.order} needs the arrays "
                f"{', '.join(sorted(expected))}, got {', '.join(sorted(state_dict))}"
            )
        counts.levels = [
            Level(*(np.asarray(state_dict[n], np.int64) for n in level), *[None] * (3 - len(level)))
            for level in names
        ]
        counts.check("NGram.load_state_dict")
        self._take(counts)

    def __repr__(self) -> str:
        known = [len(level.codes) for level in self._counts.levels] if self._counts else []
        return f"NGram({self.config}, {sum(known):,} sequences counted)"
