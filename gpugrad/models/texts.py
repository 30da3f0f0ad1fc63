"""Texts that a model continues, and the tokens at which they end: what all decoding shares."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import backend, ops
from ..engine import no_grad
from ..nn.module import evaluating
from ..registry import describe
from ..tensor import Tensor

Ids = npt.NDArray[np.int64]
Stop = int | Collection[int | Sequence[int]] | None


class LanguageModel(Protocol):
    """What a model needs for decoding.

    More is used where it is there. ``next_logits`` with a third argument ``lengths``, (B,): row b
    of ids counts up to lengths[b], what follows is padding; without it, prompts of different
    lengths take one call per length and no cache. A cache with ``reorder(rows)``, which makes row
    i what row rows[i] was; without it, beam search does not use the cache. ``sequence_logits(ids)``
    gives the logits (B, T, V) after every id; without it, log_probability goes token by token.
    """

    @property
    def block_size(self) -> int:
        """The longest sequence, in tokens."""

    def next_logits(self, ids: Any, cache: Any = None) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, T), which continue those in the cache.

        A cache counts in ``length`` the positions it holds.
        """

    def new_cache(self) -> Any:
        """Return an empty cache, or None if the model has none."""


class Texts:
    """Rows of ids that grow a token at a time, and the cache of what the model has seen of them.

    Rows may differ in length. Only the last block_size ids of each are kept, which is what a model
    can see: once a text is longer, every position in its window gets new neighbours and a new
    place, and no stored key is right any more.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[Ids], use_cache: bool = True) -> None:
        self.lengths = np.array([len(row) for row in rows])
        self._lowest, self._highest = min(row.min() for row in rows), max(row.max() for row in rows)
        self._model = model
        self._cache: Any = model.new_cache() if use_cache else None
        # aligned at the right, so that a new column continues every row
        self._ids = np.zeros((len(rows), int(self.lengths.max())), np.int64)
        for line, row in zip(self._ids, rows, strict=True):
            line[len(line) - len(row) :] = row
        self._ids = self._ids[:, -model.block_size :]

    def next_logits(self) -> npt.NDArray[Any]:
        """Return the logits of what follows each row, (B, V).

        Raises IndexError for ids that the model does not know, also ahead of what it sees.
        """
        if self.lengths.max() > self._model.block_size:
            self._cache = None
        with no_grad(), evaluating():
            logits = backend.to_numpy(self._logits()._data)
        if self._lowest < 0 or self._highest >= logits.shape[1]:
            bad = self._lowest if self._lowest < 0 else self._highest
            raise IndexError(
                f"generate: the prompt holds the id {bad}, but the model knows {logits.shape[1]} "
                f"tokens: ids must lie in [0, {logits.shape[1]})"
            )
        return logits

    def append(self, new: Ids) -> None:
        """Add an id to every row: (B,)."""
        self._ids = np.concatenate([self._ids, new[:, None]], axis=1)[:, -self._model.block_size :]
        self.lengths = self.lengths + 1

    def reorder(self, rows: Ids) -> None:
        """Make row i a copy of what was row ``rows[i]``; there may be more or fewer than before."""
        if np.array_equal(rows, np.arange(len(self.lengths))):
            return
        self._ids, self.lengths = self._ids[rows], self.lengths[rows]
        if hasattr(self._cache, "reorder"):
            self._cache.reorder(rows)
        else:
            self._cache = None

    def _logits(self) -> Tensor:
        model: Any = self._model  # which may take lengths
        cache = self._cache
        shown = np.minimum(self.lengths, model.block_size)
        if (shown == shown[0]).all():
            window = self._ids[:, -shown[0] :]
            return model.next_logits(
                Tensor(window[:, 0 if cache is None else cache.length :]), cache
            )
        if "lengths" not in inspect.signature(model.next_logits).parameters:
            self._cache = None
            return self._by_length(shown)
        if cache is not None and cache.length:  # all but the newest id of each row has been seen
            return model.next_logits(Tensor(self._ids[:, -1:]), cache)
        width = self._ids.shape[1]
        columns = width - shown[:, None] + np.arange(shown.max())  # aligned at the left
        windows = np.take_along_axis(self._ids, np.minimum(columns, width - 1), axis=1)
        return model.next_logits(Tensor(windows), cache, lengths=shown)

    def _by_length(self, shown: Ids) -> Tensor:
        logits: npt.NDArray[Any] | None = None
        for length in np.unique(shown):
            rows = shown == length
            found = self._model.next_logits(Tensor(self._ids[rows, -length:])).numpy()
            if logits is None:
                logits = np.empty((len(shown), found.shape[1]), found.dtype)
            logits[rows] = found
        return Tensor(logits)


class Stops:
    """The ends of texts: ids, and sequences of ids.

    ``stop``: an id, or a collection of ids and of sequences of ids, each of which ends a text.
    Raises ValueError for an empty sequence or a negative id, TypeError for what is no integer.
    """

    def __init__(self, stop: Stop) -> None:
        given = [] if stop is None else [stop] if isinstance(stop, (int, np.integer)) else stop
        self._sequences = [np.atleast_1d(np.array(one)) for one in given]
        for sequence in self._sequences:
            if not sequence.size or sequence.ndim > 1:
                raise ValueError(
                    f"generate: a stop is an id or a sequence of ids, got {sequence.tolist()!r}"
                )
            if sequence.dtype.kind not in "iu":
                raise TypeError(
                    f"generate: stop takes ids, got {sequence.tolist()!r}; encode text first"
                )
            if sequence.min() < 0:
                raise ValueError(f"generate: stop holds the negative id {sequence.min()}")
        self.longest = max(map(len, self._sequences), default=0)

    def check(self, vocab_size: int) -> None:
        """Raise IndexError for an id that no model of so many tokens would ever give."""
        for sequence in self._sequences:
            if sequence.max() >= vocab_size:
                raise IndexError(
                    f"generate: stop holds the id {sequence.max()}, but the model knows "
                    f"{vocab_size} tokens: ids must lie in [0, {vocab_size})"
                )

    def after(self, new: Ids) -> Iterator[tuple[npt.NDArray[np.bool_], int]]:
        """Yield which rows of ``new`` (B, N) an id would end, and that id; N counts no prompt."""
        for sequence in self._sequences:
            before = len(sequence) - 1
            if before <= new.shape[1]:
                tail = new[:, new.shape[1] - before :]
                yield (tail == sequence[:-1]).all(axis=1), int(sequence[-1])


def as_prompt(function: str, ids: Any, max_new_tokens: int | None) -> Ids:
    """Return ids as int64 (T,) or (B, T); raise TypeError for text, ValueError for other things."""
    if max_new_tokens is not None and not (
        isinstance(max_new_tokens, Integral) and max_new_tokens >= 0
    ):
        raise ValueError(
            f"{function}: max_new_tokens must be an integer >= 0, got {max_new_tokens!r}"
        )
    if isinstance(ids, str | bytes):
        raise TypeError(f"{function}: ids must be integers, got {ids!r}; encode text first")
    given = ops.asarray(ids, device=None if isinstance(ids, Tensor) else "cpu")
    if given.ndim not in (1, 2) or not given.size or given.dtype.kind not in "iu":
        raise ValueError(
            f"{function}: ids must be integers of shape (T,) or (B, T), at least one to begin "
            f"with; got {describe(given)}"
        )
    return given.numpy().astype(np.int64)


def as_prompts(function: str, prompts: Any, max_new_tokens: int) -> list[Ids]:
    """Return the ids of each prompt, (T,); raise ValueError where one is no such sequence."""
    rows = [
        as_prompt(f"{function}, prompt {i}", one, max_new_tokens) for i, one in enumerate(prompts)
    ]
    if not rows or any(row.ndim != 1 for row in rows):
        raise ValueError(
            f"{function}: prompts must be sequences of ids (T,), one or more of them, got "
            f"{[row.shape for row in rows]}"
        )
    return rows
