"""Root-mean-square normalisation, alone and with the residual added first: bytes decide."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Case

from gpugrad.registry import Sample


def _torch(torch: Any, x: Any, weight: Any, residual: Any, eps: float) -> Any:
    h = x if residual is None else x + residual
    out = torch.nn.functional.rms_norm(h, h.shape[-1:], weight, eps)
    return out if residual is None else (out, h)


def _sample(rows: int, columns: int, residual: bool) -> Sample:
    shape = (rows, columns)
    return Sample(shape, (columns,), shape if residual else None, eps=1e-6)


CASES = [
    Case("rms_norm", _sample(rows, c, r), _sample(rows // 16, c, r), _torch, label)
    for rows, c in ((65536, 768), (16384, 4096))
    for r, label in ((False, "alone"), (True, "residual"))
]

if __name__ == "__main__":
    sys.exit(bench.main(["rms_norm", *sys.argv[1:]]))
