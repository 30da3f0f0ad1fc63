"""Rotary positions of queries or keys: bytes decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case

from gpugrad.registry import Sample


def _torch(torch: Any, x: Any, cos: Any, sin: Any, start: int) -> Any:
    cos, sin = (table[start : start + x.shape[-2]] for table in (cos, sin))
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _sample(batches: int, heads: int, length: int, width: int) -> Sample:
    table = (length, width // 2)
    return Sample((batches, heads, length, width), table, table, start=0)


CASES = [
    Case("rotary", _sample(64, 12, 1024, 64), _sample(4, 12, 1024, 64), _torch, "heads"),
    Case("rotary", _sample(32, 16, 1024, 128), _sample(2, 16, 1024, 128), _torch, "heads"),
]

if __name__ == "__main__":
    sys.exit(bench.main(["rotary", *sys.argv[1:]]))
