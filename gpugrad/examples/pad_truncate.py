"""Sentences of different lengths become one batch: truncated, padded, masked, embedded.

Words become ids in order of their code points, 0 being the padding; each row keeps its first ten.
The targets are the ids that follow; where none does stands -100, which the loss leaves out, so that
the batch has the mean loss of its sentences one by one, whatever the padding says.

    python -m gpugrad.examples.pad_truncate [--picture FILE.svg]

>>> main([])
57 ids, 0 the padding
  2 41 17 19 41 13 42 23  6 16   In the hole in the ground there lived a hobbit
  3 20 32 10 40 36 53 51 49  8   It is our choices that show what we truly are
  3 50 41  9 30 46 21 50 41 55   It was the best of times it was the worst
  1 25 39  6 22 45  0  0  0  0   Even miracles take a little time
  4 26 40 56 34 41 26 44 56 54   The more that you read the more things you will
  5  7 15 12 31 28 24 53 14  0   We'll always have each other no matter what happens
  4 38 11 29 35 21 50 48 52 47   The sun did not shine it was too wet to
  4 18 43 20 47 27 37 33  0  0   The important thing is to never stop questioning
targets of row 4: 25 39 6 22 45 -100 -100 -100 -100 -100
embedded: (8, 10, 4), the padding as zeros: True
loss of the batch 4.0...; of the sentences one by one 4.0...; equal: True
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad import nn
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import WordTokenizer, pad_batch

BLOCK = 10
SENTENCES = """\
In the hole in the ground there lived a hobbit
It is our choices that show what we truly are
It was the best of times it was the worst of times
Even miracles take a little time
The more that you read the more things you will know
We'll always have each other no matter what happens
The sun did not shine it was too wet to play
The important thing is to never stop questioning"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ids, what they are embedded as, and the loss with padding and without."""
    picture = parse_picture(__doc__, arguments)
    sentences = [line.split()[:BLOCK] for line in SENTENCES.splitlines()]
    tokenizer = WordTokenizer(" ".join(word for words in sentences for word in words))
    print(f"{tokenizer.vocab_size} ids, {tokenizer.pad} the padding")

    rows = [tokenizer.encode(" ".join(words)) for words in sentences]
    batch = pad_batch(rows, BLOCK, tokenizer.pad)
    for ids in batch.ids:
        print("".join(f"{id:3}" for id in ids), " ", tokenizer.decode(ids))
    print("targets of row 4:", *batch.targets[3])

    gg.manual_seed(16)
    vectors = nn.Embedding(tokenizer.vocab_size, 4, padding_idx=tokenizer.pad)(gg.tensor(batch.ids))
    blank = bool((vectors.numpy()[~batch.mask] == 0).all())
    print(f"embedded: {vectors.shape}, the padding as zeros: {blank}")

    model = GPT(GPTConfig(tokenizer.vocab_size, BLOCK, n_layer=1, n_head=2, n_embd=8))
    together = model.loss(batch.ids, batch.targets).item()
    alone = sum(model.loss(row[None, :-1], row[None, 1:], "sum").item() for row in rows)
    alone /= (batch.targets != -100).sum()
    print(
        f"loss of the batch {together:.6f}; of the sentences one by one {alone:.6f}; "
        f"equal: {abs(together - alone) < 1e-5}"
    )

    if picture is not None:
        figure = new_figure(9, 4)
        axes = figure.subplots()
        axes.imshow(batch.mask, cmap="Blues", vmin=0, vmax=3, aspect="auto")
        for (row, place), id in np.ndenumerate(batch.ids):
            text = f"{tokenizer.decode([id]) or 'PAD'}\n{id}"
            axes.text(place, row, text, ha="center", va="center", fontsize=8)
        axes.set(xlabel="place in the row", yticks=[])
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
