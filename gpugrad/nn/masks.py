"""Masks of attention: true where a query may look, for ``attn_mask`` of attention and models."""

from __future__ import annotations

from typing import Any

from .. import backend, ops
from ..registry import describe
from ..tensor import Tensor


def padding_mask(tokens: Any) -> Tensor:
    """Return (B, 1, 1, T): every query may look at the positions where ``tokens`` (B, T) is true.

    Raises ValueError for anything but booleans of two axes.
    """
    tokens = ops.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype != backend.bool_:
        raise ValueError(
            "padding_mask: tokens must be booleans (B, T), true where a token is and no padding; "
            f"got {describe(tokens)}"
        )
    return tokens[:, None, None, :]


def document_mask(documents: Any) -> Tensor:
    """Return (B, 1, T, T): a query may look at the positions of its own document only.

    documents: integers (B, T), the number of the document that each position belongs to, one of
    its own for padding (see ``gpugrad.text.pack``). Raises ValueError for anything else.
    """
    documents = ops.asarray(documents)
    if documents.ndim != 2 or documents.dtype.kind not in "iu":
        raise ValueError(
            f"document_mask: documents must be integers (B, T), got {describe(documents)}"
        )
    return (documents[:, :, None] == documents[:, None, :])[:, None]
