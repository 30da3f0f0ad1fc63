"""Embedding of tokens: a table with more rows than are read, and one with far fewer."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case, Ids

from gpugrad.registry import Sample


def _torch(torch: Any, ids: Any, weight: Any, padding_idx: int | None) -> Any:
    return torch.nn.functional.embedding(ids, weight, padding_idx)


def _sample(batch: int, length: int, rows: int, columns: int) -> Sample:
    return Sample(Ids((batch, length), rows), (rows, columns), padding_idx=None)


CASES = [
    Case(
        "embedding", _sample(64, 1024, 50304, 768), _sample(16, 1024, 8192, 768), _torch, "tokens"
    ),
    Case("embedding", _sample(64, 1024, 1024, 768), _sample(16, 1024, 64, 768), _torch, "few rows"),
]

if __name__ == "__main__":
    sys.exit(bench.main(["embedding", *sys.argv[1:]]))
