"""The perceptron of a block of GPT-2, two matrix products with GELU between: operations decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case, Weights

from gpugrad.registry import Sample


def _torch(
    torch: Any, x: Any, up: Any, up_bias: Any, down: Any, down_bias: Any, approximate: str
) -> Any:
    f = torch.nn.functional
    return f.linear(f.gelu(f.linear(x, up, up_bias), approximate=approximate), down, down_bias)


def _sample(rows: int, approximate: str) -> Sample:
    up, down = Weights((3072, 768)), Weights((768, 3072))
    return Sample((rows, 768), up, (3072,), down, (768,), approximate=approximate)


CASES = [
    Case("mlp", _sample(65536, form), _sample(256, form), _torch, label)
    for form, label in {"tanh": "tanh", "none": "exact"}.items()
]

if __name__ == "__main__":
    sys.exit(bench.main(["mlp", *sys.argv[1:]]))
