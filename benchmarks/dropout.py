"""Dropout, alone and added to a residual: no mask in memory, bytes or the drawing decide."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import bench
from bench import Built, Call, Cost, Work

import gpugrad as gg
from gpugrad import backend
from gpugrad.fused import dropout, dropout_add
from gpugrad.ops import philox

P = 0.1


def _make(
    size: tuple[int, ...], device: str, dtype: str, torch: Any, residual: bool = False
) -> Built:
    """Build dropout(x), or y + dropout(x); PyTorch draws other numbers."""
    gg.manual_seed(0)
    x, y = (bench.normal(size, dtype, device, requires_grad=True) for _ in range(2))
    g = bench.normal(size, dtype, device)
    n, xp = math.prod(size), backend.xp_of(x.data)

    def fast() -> Iterator[Call]:
        def forward() -> Any:
            return dropout_add(x, y, P) if residual else dropout(x, P)

        yield Call("forward", forward)
        out = forward()
        yield Call("backward", lambda: gg.grad(out, x, g, retain_graph=True))

    def definition() -> Iterator[Call]:
        def dropped(array: Any) -> Any:
            keep = philox.keep_mask(xp, 0, 0, n, P).reshape(size)
            return xp.where(keep, array / array.dtype.type(1 - P), array.dtype.type(0))

        yield Call("forward", lambda: y.data + dropped(x.data) if residual else dropped(x.data))
        yield Call("backward", lambda: dropped(g.data))

    def in_torch() -> Iterator[Call]:
        tx, ty, tg = (bench.to_torch(torch, a.data) for a in (x, y, g))

        def forward() -> Any:
            out = torch.nn.functional.dropout(tx, P)
            return ty + out if residual else out

        yield Call("forward", bench.without_graph(torch, forward))
        tx.requires_grad_()
        out = forward()
        yield Call("backward", lambda: torch.autograd.grad(out, tx, tg, retain_graph=True))

    makers: dict[str, Any] = {bench.fast_path(device): fast, "definition": definition}
    if torch is not None:
        makers["torch"] = in_torch
    moved = x.data.nbytes
    return Built(Cost((3 if residual else 2) * moved, (1 + residual) * n, 2 * moved, n), makers)


CASES = [
    Work("dropout", (65536, 768), (2048, 768), _make),
    Work("dropout_add", (65536, 768), (2048, 768), functools.partial(_make, residual=True)),
]

if __name__ == "__main__":
    sys.exit(bench.main(["dropout", *sys.argv[1:]]))
