"""One text in four kinds of tokens: characters, words, and subwords by BPE and by WordPiece.

Few kinds of tokens make long sequences, many make short ones: characters stand at one end, words at
the other, subwords between them, with frequent words whole and rare ones in pieces. Byte-level BPE
gives back every text; WordPiece forgets white space and knows only its characters; words know only
themselves. Subwords need the extra ``text``.

    python -m gpugrad.examples.tokenizers [--picture FILE.svg]

>>> main([])
tokenizer      ids  tokens  tokens per character
char            26    1233                 1.000
bpe            320     367                 0.298
wordpiece      120     274                 0.222
word            35     249                 0.202
the cow that milks the unlucky dog
char       |t|h|e| |c|o|w| |t|h|a|t| |m|i|l|k|s| |t|h|e| |u|n|l|u|c|k|y| |d|o|g|
bpe        |th|e| cow| that| m|il|k|s| the| |u|n|l|u|ck|y| dog|
wordpiece  |the|cow|that|mil|##k|##s|the|u|##n|##l|##u|##c|##k|##y|dog|
word       word 'milks' at position 3 is not one of the vocabulary's 34
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.examples._rhyme import RHYME
from gpugrad.text import BPETokenizer, CharTokenizer, Tokenizer, WordPieceTokenizer, WordTokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEW = "the cow that milks the unlucky dog"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how many tokens each tokenizer makes of the rhyme, and what it makes of a new line."""
    picture = parse_picture(__doc__, arguments)
    tokenizers: dict[str, Tokenizer] = {
        "char": CharTokenizer(RHYME),
        "bpe": BPETokenizer.train(RHYME, 320),
        "wordpiece": WordPieceTokenizer.train(RHYME, 120),
        "word": WordTokenizer(RHYME),
    }
    print("tokenizer      ids  tokens  tokens per character")
    for name, tokenizer in tokenizers.items():
        count = len(tokenizer.encode(RHYME))
        print(f"{name:10} {tokenizer.vocab_size:7} {count:7} {count / len(RHYME):21.3f}")

    print(NEW)
    cut = {name: pieces(tokenizer, NEW) for name, tokenizer in tokenizers.items()}
    for name, tokens in cut.items():
        print(f"{name:10} {tokens if isinstance(tokens, str) else '|' + '|'.join(tokens) + '|'}")

    if picture is not None:
        figure = new_figure(9.0, 2.2)
        axes = figure.subplots()
        for row, tokens in enumerate(cut.values()):
            if isinstance(tokens, str):
                axes.text(0.2, row, tokens, va="center", style="italic")
            else:
                draw(axes, row, NEW, tokens)
                axes.text(len(NEW) + 0.5, row, f"{len(tokens)} tokens", va="center")
        axes.set_yticks(range(len(cut)), cut)
        axes.set(xlim=(0, len(NEW) + 5), ylim=(len(cut) - 0.5, -0.5), xticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        save(figure, picture)


def pieces(tokenizer: Tokenizer, text: str) -> list[str] | str:
    """Return the tokens of the text, or why there are none."""
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        return str(error).split(": ", 1)[1].split(";")[0]
    if isinstance(tokenizer, WordPieceTokenizer):
        return tokenizer.tokens(text)
    return [tokenizer.decode([id]) for id in ids]


def draw(axes: Axes, row: int, text: str, tokens: list[str]) -> None:
    """Draw the text one unit a character, each token a segment; what no token keeps stays blank."""
    end = 0
    for number, token in enumerate(tokens):
        part = token.removeprefix("##")
        start = text.index(part, end)
        end = start + len(part)
        color = f"C{number % 4}"
        axes.barh(row, len(part) - 0.1, 0.8, left=start, color=color, alpha=0.35)
        for place in range(start, end):
            axes.text(place + 0.45, row, text[place], ha="center", va="center", family="monospace")


if __name__ == "__main__":
    main(sys.argv[1:])
