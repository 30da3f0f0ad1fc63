"""Decoding: tokens from a language model, greedy or drawn, all at once or as a stream.

    generate(model, ids, 100, temperature=0.8, top_k=40, seed=1)    # (T + 100,) ids
    generate_batch(model, [ids, longer_ids], 100, greedy=True)      # a list, each of its own length
    for id in stream(model, ids, 100, greedy=True): ...

Any object with ``block_size``, ``next_logits`` and ``new_cache`` can be decoded (LanguageModel).
A seed decides every draw: token t uses numbers t of the counter-based generator. The most likely
texts are found by ``beam_search``; ``log_probability`` says how likely a given one is.

With a cache of keys and values a step costs one position instead of a whole window, and gives the
same tokens. Once the text is longer than block_size the window slides (see Texts): from there on
each step runs the whole window, as without a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..tensor import Tensor
from .sampler import Ids, Sampler
from .texts import LanguageModel, Stop, Stops, Texts, as_prompt, as_prompts

__all__ = ["LanguageModel", "Sampler", "generate", "generate_batch", "stream"]


def generate(
    model: LanguageModel,
    ids: Any,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    greedy: bool = False,
    seed: int | None = None,
    stop: Stop = None,
    use_cache: bool = True,
) -> Tensor:
    """Return ids, (T,) or (B, T), continued by up to ``max_new_tokens`` tokens; int64.

    A row ends with the first token or sequence of tokens of ``stop`` that is not in the prompt:
    ``stop=7`` or ``stop=[7, 9]`` for tokens, ``stop=[[3, 1]]`` for a sequence. In a batch the last
    token is then repeated until all rows have ended. For the other settings see Sampler. The model
    decodes in eval mode, recording nothing. Raises ValueError for ids that are empty or no
    integers, IndexError for ids, also of ``stop``, that the model does not know.
    """
    prompt = as_prompt("generate", ids, max_new_tokens)
    sampler = Sampler(temperature, top_k, top_p, greedy, seed, min_p, repetition_penalty)
    rows = np.atleast_2d(prompt)
    pieces = [rows]
    for new, _ in _decode(model, list(rows), max_new_tokens, sampler, Stops(stop), use_cache):
        pieces.append(new[:, None])
    result = np.concatenate(pieces, axis=1)
    device = ids.device if isinstance(ids, Tensor) else "cpu"
    return Tensor(result.reshape(*prompt.shape[:-1], -1), device=device)


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Any],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    greedy: bool = False,
    seed: int | None = None,
    stop: Stop = None,
    use_cache: bool = True,
) -> list[Tensor]:
    """Return each of ``prompts``, (T,) of any lengths, continued as by ``generate``; on the CPU.

    All rows take a step together, in one call if the model can (see LanguageModel), and each ends
    where it would alone. Greedy texts are those that the prompts give one by one; draws also depend
    on a prompt's place. Arguments and errors as in ``generate``.
    """
    rows = as_prompts("generate_batch", prompts, max_new_tokens)
    sampler = Sampler(temperature, top_k, top_p, greedy, seed, min_p, repetition_penalty)
    texts = [row.tolist() for row in rows]
    for new, live in _decode(model, rows, max_new_tokens, sampler, Stops(stop), use_cache):
        for row in live.nonzero()[0]:
            texts[row].append(int(new[row]))
    return [Tensor(np.array(text, np.int64), device="cpu") for text in texts]


def stream(
    model: LanguageModel,
    ids: Any,
    max_new_tokens: int | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    greedy: bool = False,
    seed: int | None = None,
    stop: Stop = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Return an iterator over the tokens that follow ids (T,), each computed when asked for.

    Without ``max_new_tokens`` it ends only at ``stop``, which is yielded too. Arguments as in
    ``generate``, and checked at once.
    """
    prompt = as_prompt("stream", ids, max_new_tokens)
    if prompt.ndim != 1:
        raise ValueError(f"stream: ids must be one sequence (T,), got shape {prompt.shape}")
    sampler = Sampler(temperature, top_k, top_p, greedy, seed, min_p, repetition_penalty)
    decoded = _decode(model, [prompt], max_new_tokens, sampler, Stops(stop), use_cache)
    return (int(new[0]) for new, _ in decoded)


def _decode(
    model: LanguageModel,
    prompts: list[Ids],
    max_new_tokens: int | None,
    sampler: Sampler,
    stops: Stops,
    use_cache: bool,
) -> Iterator[tuple[Ids, np.ndarray]]:
    """Yield the next token of every row, (B,), step by step, and which rows had not yet ended."""
    texts = Texts(model, prompts, use_cache)
    live = np.ones(len(prompts), dtype=bool)
    last = np.array([prompt[-1] for prompt in prompts])
    recent = np.empty((len(prompts), 0), np.int64)  # new tokens that may begin a stop
    occurred: np.ndarray | None = None
    step = 0
    while step != max_new_tokens and live.any():
        logits = texts.next_logits()
        if not step:
            stops.check(logits.shape[-1])
        if sampler.repetition_penalty != 1:
            if occurred is None:
                occurred = np.zeros(logits.shape, dtype=bool)
                for row, prompt in zip(occurred, prompts, strict=True):
                    row[prompt] = True
            logits = sampler.penalized(logits, occurred)
        chosen = np.where(live, sampler.choose(logits, step), last)
        yield chosen, live
        if occurred is not None:
            occurred[np.arange(len(chosen)), chosen] = True
        ended = np.zeros_like(live)
        for rows, token in stops.after(recent):
            ended |= rows & (chosen == token)
        live = live & ~ended
        if stops.longest:
            recent = np.concatenate([recent, chosen[:, None]], axis=1)[:, -stops.longest :]
        texts.append(chosen)
        last = chosen
        step += 1
