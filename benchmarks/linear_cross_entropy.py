"""The tied head of GPT-2 and its loss, three products in all; logits whole or in chunks."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case, Ids, Weights

from gpugrad.registry import Sample


def _torch(torch: Any, x: Any, weight: Any, target: Any, **statics: Any) -> Any:
    f = torch.nn.functional
    return f.cross_entropy(f.linear(x, weight).float(), target).to(torch.float32)


def _sample(rows: int, classes: int, chunk: int | None) -> Sample:
    statics: dict[str, Any] = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    given = (rows, 768), Weights((classes, 768)), Ids((rows,), classes)
    return Sample(*given, **statics, chunk=chunk, needs=(True, True))


CASES = [
    Case(
        "linear_cross_entropy",
        _sample(16384, 50304, chunk),
        _sample(64, 8192, chunk and 16),
        _torch,
        label,
    )
    for label, chunk in {"whole": None, "chunks": 2048}.items()
]

if __name__ == "__main__":
    sys.exit(bench.main(["linear_cross_entropy", *sys.argv[1:]]))
