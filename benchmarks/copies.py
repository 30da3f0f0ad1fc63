"""Copies between layouts: heads to the front, columns to the front. No fused operation."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Built, Cost, Work

import gpugrad as gg
from gpugrad import backend
from gpugrad.cuda.copy import copy_strided


def _make(axes: tuple[int, ...], size: Any, device: str, dtype: str, torch: Any) -> Built:
    gg.manual_seed(0)
    x = bench.normal(size, dtype, device).data.transpose(axes)
    xp = backend.xp_of(x)
    out = xp.empty(x.shape, x.dtype)
    makers = {"definition": bench.only(lambda: xp.copyto(out, x))}
    if device != "cpu":
        makers["cuda"] = bench.only(lambda: copy_strided(x, out))
    if torch is not None:
        t = bench.to_torch(torch, x.transpose(axes)).permute(axes)
        makers["torch"] = bench.only(t.contiguous)
    return Built(Cost(2 * x.nbytes, 0), makers)


def _heads(size: Any, device: str, dtype: str, torch: Any) -> Built:
    return _make((0, 2, 1, 3), size, device, dtype, torch)


def _columns(size: Any, device: str, dtype: str, torch: Any) -> Built:
    return _make((1, 0), size, device, dtype, torch)


CASES = [
    Work("copy_strided", (64, 1024, 12, 64), (4, 1024, 12, 64), _heads, "heads"),
    Work("copy_strided", (65536, 768), (4096, 768), _columns, "transposed"),
]

if __name__ == "__main__":
    sys.exit(bench.main(["copies", *sys.argv[1:]]))
