"""The norm of all gradients of a GPT, and clipping by it: bytes decide; see adamw.py."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import bench
from adamw import GPT2, SMALL, Parameters, in_torch
from bench import Built, Cost, Work

import gpugrad as gg
from gpugrad import backend


def _make(size: Parameters, device: str, dtype: str, torch: Any, max_norm: float) -> Built:
    """Build it; a norm of max_norm is clipped again by the next call, by a factor near 1."""
    parameters = size.draw(dtype, device)
    gradients = [p.grad.data.copy() for p in parameters]

    def definition() -> float:
        xp = backend.xp_of(gradients[0])
        flat = (g.reshape(-1).astype(xp.float32) for g in gradients)
        norm = math.sqrt(sum(float(xp.dot(g, g)) for g in flat))
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            for g in gradients:
                g *= g.dtype.type(factor)
        return norm

    makers = {
        bench.fast_path(device): bench.only(lambda: gg.optim.clip_grad_norm_(parameters, max_norm)),
        "definition": bench.only(definition),
    }
    if torch is not None:
        copies = in_torch(torch, parameters)
        clip = torch.nn.utils.clip_grad_norm_
        makers["torch"] = bench.only(lambda: clip(copies, max_norm))
    n = sum(g.size for g in gradients)
    moved = n * gradients[0].itemsize
    cost = Cost(moved, 2 * n) if max_norm == math.inf else Cost(3 * moved, 3 * n)
    return Built(cost, makers)


CASES = [
    Work("grad_norm", GPT2, SMALL, functools.partial(_make, max_norm=max_norm), label)
    for max_norm, label in ((math.inf, "norm"), (1.0, "clipped"))
]

if __name__ == "__main__":
    sys.exit(bench.main(["grad_norm", *sys.argv[1:]]))
