"""Decoding: tokens from a language model, greedy or drawn, all at once or as a stream.

    generate(model, ids, 100, temperature=0.8, top_k=40, seed=1)    # (T + 100,) ids
    for id in stream(model, ids, 100, greedy=True): ...

Any object with ``block_size``, ``next_logits`` and ``new_cache`` can be decoded (LanguageModel).
A seed decides every draw: token t uses numbers t of the counter-based generator.

With a cache of keys and values a step costs one position instead of a whole window, and gives the
same tokens. Once the text is longer than block_size the window slides, every position in it gets
new neighbours and a new place, and no stored key is right any more: from there on each step runs
the whole window, as without a cache.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import backend, ops
from ..engine import no_grad
from ..ops import philox, random
from ..registry import describe
from ..tensor import Tensor

Ids = npt.NDArray[np.int64]


class LanguageModel(Protocol):
    """What a model needs for decoding."""

    @property
    def block_size(self) -> int:
        """The longest sequence, in tokens."""

    def next_logits(self, ids: Any, cache: Any = None) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, T), which continue those in the cache.

        A cache counts in ``length`` the positions it holds.
        """

    def new_cache(self) -> Any:
        """Return an empty cache, or None if the model has none."""


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from logits.

    greedy: take the most likely. Otherwise draw, after dividing the logits by ``temperature`` and
    keeping only the ``top_k`` most likely tokens, and of these only the most likely ones that
    together reach probability ``top_p`` (Holtzman et al., "The curious case of neural text
    degeneration", ICLR 2020). Among equals the smaller id comes first. Without a seed the draws
    come from ``gg.random``. Raises ValueError for a setting that makes no sense.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"generate: temperature must be > 0, got {self.temperature!r}; for the most likely "
                "token use greedy=True"
            )
        if self.top_k is not None and not self.top_k >= 1:
            raise ValueError(f"generate: top_k must be at least 1, got {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must lie in (0, 1], got {self.top_p!r}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"generate: seed must lie in [0, 2**64), got {self.seed!r}")

    def choose(self, logits: npt.NDArray[Any], step: int) -> Ids:
        """Return one id per row of logits (B, V); ``step`` counts the tokens drawn before."""
        logits = _checked(logits)
        if self.greedy:
            return logits.argmax(axis=-1)
        cumulative = self.probabilities(logits).cumsum(axis=-1)
        # the number of tokens whose interval ends at or before the draw; never a token of
        # probability 0, whose interval is empty
        drawn = self._uniform(step, len(logits)) * cumulative[:, -1]
        drawn = np.minimum(drawn, np.nextafter(cumulative[:, -1], 0))
        return (cumulative <= drawn[:, None]).sum(axis=-1)

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return what is drawn from, (B, V): zero for the tokens left out."""
        logits = _checked(logits) / self.temperature
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        if self.top_k is None and self.top_p is None:
            return p
        order = np.argsort(-logits, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=-1)
        if self.top_k is not None:
            ranked[:, self.top_k :] = 0
            ranked /= ranked.sum(axis=-1, keepdims=True)
        if self.top_p is not None:
            before = ranked.cumsum(axis=-1) - ranked
            ranked[:, 1:][before[:, 1:] >= self.top_p] = 0  # the first always stays
            ranked /= ranked.sum(axis=-1, keepdims=True)
        np.put_along_axis(p, order, ranked, axis=-1)
        return p

    def _uniform(self, step: int, n: int) -> npt.NDArray[np.float64]:
        blocks = philox.blocks_used(n, 2)
        if self.seed is not None:
            return philox.uniform(np, self.seed, step * blocks, n, np.float64)
        draw = random.reserve(blocks)
        return philox.uniform(np, draw.seed, draw.offset, n, np.float64, draw.state)


def _checked(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits.max(axis=-1)).all():  # NaN wins a max
        raise FloatingPointError(
            "generate: the model's logits are NaN, +inf, or all -inf: it has diverged"
        )
    return logits


def generate(
    model: LanguageModel,
    ids: Any,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int | None = None,
    stop: int | Collection[int] | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Return ids, (T,) or (B, T), continued by up to ``max_new_tokens`` tokens; int64.

    A row ends with the first token of ``stop``; in a batch that token is repeated until all rows
    have ended. For the other settings see Sampler. The model decodes in eval mode, recording
    nothing. Raises ValueError for ids that are empty or no integers, IndexError for ids that the
    model does not know.
    """
    prompt, is_batch = _prompt(ids, max_new_tokens)
    sampler = Sampler(temperature, top_k, top_p, greedy, seed)
    pieces = [prompt]
    pieces += [
        new[:, None] for new in _decode(model, prompt, max_new_tokens, sampler, stop, use_cache)
    ]
    result = np.concatenate(pieces, axis=1)
    device = ids.device if isinstance(ids, Tensor) else "cpu"
    return Tensor(result if is_batch else result[0], device=device)


def stream(
    model: LanguageModel,
    ids: Any,
    max_new_tokens: int | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int | None = None,
    stop: int | Collection[int] | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Return an iterator over the tokens that follow ids (T,), each computed when asked for.

    Without ``max_new_tokens`` it ends only at a token of ``stop``, which is yielded too. Arguments
    as in ``generate``, and checked at once.
    """
    prompt, is_batch = _prompt(ids, max_new_tokens)
    if is_batch:
        raise ValueError(f"stream: ids must be one sequence (T,), got shape {prompt.shape}")
    sampler = Sampler(temperature, top_k, top_p, greedy, seed)
    decoded = _decode(model, prompt, max_new_tokens, sampler, stop, use_cache)
    return (int(new[0]) for new in decoded)


def _prompt(ids: Any, max_new_tokens: int | None) -> tuple[Ids, bool]:
    """Return ids as (B, T), and whether they were given so."""
    if max_new_tokens is not None and max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be >= 0, got {max_new_tokens}")
    given = ops.asarray(ids, device=None if isinstance(ids, Tensor) else "cpu")
    if given.ndim not in (1, 2) or not given.size or given.dtype.kind not in "iu":
        raise ValueError(
            "generate: ids must be integers of shape (T,) or (B, T), at least one to begin with; "
            f"got {describe(given)}"
        )
    array = given.numpy().astype(np.int64)
    return np.atleast_2d(array), array.ndim == 2


def _decode(
    model: LanguageModel,
    prompt: Ids,
    max_new_tokens: int | None,
    sampler: Sampler,
    stop: int | Collection[int] | None,
    use_cache: bool,
) -> Iterator[Ids]:
    """Yield the next token of every row, (B,), step by step."""
    stops = [] if stop is None else [stop] if isinstance(stop, (int, np.integer)) else list(stop)
    ended = np.zeros(len(prompt), dtype=bool)
    length = prompt.shape[1]
    window = prompt[:, -model.block_size :]
    cache = model.new_cache() if use_cache else None
    step = 0
    new = prompt[:, -1]
    while step != max_new_tokens and not ended.all():
        if length > model.block_size:
            cache = None
        unseen = window if cache is None else window[:, cache.length :]
        with no_grad(), _evaluating(model):
            logits = model.next_logits(Tensor(unseen), cache)
        chosen = sampler.choose(backend.to_numpy(logits._data), step)
        new = np.where(ended, new, chosen)
        yield new
        ended |= np.isin(new, stops)
        window = np.concatenate([window, new[:, None]], axis=1)[:, -model.block_size :]
        length += 1
        step += 1


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch off dropout and the like for the time of one step."""
    training = [m for m in model.modules() if m.training] if hasattr(model, "modules") else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
