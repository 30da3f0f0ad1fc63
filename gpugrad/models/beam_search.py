"""Beam search: the most likely texts, among those whose beginnings were likely too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sampler import Ids, Logits, log_softmax
from .texts import LanguageModel, Stop, Stops, Texts, as_prompt, as_prompts


@dataclass(frozen=True)
class Beam:
    """A text that beam search found.

    ids: prompt and new tokens, int64 (T,). log_probability: of the new tokens, in nats, given the
    prompt. score: what beams are ranked by, log_probability / (new tokens)^length_penalty.
    """

    ids: Ids
    log_probability: float
    score: float


def beam_search(
    model: LanguageModel,
    ids: Any,
    max_new_tokens: int,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    stop: Stop = None,
    use_cache: bool = True,
) -> list[Beam]:
    """Return up to ``num_beams`` continuations of ids (T,), the best first.

    Each step extends every beam by every token and keeps the ``num_beams`` most likely texts. Those
    that end with ``stop`` (as in ``generate``) leave the beam and wait, the others go on, until
    ``max_new_tokens`` or until none can overtake the ones that wait. All are ranked by
    log-probability / length^length_penalty: 0 compares probabilities, which favours short texts, 1
    the mean per token, more favours long ones (Wu et al., "Google's neural machine translation
    system", 2016, with the length itself for its (5 + length) / 6).

    One beam is greedy decoding; as many as there are texts, exhaustive search. Among equals the
    beam that ranked first and the smaller id come first. Raises ValueError for settings or ids
    that make no sense, IndexError for ids that the model does not know.
    """
    prompt = as_prompt("beam_search", ids, max_new_tokens)
    if prompt.ndim != 1:
        raise ValueError(
            f"beam_search: ids must be one sequence (T,), got shape {prompt.shape}; for several "
            "there is beam_search_batch"
        )
    return _search(
        model, [prompt], max_new_tokens, num_beams, length_penalty, Stops(stop), use_cache
    )[0]


def beam_search_batch(
    model: LanguageModel,
    prompts: Sequence[Any],
    max_new_tokens: int,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    stop: Stop = None,
    use_cache: bool = True,
) -> list[list[Beam]]:
    """Return what ``beam_search`` returns for each of ``prompts``, (T,) of any lengths.

    The beams of all prompts take a step together. Arguments and errors as in ``beam_search``.
    """
    rows = as_prompts("beam_search_batch", prompts, max_new_tokens)
    return _search(model, rows, max_new_tokens, num_beams, length_penalty, Stops(stop), use_cache)


def _search(
    model: LanguageModel,
    prompts: list[Ids],
    max_new_tokens: int,
    num_beams: int,
    length_penalty: float,
    stops: Stops,
    use_cache: bool,
) -> list[list[Beam]]:
    if not isinstance(num_beams, (int, np.integer)) or num_beams < 1:
        raise ValueError(f"beam_search: num_beams must be an integer >= 1, got {num_beams!r}")
    if not np.isfinite(length_penalty):
        raise ValueError(f"beam_search: length_penalty must be finite, got {length_penalty!r}")
    texts = Texts(model, prompts, use_cache)
    owner = np.arange(len(prompts))  # of each live row: the prompt it continues,
    total = np.zeros(len(prompts))  # its log-probability,
    new = np.empty((len(prompts), 0), np.int64)  # and its new tokens
    found: list[list[Beam]] = [[] for _ in prompts]

    def finish(prompt: int, tokens: Ids, log_probability: float) -> None:
        score = log_probability / max(len(tokens), 1) ** length_penalty
        ids = np.concatenate([prompts[prompt], tokens])
        beams = [*found[prompt], Beam(ids, float(log_probability), float(score))]
        found[prompt] = sorted(beams, key=lambda beam: -beam.score)[:num_beams]

    for length in range(1, max_new_tokens + 1):
        totals = total[:, None] + log_softmax(texts.next_logits())
        if length == 1:
            stops.check(totals.shape[1])
        ends = np.zeros_like(totals, dtype=bool)
        for matching, token in stops.after(new):
            ends[matching, token] = True
        kept: list[tuple[int, int]] = []  # row and token
        for prompt in np.unique(owner).tolist():
            mine = (owner == prompt).nonzero()[0]
            for row, token in _best(totals, mine, num_beams):
                if ends[row, token]:
                    finish(prompt, np.append(new[row], token), totals[row, token])
            live = _best(np.where(ends, -np.inf, totals), mine, num_beams)
            if live and not _decided(
                found[prompt], totals[live[0]], num_beams, length, max_new_tokens, length_penalty
            ):
                kept += live
        if not kept:
            owner = owner[:0]
            break
        rows, tokens = (np.array(part) for part in zip(*kept, strict=True))
        owner, total = owner[rows], totals[rows, tokens]
        new = np.concatenate([new[rows], tokens[:, None]], axis=1)
        if length < max_new_tokens:
            texts.reorder(rows)
            texts.append(tokens)
    for row, prompt in enumerate(owner.tolist()):
        finish(prompt, new[row], total[row])
    return found


def _best(totals: Logits, rows: Ids, count: int) -> list[tuple[int, int]]:
    """Return (row, token) of the ``count`` largest of some rows, best first; none of -inf."""
    flat = totals[rows].ravel()
    places = np.arange(flat.size)
    if count < flat.size:
        places = (flat >= np.partition(flat, -count)[-count]).nonzero()[0]
    places = places[np.argsort(-flat[places], kind="stable")][:count]
    places = places[flat[places] > -np.inf]
    return [(int(rows[place // totals.shape[1]]), int(place % totals.shape[1])) for place in places]


def _decided(
    found: list[Beam],
    best: float,
    num_beams: int,
    length: int,
    longest: int,
    length_penalty: float,
) -> bool:
    """Say whether no text that goes on can still be among the ``num_beams`` best.

    A longer text is at most as likely; what its length does to the score is known.
    """
    if len(found) < num_beams or length == longest:
        return False
    at_best = best / (longest if length_penalty > 0 else length + 1) ** length_penalty
    return found[-1].score >= at_best
