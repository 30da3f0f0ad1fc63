"""A gated unit as one kernel made by gg.fuse, and as its operations one by one: bytes decide."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import bench
from bench import Built, Call, Cost, Work

import gpugrad as gg
from gpugrad import cuda


@gg.fuse
def gated(x: Any, gate: Any) -> Any:
    """Return silu(x) * gate."""
    return x * gg.sigmoid(x) * gate


def _make(size: tuple[int, ...], device: str, dtype: str, torch: Any) -> Built:
    gg.manual_seed(0)
    x, gate = (bench.normal(size, dtype, device, requires_grad=True) for _ in range(2))
    g = bench.normal(size, dtype, device)

    def calls(f: Callable[..., Any]) -> Iterator[Call]:
        yield Call("forward", lambda: f(x, gate))
        out = f(x, gate)
        yield Call("backward", lambda: gg.grad(out, [x, gate], g, retain_graph=True))

    def in_torch() -> Iterator[Call]:
        tx, tgate, tg = (bench.to_torch(torch, a.data) for a in (x, gate, g))

        def forward() -> Any:
            return torch.nn.functional.silu(tx) * tgate

        yield Call("forward", bench.without_graph(torch, forward))
        leaves = tx.requires_grad_(), tgate.requires_grad_()
        out = forward()
        yield Call("backward", lambda: torch.autograd.grad(out, leaves, tg, retain_graph=True))

    makers: dict[str, Any] = {}
    if device != "cpu" or cuda.emulated():  # without kernels the function itself runs
        makers["cuda"] = lambda: calls(gated)
    makers["definition"] = lambda: calls(gated.function)
    if torch is not None:
        makers["torch"] = in_torch
    n, moved = math.prod(size), x.data.nbytes
    return Built(Cost(3 * moved, 6 * n, 5 * moved, 11 * n), makers)


CASES = [Work("fuse", (65536, 3072), (1024, 3072), _make, "silu(x) * gate")]

if __name__ == "__main__":
    sys.exit(bench.main(["fuse", *sys.argv[1:]]))
