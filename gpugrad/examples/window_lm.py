"""A feed-forward language model sees a window of words; its vectors may come from elsewhere.

Bengio's model of 2003: the vectors of the last four words are joined and predict the next. It is
trained on little text, with vectors of its own or with those that skip-gram learned from a hundred
times as much. Frozen, they leave fewer numbers to train, but what makes two words neighbours is not
all that their successors depend on: trained further, they predict better.

    python -m gpugrad.examples.window_lm [--picture FILE.svg]

>>> main([])
vectors                     trained numbers   perplexity
its own                               26...       ...
word2vec, frozen                      18...       ...
word2vec, trained further             26...       ...
unigram counts: ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.examples._words import encode, vocabulary, words_of
from gpugrad.models import (
    NGram,
    NGramConfig,
    SkipGram,
    SkipGramBatches,
    SkipGramConfig,
    WindowLM,
    WindowLMConfig,
)
from gpugrad.optim import Adam
from gpugrad.text import RandomWindows, fixed_windows, load_text

SIZE, WIDTH, LITTLE = 500, 16, 3000
STEPS, EVERY = 150, 25


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the same model from three beginnings and print what they reach on held-out words."""
    picture = parse_picture(__doc__, arguments)
    words = words_of(load_text(max_chars=1_000_000))
    ids = encode(words, vocabulary(words, SIZE))
    held_out, train, much = ids[:10_000], ids[10_000 : 10_000 + LITTLE], ids[10_000:]
    vectors = skip_gram(much)
    curves = {}
    print("vectors                     trained numbers   perplexity")
    for name in ("its own", "word2vec, frozen", "word2vec, trained further"):
        gg.manual_seed(0)
        model = WindowLM(WindowLMConfig(SIZE, window=4, n_embd=WIDTH, n_hidden=32))
        if name != "its own":
            model.use_embeddings(vectors, freeze="frozen" in name)
        trained = [p for p in model.parameters() if p.requires_grad]
        curves[name] = fit(model, trained, train, held_out)
        size, end = sum(p.size for p in trained), curves[name][-1]
        print(f"{name:27} {size:15}   {end:10.1f}")
    counted = NGram(NGramConfig(SIZE, 1)).fit(train).perplexity(held_out)
    print(f"unigram counts: {counted:.1f}")

    if picture is not None:
        figure = new_figure(7.0, 4.5)
        axes = figure.subplots()
        for name, perplexities in curves.items():
            axes.plot(range(0, STEPS + 1, EVERY), perplexities, "o-", label=name)
        axes.axhline(counted, color="gray", linestyle="--", label="unigram counts")
        axes.set(xlabel="step", ylabel="perplexity of held-out words", ylim=(30, 2 * counted))
        axes.legend()
        save(figure, picture)


def skip_gram(tokens: np.ndarray) -> gg.Tensor:
    """Return vectors of all words, centred and of the size that a model's own have."""
    gg.manual_seed(1)
    model = SkipGram(SkipGramConfig(SIZE, n_embd=WIDTH, window=2))
    optimizer = Adam(model.parameters(), lr=0.01)
    batches = SkipGramBatches(tokens, model.config, batch=512)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(*next(batches)).backward()
        optimizer.step()
    centred = model.vectors - model.vectors.mean(axis=0)
    return 0.5 * centred / gg.std(centred, axis=0)


def fit(
    model: WindowLM, parameters: list[gg.nn.Parameter], tokens: np.ndarray, held_out: np.ndarray
) -> list[float]:
    """Train what may be trained; return the perplexity of held-out words every EVERY steps."""
    optimizer = Adam(parameters, lr=3e-3)
    windows = RandomWindows(tokens, block=32, batch=8)
    perplexities = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with gg.no_grad():
                perplexities.append(math.exp(model.loss(*fixed_windows(held_out, 64, 100)).item()))
        optimizer.zero_grad()
        model.loss(*next(windows)).backward()
        optimizer.step()
    return perplexities


if __name__ == "__main__":
    main(sys.argv[1:])
