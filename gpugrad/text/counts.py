"""How often each sequence of up to n tokens occurs in a text: all that n-gram models know."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

# A table of pairs up to this size (32 MiB of counts); beyond it, the pairs that occur are sorted.
_LARGEST_TABLE = 2**22


class Level(NamedTuple):
    """The different m-grams of a text, numbered in the order of ``codes``.

    codes: sorted, (number of the first m - 1 tokens) * vocab_size + the last token, so that a code
        fits 64 bits for any m. counts: how often each occurs. preceded: how many different tokens
        stand before it somewhere; None for the longest.
    """

    codes: Ids
    counts: Ids
    preceded: Ids | None


class NGramCounts:
    """Counts of all m-grams of tokens, m = 1 ... order, in sorted arrays.

    tokens: 1-D integers in 0 ... vocab_size - 1, at least ``order`` of them. ``levels[m - 1]`` has
    the m-grams. Raises ValueError for other tokens or an order below 1.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.integer],
        vocab_size: int,
        order: int,
        where: str = "NGramCounts",
    ) -> None:
        if order < 1:
            raise ValueError(f"{where}: order must be at least 1, got {order}")
        text = checked_tokens(tokens, vocab_size, where, "tokens", order)
        self.vocab_size, self.order = vocab_size, order
        self.levels: list[Level] = []
        number: Ids = np.zeros(len(text), np.int64)  # of the (m - 1)-gram at each position
        known = 1
        for m in range(1, order + 1):
            place = number[: len(text) - m + 1] * vocab_size + text[m - 1 :]
            shorter = number
            codes, number, counts = _numbered(place, known * vocab_size)
            if m > 1:
                somewhere = np.empty(len(codes), np.int64)
                somewhere[number] = np.arange(len(number))
                preceded = np.bincount(shorter.take(somewhere + 1), minlength=known)
                self.levels[-1] = self.levels[-1]._replace(preceded=preceded)
            self.levels.append(Level(codes, counts, None))
            known = len(codes)

    def check(self, where: str) -> None:
        """Raise ValueError unless the levels can be those of some text."""
        known = 1
        for m, (codes, counts, preceded) in enumerate(self.levels, start=1):
            arrays = (codes, counts) if preceded is None else (codes, counts, preceded)
            if any(a.shape != codes.shape or a.ndim != 1 for a in arrays):
                raise ValueError(f"{where}: the arrays of level {m} do not have one length")
            if not len(codes) or codes[0] < 0 or codes[-1] >= known * self.vocab_size:
                raise ValueError(f"{where}: the codes of level {m} are not of this vocabulary")
            if (np.diff(codes) <= 0).any() or counts.min() < 1:
                raise ValueError(f"{where}: the codes of level {m} are not counts in order")
            known = len(codes)

    def find(self, prefix: Ids, token: npt.ArrayLike, m: int) -> Ids:
        """Return the number of each m-gram, -1 if it does not occur.

        prefix: the numbers of its first m - 1 tokens, or -1; 0 for m = 1. token: the last ones.
        """
        codes = self.levels[m - 1].codes
        wanted = prefix * self.vocab_size + np.asarray(token)
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.where((prefix >= 0) & (codes[place] == wanted), place, -1)

    def find_all(self, grams: npt.NDArray[np.integer]) -> Ids:
        """Return the number of each m-gram (..., m), -1 if it does not occur; 0 for m = 0."""
        number = np.zeros(grams.shape[:-1], np.int64)
        for m in range(1, grams.shape[-1] + 1):
            number = self.find(number, grams[..., m - 1], m)
        return number

    def followed(self, m: int, weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return for each (m - 1)-gram the sum of the weights of the m-grams that begin with it."""
        known = len(self.levels[m - 2].codes) if m > 1 else 1
        prefixes = self.levels[m - 1].codes // self.vocab_size
        sums = np.bincount(prefixes, weights=weights, minlength=known)
        return sums.astype(np.float64, copy=False)


def checked_tokens(
    tokens: npt.NDArray[np.integer], vocab_size: int, where: str, name: str, least: int
) -> Ids:
    """Return 1-D tokens as int64; raise ValueError for too few, or ids out of the vocabulary."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.size < least:
        raise ValueError(
            f"{where}: {name} must be 1-D with at least {least} token{'s' * (least > 1)}, "
            f"got shape {tokens.shape}"
        )
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{where}: {name} must be integers, got dtype {tokens.dtype}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{where}: {name} has ids {low}..{high}, the vocabulary 0..{vocab_size - 1}"
        )
    return tokens.astype(np.int64, copy=False)


def _numbered(values: Ids, size: int) -> tuple[Ids, Ids, Ids]:
    """Return the different values in order, the place of each value among them, their counts."""
    if size > _LARGEST_TABLE:
        return np.unique(values, return_inverse=True, return_counts=True)
    table = np.bincount(values, minlength=size)
    different = np.flatnonzero(table)
    places = np.cumsum(table > 0) - 1
    return different, places[values], table[different]
