"""A step of AdamW on all parameters of a GPT: bytes decide, and on a GPU the number of launches.

In half precision gpugrad keeps a float32 master copy of the parameters; PyTorch does not, and so
moves fewer bytes for worse training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import bench
from bench import Built, Cost, Work

import gpugrad as gg


class Parameters(NamedTuple):
    """The parameters of a GPT with GPT-2's architecture."""

    layers: int
    width: int
    vocabulary: int
    block: int

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each."""
        c = self.width
        layer = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,)]
        layer += [(c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,)]
        return [(self.vocabulary, c), (self.block, c), *layer * self.layers, (c,), (c,)]

    def __str__(self) -> str:
        return f"GPT {self.layers}x{self.width}"

    def draw(self, dtype: str, device: str) -> list[Any]:
        """Return parameters and gradients, normal numbers."""
        gg.manual_seed(0)
        drawn = []
        for shape in self.shapes():
            p = bench.normal(shape, dtype, device, requires_grad=True)
            p.grad = bench.normal(shape, dtype, device)
            drawn.append(p)
        return drawn


GPT2 = Parameters(12, 768, 50257, 1024)
SMALL = Parameters(4, 384, 16384, 256)


def in_torch(torch: Any, parameters: list[Any]) -> list[Any]:
    """Return PyTorch's copies of parameters and gradients."""
    copies = []
    for p in parameters:
        copy = bench.to_torch(torch, p.data).requires_grad_()
        copy.grad = bench.to_torch(torch, p.grad.data)
        copies.append(copy)
    return copies


def steps(
    size: Parameters,
    device: str,
    dtype: str,
    torch: Any,
    ours: Callable[[list[Any]], Any],
    theirs: Callable[[Any, list[Any]], Any],
    cost: Callable[[int, bool], Cost],
) -> Built:
    """Build a step of an optimiser; ``cost`` takes the number of elements and whether it is half.

    Every call is one more step with the same gradients.
    """
    parameters = size.draw(dtype, device)
    optimizer = ours(parameters)
    makers = {bench.fast_path(device): bench.only(optimizer.step)}
    if device != "cpu":  # without its kernel an optimiser runs on CuPy, array by array
        plain = ours(size.draw(dtype, device))
        plain.source = None
        makers["definition"] = bench.only(plain.step)
    if torch is not None:
        makers["torch"] = bench.only(theirs(torch, in_torch(torch, parameters)).step)
    return Built(cost(sum(p.size for p in parameters), dtype != "float32"), makers)


def _make(size: Parameters, device: str, dtype: str, torch: Any) -> Built:
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    return steps(
        size,
        device,
        dtype,
        torch,
        lambda parameters: gg.optim.AdamW(parameters, **settings),
        lambda torch, parameters: torch.optim.AdamW(parameters, fused=True, **settings),
        lambda n, half: Cost((30 if half else 28) * n, 12 * n),
    )


CASES = [Work("adamw", GPT2, SMALL, _make)]

if __name__ == "__main__":
    sys.exit(bench.main(["adamw", *sys.argv[1:]]))
