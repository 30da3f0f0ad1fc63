"""Layer normalisation, alone and with the residual added first: bytes decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case

from gpugrad.registry import Sample


def _torch(torch: Any, x: Any, weight: Any, bias: Any, residual: Any, eps: float) -> Any:
    h = x if residual is None else x + residual
    out = torch.nn.functional.layer_norm(h, h.shape[-1:], weight, bias, eps)
    return out if residual is None else (out, h)


def _sample(rows: int, columns: int, residual: bool) -> Sample:
    shape = (rows, columns)
    return Sample(shape, (columns,), (columns,), shape if residual else None, eps=1e-5)


CASES = [
    Case("layer_norm", _sample(65536, c, r), _sample(4096, c, r), _torch, label)
    for c in (768, 1600)
    for r, label in ((False, "alone"), (True, "residual"))
]

if __name__ == "__main__":
    sys.exit(bench.main(["layer_norm", *sys.argv[1:]]))
