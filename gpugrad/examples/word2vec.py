"""Words that keep the same company get similar vectors: skip-gram with negative sampling.

The words are those of Python's standard library. A vector has to tell, of two words, which stands
nearby and which was drawn at random; nobody says what they mean, yet neighbours by cosine do
similar jobs.

    python -m gpugrad.examples.word2vec

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

import gpugrad as gg
from gpugrad.examples._command import command
from gpugrad.examples._words import encode, vocabulary, words_of
from gpugrad.models import SkipGram, SkipGramBatches, SkipGramConfig
from gpugrad.optim import Adam
from gpugrad.text import load_text

SIZE = 800
SHOWN = ("return", "True", "import", "int", "or")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train vectors and print the neighbours of a few words."""
    command(__doc__).parse_args(arguments)
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


if __name__ == "__main__":
    main(sys.argv[1:])
