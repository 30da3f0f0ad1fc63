"""A corpus as ids on disk: encoded once, checked, then memory-mapped.

The file is a 128-byte little-endian header and the ids:

    8 bytes   magic "gpugradT"
    4 bytes   version, 1
    4 bytes   bytes per id, 2 or 4 (unsigned)
    8 bytes   number of ids
    8 bytes   vocabulary size
    32 bytes  SHA-256 of the tokenizer's JSON
    32 bytes  SHA-256 of the text
    32 bytes  SHA-256 of everything else: the 96 bytes above, then the ids
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpugrad.text.files import atomic_write
from gpugrad.text.protocol import Tokenizer

_MAGIC = b"gpugradT"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s32s")  # the checksum of 32 bytes follows
_START = _HEADER.size + 32
_NOTHING = "0" * 64


class DamagedTokenFileError(ValueError):
    """A token file that is truncated or whose checksum does not match."""


@dataclass(frozen=True)
class TokenFile:
    """An open token file: `ids` is its read-only memory map, 1-D uint16 or uint32."""

    path: Path
    ids: npt.NDArray[np.unsignedinteger]
    vocab_size: int
    tokenizer_fingerprint: str
    text_fingerprint: str
    checksum: str  # of all the rest, so of the ids, the tokenizer and the text: SHA-256 in hex


def write_tokens(
    path: str | os.PathLike[str],
    ids: npt.ArrayLike,
    vocab_size: int,
    tokenizer_fingerprint: str = _NOTHING,
    text_fingerprint: str = _NOTHING,
) -> TokenFile:
    """Write ids, 1-D integers in 0 ... vocab_size - 1, and open the file.

    They are kept as uint16 where the vocabulary allows, else as uint32. Fingerprints are SHA-256
    in hex. An existing file is replaced only once the new one is complete and on disk.
    """
    values = np.asarray(ids)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        raise ValueError(
            "write_tokens: ids must be 1-D integers, at least one, "
            f"got shape {values.shape} and dtype {values.dtype}"
        )
    if not 1 <= vocab_size <= 2**32:
        raise ValueError(f"write_tokens: vocab_size must be in 1..2**32, got {vocab_size}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        position = int(np.argmax(values == bad))
        raise ValueError(
            f"write_tokens: id {bad} at position {position} is outside 0..{vocab_size - 1}"
        )
    width = 2 if vocab_size <= 2**16 else 4
    data = values.astype(f"<u{width}")
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        width,
        data.size,
        vocab_size,
        _digest(tokenizer_fingerprint),
        _digest(text_fingerprint),
    )
    checksum = hashlib.sha256(header)
    checksum.update(data.data)
    with atomic_write(path) as file:
        file.write(header + checksum.digest())
        file.write(data.data)
    return open_tokens(path, verify=False)


def open_tokens(path: str | os.PathLike[str], verify: bool = True) -> TokenFile:
    """Memory-map a token file; `verify` reads it once through to compare the checksum.

    Raises DamagedTokenFileError for a truncated or altered file, ValueError for a file that is
    something else or from another version.
    """
    path = Path(path)
    with open(path, "rb") as file:
        header = file.read(_START)
    if header[:8] != _MAGIC[: len(header)]:
        raise ValueError(f"open_tokens: {path} is not a gpugrad token file")
    if len(header) < _START:
        raise DamagedTokenFileError(
            f"open_tokens: {path} is truncated: {len(header)} bytes, the header alone has {_START}"
        )
    _, version, width, count, vocab_size, tokenizer, text = _HEADER.unpack_from(header)
    if version != _VERSION:
        raise ValueError(
            f"open_tokens: {path} has version {version}; this gpugrad reads version {_VERSION}"
        )
    if width not in (2, 4) or count < 1:
        raise DamagedTokenFileError(
            f"open_tokens: {path} is damaged: its header says {count} ids of {width} bytes"
        )
    size, expected = path.stat().st_size, _START + count * width
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise DamagedTokenFileError(
            f"open_tokens: {path} is {state}: {size} bytes where {count} ids take {expected}"
        )
    ids = np.memmap(path, dtype=f"<u{width}", mode="r", offset=_START, shape=(count,))
    if verify:
        checksum = hashlib.sha256(header[: _HEADER.size])
        checksum.update(ids.data)
        if checksum.digest() != header[_HEADER.size :]:
            raise DamagedTokenFileError(
                f"open_tokens: {path} is damaged: its SHA-256 is not the one it was written with"
            )
    found = header[_HEADER.size :]
    return TokenFile(path, ids, vocab_size, tokenizer.hex(), text.hex(), found.hex())


def encode_corpus(text: str, tokenizer: Tokenizer, path: str | os.PathLike[str]) -> TokenFile:
    """Open the token file of `text` at `path`, encoding the text unless the file has it already.

    A token file of other text or another tokenizer is replaced, and a damaged one too, with a
    RuntimeWarning; a file that is something else is refused (ValueError).
    """
    text_fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    tokenizer_fingerprint = tokenizer.fingerprint()
    if os.path.lexists(path):
        try:
            tokens = open_tokens(path)
        except DamagedTokenFileError as error:
            warnings.warn(f"{error}; encoding the text again", RuntimeWarning, stacklevel=2)
        else:
            found = (tokens.tokenizer_fingerprint, tokens.text_fingerprint)
            if found == (tokenizer_fingerprint, text_fingerprint):
                return tokens
    ids = tokenizer.encode(text)
    return write_tokens(path, ids, tokenizer.vocab_size, tokenizer_fingerprint, text_fingerprint)


def split(
    ids: npt.NDArray[np.integer], train_fraction: float = 0.9
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Return the first `train_fraction` of the ids for training, the rest for validation."""
    if not 0 < train_fraction < 1:
        raise ValueError(f"split: train_fraction must be between 0 and 1, got {train_fraction}")
    boundary = int(len(ids) * train_fraction)
    return ids[:boundary], ids[boundary:]


def _digest(fingerprint: str) -> bytes:
    digest = bytes.fromhex(fingerprint)
    if len(digest) != 32:
        raise ValueError(
            f"write_tokens: a fingerprint is a SHA-256, 64 hex digits, got {fingerprint!r}"
        )
    return digest
