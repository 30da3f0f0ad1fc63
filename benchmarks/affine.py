"""Linear layers of GPT-2 with their biases: a matrix product each, floating operations decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case, Weights

from gpugrad.registry import Sample


def _torch(torch: Any, x: Any, weight: Any, bias: Any) -> Any:
    return torch.nn.functional.linear(x, weight, bias)


def _sample(rows: int, features: int, out: int) -> Sample:
    return Sample((rows, features), Weights((out, features)), (out,))


CASES = [
    Case("affine", _sample(65536, 768, out), _sample(1024, 768, out), _torch, label)
    for label, out in {"queries, keys, values": 2304, "projection": 768}.items()
]

if __name__ == "__main__":
    sys.exit(bench.main(["affine", *sys.argv[1:]]))
