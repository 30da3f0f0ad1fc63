"""What every tokenizer offers, and the checks they share."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpugrad.text.files import atomic_write

Ids = npt.NDArray[np.int64]


class Tokenizer(Protocol):
    """What the rest of gpugrad needs of a tokenizer: ids are 0 ... `vocab_size` - 1."""

    vocab_size: int

    def encode(self, text: str) -> Ids:
        """Return the ids of `text`, 1-D int64."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of a 1-D sequence of ids."""

    def to_json(self) -> str:
        """Return the JSON text from which `load_tokenizer` rebuilds this tokenizer."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file that `load_tokenizer` reads; an existing file is replaced whole."""
        with atomic_write(path) as file:
            file.write(self.to_json().encode())

    def fingerprint(self) -> str:
        """Return the SHA-256 of the JSON text, in hex: equal tokenizers have equal ones."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def require_text(text: object, where: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{where}: text must be a str, got {type(text).__name__}")


def check_ids(ids: npt.ArrayLike, vocab_size: int, where: str) -> Ids:
    values = np.asarray(ids)
    if values.ndim != 1:
        raise ValueError(f"{where}: ids must be 1-D, got shape {values.shape}")
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"{where}: ids must be integers, got dtype {values.dtype}")
    outside = (values < 0) | (values >= vocab_size)
    if outside.any():
        position = int(np.argmax(outside))
        raise ValueError(
            f"{where}: id {values[position]} at position {position} is outside 0..{vocab_size - 1}"
        )
    return values.astype(np.int64)
