"""Counting alone predicts text, the better the longer the context and the wiser the smoothing.

N-gram models of the characters of Python's standard library. Without smoothing one unseen sequence
would cost infinitely many bits. Adding 1 to every count, Laplace's rule, drowns long contexts;
Witten-Bell and Kneser-Ney ask shorter contexts for what they have not seen, and keep improving.

    python -m gpugrad.examples.ngram [--picture FILE.svg]

>>> main([])
bits per character on held-out text
order   add-k 1   witten-bell   kneser-ney
    1     4...         4...        4...
    2     3...         3...        3...
    3     2...         2...        2...
    4     2...         1...        1...
    5     2...         1...        1...
    6     3...         1...        1...
the 6-gram's perplexity: ... equally likely characters instead of ...
it writes: def ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import NGram, NGramConfig
from gpugrad.text import CharTokenizer, load_text, split

CHARACTERS = 600_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of losses, and what the best model writes."""
    picture = parse_picture(__doc__, arguments)
    text = load_text(max_chars=CHARACTERS)
    tokenizer = CharTokenizer(text)
    train, held_out = split(tokenizer.encode(text))

    table = []
    print("bits per character on held-out text")
    print("order   add-k 1   witten-bell   kneser-ney")
    for order in range(1, 7):
        model = NGram(NGramConfig(tokenizer.vocab_size, order)).fit(train)
        three = model.smoothed("add-k"), model.smoothed("witten-bell"), model
        a, b, c = (each.loss(held_out) / math.log(2) for each in three)
        table.append((a, b, c))
        print(f"{order:5}   {a:7.3f}   {b:11.3f}   {c:10.3f}")

    perplexity = model.perplexity(held_out)
    print(
        f"the 6-gram's perplexity: {perplexity:.1f} equally likely characters instead of "
        f"{tokenizer.vocab_size}"
    )
    written = tokenizer.decode(model.generate(tokenizer.encode("def "), 60, seed=1).numpy())
    print("it writes:", " ".join(written.split()))

    if picture is not None:
        figure = new_figure(6.5, 4.5)
        axes = figure.subplots()
        axes.plot(range(1, 7), table, "o-", label=["add 1", "Witten-Bell", "Kneser-Ney"])
        axes.set(xlabel="order", ylabel="held-out bits per character", ylim=(0, None))
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
