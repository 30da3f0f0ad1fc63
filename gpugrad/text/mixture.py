"""Batches from several corpora, each with its weight, and how often each has been gone through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gpugrad.text.batches import RandomWindows, Windows


def epochs_elapsed(
    weights: Mapping[str, float], sizes: Mapping[str, float], tokens: float
) -> dict[str, float]:
    """Return how often training on `tokens` tokens goes through each corpus: weight tokens / size.

    weights: the share of each corpus in training; used as they are, for those in print are rounded
    (GPT-3's add up to 1.01). sizes: tokens of each corpus, in the unit of `tokens`. Brown et al.,
    "Language models are few-shot learners" (2020), table 2.2. Raises ValueError for names that do
    not agree, a size that is not above 0, or a weight or number of tokens below 0.
    """
    _check_names(weights, sizes, "epochs_elapsed", "sizes")
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"epochs_elapsed: the size of {name!r} must be > 0, got {size!r}")
        if not weights[name] >= 0:
            raise ValueError(
                f"epochs_elapsed: the weight of {name!r} must be >= 0, got {weights[name]!r}"
            )
    if not tokens >= 0:
        raise ValueError(f"epochs_elapsed: tokens must be >= 0, got {tokens!r}")
    return {name: weight * tokens / sizes[name] for name, weight in weights.items()}


class Mixture(Iterator[Windows]):
    """Endless batches (x, y), int64 of shape (B, T), whose rows come from weighted corpora.

    corpora: name -> 1-D tokens, arrays or memory maps.
    weights: name -> how often a row comes from there, relative to the others; they need not add up
        to 1. 0 leaves a corpus out.
    block, batch: T and B.
    seed: 0 ... 2**64 - 1. As in RandomWindows, batch number n depends on the seed and n alone.

    Each row draws a corpus by weight, then a window of it at a random place. ``epochs`` and
    ``report`` say how often each corpus has been gone through so far, counted, not expected.

    Raises ValueError for names that do not agree, weights that are negative, not finite or all 0,
    a corpus shorter than one window, and what RandomWindows refuses.
    """

    def __init__(
        self,
        corpora: Mapping[str, npt.NDArray[np.integer]],
        weights: Mapping[str, float],
        block: int,
        batch: int,
        seed: int = 0,
    ) -> None:
        _check_names(weights, corpora, "Mixture", "corpora")
        given = np.array([weights[name] for name in corpora], np.float64)
        if not np.isfinite(given).all() or (given < 0).any() or not given.sum() > 0:
            raise ValueError(
                f"Mixture: weights must be >= 0, finite and not all 0, got {dict(weights)}"
            )
        self._windows = {}
        for name, tokens in corpora.items():
            try:
                self._windows[name] = RandomWindows(tokens, block, batch, seed)
            except ValueError as error:
                raise ValueError(f"Mixture: corpus {name!r}: {error}") from error
        self.block, self.batch, self.seed = block, batch, seed
        self.weights = dict(zip(corpora, (given / given.sum()).tolist(), strict=True))
        self.sizes = {name: len(tokens) for name, tokens in corpora.items()}
        self.drawn = dict.fromkeys(corpora, 0)  # windows of each corpus so far
        self.step = 0

    def __next__(self) -> Windows:
        # Streams of their own: RandomWindows draws places from block `step` of the key; the high
        # word of the counter tells the choice of the corpora apart.
        bits = np.random.Philox(key=self.seed, counter=(1 << 192) + (self.step << 64))
        uniform = (bits.random_raw(self.batch) >> np.uint64(11)) * 2.0**-53
        ends = np.cumsum(list(self.weights.values()))
        chosen = np.searchsorted(ends, uniform * ends[-1], side="right")
        x = np.empty((self.batch, self.block), np.int64)
        y = np.empty_like(x)
        for i, (name, windows) in enumerate(self._windows.items()):
            rows = chosen == i
            if rows.any():
                windows.step = self.step
                found = next(windows)
                x[rows], y[rows] = found[0][rows], found[1][rows]
                self.drawn[name] += int(rows.sum())
        self.step += 1
        return x, y

    def epochs(self) -> dict[str, float]:
        """Return how often each corpus has been gone through: tokens drawn from it / its size."""
        return {name: n * self.block / self.sizes[name] for name, n in self.drawn.items()}

    def report(self) -> str:
        """Return a table: tokens of each corpus, its weight, its share so far, epochs elapsed."""
        width = max(6, *map(len, self.sizes))
        lines = [f"{'corpus':{width}}  {'tokens':>14}  weight   share  epochs"]
        total = max(self.step * self.batch, 1)
        for name, epochs in self.epochs().items():
            lines.append(
                f"{name:{width}}  {self.sizes[name]:14,}  {self.weights[name]:6.1%}  "
                f"{self.drawn[name] / total:6.1%}  {epochs:6.3f}"
            )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, fit for JSON."""
        return {"seed": self.seed, "step": self.step, "drawn": dict(self.drawn), **self._shape()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; it must come from equal corpora, weights and shapes."""
        expected = {"seed", "step", "drawn", *self._shape()}
        if set(state) != expected:
            raise ValueError(
                f"Mixture.load_state_dict: expected the keys {sorted(expected)}, "
                f"got {sorted(state)}"
            )
        for name, value in self._shape().items():
            if state[name] != value:
                raise ValueError(
                    f"Mixture.load_state_dict: the state was taken with {name} = {state[name]}, "
                    f"here it is {value}; the batches would not be the same"
                )
        self.seed, self.step = int(state["seed"]), int(state["step"])
        self.drawn = {name: int(state["drawn"][name]) for name in self.sizes}
        for windows in self._windows.values():
            windows.seed = self.seed

    def _shape(self) -> dict[str, Any]:
        return {
            "block": self.block,
            "batch": self.batch,
            "weights": dict(self.weights),
            "tokens": dict(self.sizes),
        }


def _check_names(
    weights: Mapping[str, float], others: Mapping[str, Any], where: str, what: str
) -> None:
    if not weights or set(weights) != set(others):
        raise ValueError(
            f"{where}: weights and {what} must name the same corpora, at least one; got "
            f"{sorted(weights)} and {sorted(others)}"
        )
