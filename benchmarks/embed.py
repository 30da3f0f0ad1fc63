"""The vectors of tokens and of their positions, summed: bytes decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case, Ids

from gpugrad.registry import Sample


def _torch(torch: Any, ids: Any, tokens: Any, positions: Any, start: int) -> Any:
    f = torch.nn.functional
    return f.embedding(ids, tokens) + positions[start : start + ids.shape[1]]


def _sample(batch: int, length: int, rows: int) -> Sample:
    return Sample(Ids((batch, length), rows), (rows, 768), (length, 768), start=0)


CASES = [Case("embed", _sample(64, 1024, 50304), _sample(8, 256, 8192), _torch, "GPT-2")]

if __name__ == "__main__":
    sys.exit(bench.main(["embed", *sys.argv[1:]]))
