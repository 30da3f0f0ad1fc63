"""Sums over the rows of a matrix, the gradient of a bias: bytes decide. No fused operation."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Built, Cost, Work

import gpugrad as gg
from gpugrad import backend
from gpugrad.cuda.column_sums import column_sums


def _make(size: tuple[int, int], device: str, dtype: str, torch: Any) -> Built:
    gg.manual_seed(0)
    x = bench.normal(size, dtype, device).data
    xp, kind = backend.xp_of(x), x.dtype
    makers = {"definition": bench.only(lambda: backend.total(xp, x, axis=0))}
    if device != "cpu":
        makers["cuda"] = bench.only(lambda: column_sums(x, kind))
    if torch is not None:
        t = bench.to_torch(torch, x)
        makers["torch"] = bench.only(lambda: t.sum(0))
    return Built(Cost(x.nbytes, x.size), makers)


CASES = [
    Work("column_sums", (65536, 768), (16384, 768), _make),
    Work("column_sums", (65536, 3072), (4096, 3072), _make),
]

if __name__ == "__main__":
    sys.exit(bench.main(["column_sums", *sys.argv[1:]]))
