"""Softmax and its logarithm: attention's rows, a vocabulary, and along the first axis."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case

from gpugrad.registry import Sample


def _softmax(torch: Any, x: Any, axis: int) -> Any:
    return torch.softmax(x, axis)


def _log_softmax(torch: Any, x: Any, axis: int) -> Any:
    return torch.log_softmax(x, axis)


CASES = [
    Case(name, Sample(shape, axis=axis), Sample(small, axis=axis), f, label)
    for name, f in (("softmax", _softmax), ("log_softmax", _log_softmax))
    for shape, small, axis, label in (
        ((65536, 1024), (4096, 1024), 1, "rows"),
        ((8192, 50304), (80, 50304), 1, "rows"),
        ((1024, 65536), (1024, 4096), 0, "columns"),
    )
]

if __name__ == "__main__":
    sys.exit(bench.main(["softmax", *sys.argv[1:]]))
