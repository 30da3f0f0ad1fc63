"""Words that keep the same company get similar vectors: skip-gram with negative sampling.

The words are those of Python's standard library. A vector has to tell, of two words, which stands
nearby and which was drawn at random; nobody says what they mean, yet neighbours by cosine do
similar jobs.

    python -m gpugrad.examples.word2vec [--picture FILE.svg]

>>> main([])
800 words, ... in the text; loss ... -> 2...
return   ...
True     ...
import   ...
int      ...
or       ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.examples._words import encode, vocabulary, words_of
from gpugrad.models import SkipGram, SkipGramBatches, SkipGramConfig
from gpugrad.optim import Adam
from gpugrad.text import load_text

SIZE = 800
SHOWN = ("return", "True", "import", "int", "or")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train vectors and print the neighbours of a few words."""
    picture = parse_picture(__doc__, arguments)
    words = words_of(load_text(max_chars=1_000_000))
    known = vocabulary(words, SIZE)
    gg.manual_seed(0)
    model = SkipGram(SkipGramConfig(SIZE, n_embd=32, window=3))
    batches = SkipGramBatches(encode(words, known), model.config, batch=512)
    optimizer = Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(300):
        loss = model.loss(*next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{SIZE} words, {len(words)} in the text; loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    for word in SHOWN:
        near = [known[other] for other, _ in model.nearest(known.index(word), 6)]
        print(f"{word:8}", " ".join(near))

    if picture is not None:
        shown = [i for i, word in enumerate(known) if word.isalpha() and len(word) > 1][:60]
        vectors = model.vectors.numpy()[shown]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors - vectors.mean(axis=0)
        x, y = (
            vectors @ np.linalg.svd(vectors)[2][:2].T
        ).T  # the two directions they differ most in
        figure = new_figure(8, 6.5)
        axes = figure.subplots()
        axes.plot(x, y, ".", color="#cccccc")
        for i, left, up in zip(shown, x, y, strict=True):
            axes.text(left, up, f" {known[i]}", fontsize=8, va="center")
        axes.set(title="the 60 most frequent names", xticks=[], yticks=[])
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
