"""The norm of all gradients of a GPT, and clipping by it: bytes decide; see adamw.py."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import bench
from adamw import GPT2, SMALL, Parameters, in_torch
from bench import Built, Cost, Work

import gpugrad as gg
from gpugrad import backend


def _limits(clipped: bool) -> Iterator[float]:
    """Yield the largest norms to allow: always below the norm that the last call left, or none."""
    limit = 1.0 if clipped else math.inf
    while True:
        yield limit
        limit *= 0.999


def _make(size: Parameters, device: str, dtype: str, torch: Any, clipped: bool) -> Built:
    parameters = size.draw(dtype, device)
    gradients = [p.grad.data.copy() for p in parameters]
    ours, plain, theirs = (_limits(clipped) for _ in range(3))

    def definition() -> float:
        xp = backend.xp_of(gradients[0])
        flat = (g.reshape(-1).astype(xp.float32) for g in gradients)
        norm = math.sqrt(sum(float(xp.dot(g, g)) for g in flat))
        factor = next(plain) / (norm + 1e-6)
        if factor < 1:
            for g in gradients:
                g *= g.dtype.type(factor)
        return norm

    makers = {
        bench.fast_path(device): bench.only(
            lambda: gg.optim.clip_grad_norm_(parameters, next(ours))
        ),
        "definition": bench.only(definition),
    }
    if torch is not None:
        copies = in_torch(torch, parameters)
        clip = torch.nn.utils.clip_grad_norm_
        makers["torch"] = bench.only(lambda: clip(copies, next(theirs)))
    n = sum(g.size for g in gradients)
    moved = n * gradients[0].itemsize
    return Built(Cost(3 * moved, 3 * n) if clipped else Cost(moved, 2 * n), makers)


CASES = [
    Work("grad_norm", GPT2, SMALL, functools.partial(_make, clipped=clipped), label)
    for clipped, label in ((False, "norm"), (True, "clipped"))
]

if __name__ == "__main__":
    sys.exit(bench.main(["grad_norm", *sys.argv[1:]]))
