"""GELU between the layers of a feed-forward block, alone and with the bias: bytes decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case

from gpugrad.registry import Sample


def _gelu(torch: Any, x: Any, approximate: str) -> Any:
    return torch.nn.functional.gelu(x, approximate=approximate)


def _bias_gelu(torch: Any, x: Any, bias: Any, approximate: str) -> Any:
    return torch.nn.functional.gelu(x + bias, approximate=approximate)


SIZES = (65536, 3072), (1024, 3072)  # on a GPU, else
LABELS = {"none": "exact", "tanh": "tanh"}

CASES = [
    *(
        Case("gelu", *(Sample(size, approximate=form) for size in SIZES), _gelu, label)
        for form, label in LABELS.items()
    ),
    *(
        Case(
            "bias_gelu",
            *(Sample(size, (size[1],), approximate=form) for size in SIZES),
            _bias_gelu,
            label,
        )
        for form, label in LABELS.items()
    ),
]

if __name__ == "__main__":
    sys.exit(bench.main(["gelu", *sys.argv[1:]]))
