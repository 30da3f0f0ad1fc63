"""How the next token is chosen from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ops import philox, random
from ..ops.indexing import largest

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from logits.

    greedy: take the most likely. Otherwise draw, after dividing the logits by ``temperature`` and
    keeping only the ``top_k`` most likely tokens; of these only the most likely ones that together
    reach probability ``top_p`` (Holtzman et al., "The curious case of neural text degeneration",
    ICLR 2020); of these only those at least ``min_p`` times as likely as the most likely one
    (Nguyen et al., "Turning up the heat: min-p sampling", ICLR 2025). Among equals the smaller id
    comes first.

    Before all that, and for greedy too, ``repetition_penalty`` divides the logits above 0 of
    tokens that the text holds already, prompt included, and multiplies those below 0 (Keskar et
    al., "CTRL", 2019): 1 leaves them alone, more than 1 discourages repetition.

    Without a seed the draws come from ``gg.random``. Raises ValueError for a setting that makes no
    sense.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"Sampler: temperature must be > 0, got {self.temperature!r}; for the most likely "
                "token use greedy=True"
            )
        if self.top_k is not None and not (isinstance(self.top_k, Integral) and self.top_k >= 1):
            raise ValueError(f"Sampler: top_k must be an integer >= 1, got {self.top_k!r}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"Sampler: {name} must lie in (0, 1], got {value!r}")
        if not (0 < self.repetition_penalty < math.inf and 1 / self.repetition_penalty < math.inf):
            raise ValueError(
                "Sampler: repetition_penalty must be > 0 (1: none), got "
                f"{self.repetition_penalty!r}"
            )
        if self.seed is not None and not (
            isinstance(self.seed, Integral) and 0 <= self.seed < 2**64
        ):
            raise ValueError(f"Sampler: seed must be an integer in [0, 2**64), got {self.seed!r}")

    def choose(self, logits: npt.NDArray[Any], step: int) -> Ids:
        """Return one id per row of logits (B, V); ``step`` counts the tokens drawn before."""
        logits = checked(logits)
        if self.greedy:
            return logits.argmax(axis=-1)
        cumulative = self._probabilities(logits).cumsum(axis=-1)
        # the number of tokens whose interval ends at or before the draw; never a token of
        # probability 0, whose interval is empty
        drawn = self._uniform(step, len(logits)) * cumulative[:, -1]
        drawn = np.minimum(drawn, np.nextafter(cumulative[:, -1], 0))
        return (cumulative <= drawn[:, None]).sum(axis=-1)

    def penalized(self, logits: npt.NDArray[Any], occurred: npt.NDArray[np.bool_]) -> Logits:
        """Return logits (B, V), those of the tokens that ``occurred`` (B, V) made less likely."""
        logits = checked(logits)
        factor = np.where(logits > 0, 1 / self.repetition_penalty, self.repetition_penalty)
        return np.where(occurred, logits * factor, logits)

    def probabilities(self, logits: npt.NDArray[Any]) -> Logits:
        """Return what is drawn from, (B, V): zero for the tokens left out."""
        return self._probabilities(checked(logits))

    def _probabilities(self, logits: Logits) -> Logits:
        with np.errstate(over="ignore"):  # -inf is what a tiny temperature means
            logits = (logits - logits.max(axis=-1, keepdims=True)) / self.temperature
        p = np.exp(logits)
        p /= p.sum(axis=-1, keepdims=True)
        if self.top_k is not None or self.top_p is not None:
            n = logits.shape[-1]
            k = n if self.top_k is None else min(self.top_k, n)
            order = largest(logits, k)
            ranked = np.zeros_like(p)
            ranked[:, :k] = np.take_along_axis(p, order, axis=-1)
            if self.top_k is not None:
                ranked /= ranked.sum(axis=-1, keepdims=True)
            if self.top_p is not None:
                before = ranked.cumsum(axis=-1) - ranked
                ranked[:, 1:][before[:, 1:] >= self.top_p] = 0  # the first always stays
                ranked /= ranked.sum(axis=-1, keepdims=True)
            p[...] = 0
            np.put_along_axis(p, order, ranked[:, :k], axis=-1)
        if self.min_p is not None:
            p[p < self.min_p * p.max(axis=-1, keepdims=True)] = 0
            p /= p.sum(axis=-1, keepdims=True)
        return p

    def _uniform(self, step: int, n: int) -> Logits:
        blocks = philox.blocks_used(n, 2)
        if self.seed is not None:
            return philox.uniform(np, self.seed, step * blocks, n, np.float64)
        draw = random.reserve(blocks)
        return philox.uniform(np, draw.seed, draw.offset, n, np.float64, draw.state)


def checked(logits: npt.NDArray[Any]) -> Logits:
    """Return logits (B, V) as float64; raise FloatingPointError if a row is no distribution."""
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits.max(axis=-1)).all():  # NaN wins a max
        raise FloatingPointError(
            "generate: the model's logits are NaN, +inf, or all -inf: it has diverged"
        )
    return logits


def log_softmax(logits: npt.NDArray[Any]) -> Logits:
    """Return the logarithms of the probabilities, (B, V)."""
    logits = checked(logits)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
