"""One text in four kinds of tokens: characters, words, and subwords by BPE and by WordPiece.

Few kinds of tokens make long sequences, many make short ones: characters stand at one end, words at
the other, subwords between them, with frequent words whole and rare ones in pieces. Byte-level BPE
gives back every text; WordPiece forgets white space and knows only its characters; words know only
themselves. Subwords need the extra ``text``.

    python -m gpugrad.examples.tokenizers

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

from gpugrad.examples._command import command
from gpugrad.examples._rhyme import RHYME
from gpugrad.text import BPETokenizer, CharTokenizer, Tokenizer, WordPieceTokenizer, WordTokenizer

NEW = "the cow that milks the unlucky dog"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how many tokens each tokenizer makes of the rhyme, and what it makes of a new line."""
    command(__doc__).parse_args(arguments)
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
    for name, tokenizer in tokenizers.items():
        print(f"{name:10} {pieces(tokenizer, NEW)}")


def pieces(tokenizer: Tokenizer, text: str) -> str:
    """Return the tokens of the text, or why there are none."""
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        return str(error).split(": ", 1)[1].split(";")[0]
    if isinstance(tokenizer, WordPieceTokenizer):
        return f"|{'|'.join(tokenizer.tokens(text))}|"
    return f"|{'|'.join(tokenizer.decode([id]) for id in ids)}|"


if __name__ == "__main__":
    main(sys.argv[1:])
