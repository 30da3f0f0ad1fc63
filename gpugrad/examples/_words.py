"""Python source as words: what the examples about words read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UNKNOWN = "<unknown>"


def words_of(text: str) -> list[str]:
    """Return names, numbers and single signs in their order."""
    return re.findall(r"\w+|[^\w\s]", text)


def vocabulary(words: Sequence[str], size: int) -> list[str]:
    """Return UNKNOWN and the most frequent words, ``size`` in all; of equals the first by name."""
    counts = Counter(words)
    return [UNKNOWN, *sorted(counts, key=lambda word: (-counts[word], word))[: size - 1]]


def encode(words: Sequence[str], known: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the place of each word among those known, 0 for the others."""
    places = {word: i for i, word in enumerate(known)}
    return np.array([places.get(word, 0) for word in words])
