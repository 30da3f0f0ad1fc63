"""Keys and values of earlier positions are kept, not computed again: the same tokens, sooner.

Without a cache each new token runs the whole text through the model; with it, one position, whose
query meets the stored keys. Prompts of different lengths go together in one batch, each with its
own positions and its own part of the cache. All ways give the same tokens. The clock is the
processor's, so that other programs do not count.

    python -m gpugrad.examples.kv_cache [--picture FILE.svg]

>>> main([])
prompts of 5, 110 and 50 tokens, 8 new tokens each
one by one, no cache    ... tokens per second
one by one, cached      ... tokens per second
one batch, no cache     ... tokens per second
one batch, cached       ... tokens per second
all gave the same tokens: True
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.generate import generate, generate_batch, stream
from gpugrad.models import GPT, GPTConfig

VOCABULARY, BLOCK, NEW = 64, 128, 8
LENGTHS = [5, 110, 50]


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode the same prompts four ways; print the speed of each and whether the tokens agree."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(3)
    model = GPT(GPTConfig(VOCABULARY, BLOCK, n_layer=2, n_head=4, n_embd=64, positions="rotary"))
    random = np.random.default_rng(0)
    prompts = [random.integers(VOCABULARY, size=n) for n in LENGTHS]

    def one_by_one(use_cache: bool) -> list[list[int]]:
        found = (generate(model, p, NEW, greedy=True, use_cache=use_cache) for p in prompts)
        return [text.tolist() for text in found]

    def together(use_cache: bool) -> list[list[int]]:
        found = generate_batch(model, prompts, NEW, greedy=True, use_cache=use_cache)
        return [text.tolist() for text in found]

    *some, last = map(str, LENGTHS)
    print(f"prompts of {', '.join(some)} and {last} tokens, {NEW} new tokens each")
    texts = []
    ways: dict[str, Callable[[bool], list[list[int]]]] = {
        "one by one": one_by_one,
        "one batch": together,
    }
    for name, decode in ways.items():
        for use_cache, how in ((False, "no cache"), (True, "cached")):
            start = time.process_time()
            texts.append(decode(use_cache))
            rate = NEW * len(prompts) / (time.process_time() - start)
            print(f"{name + ', ' + how:22} {rate:6.0f} tokens per second")
    print("all gave the same tokens:", all(text == texts[0] for text in texts))

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        for use_cache, how in ((False, "no cache"), (True, "cached")):
            axes.plot(step_times(model, use_cache), ".-", label=how)
        axes.set(xlabel="position", ylabel="milliseconds for a token", ylim=(0, None))
        axes.legend()
        save(figure, picture)


def step_times(model: GPT, use_cache: bool) -> list[float]:
    """Return the milliseconds of the processor that each token of a text takes: the least of 3."""
    tries = []
    for _ in range(3):
        ticks = [time.process_time()]
        ticks += [time.process_time() for _ in stream(model, [0], BLOCK - 1, use_cache=use_cache)]
        tries.append([1000 * (b - a) for a, b in pairwise(ticks)])
    return [min(times) for times in zip(*tries, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1:])
