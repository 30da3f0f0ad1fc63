"""A step of gradient descent with momentum on all parameters of a GPT; see adamw.py."""

from __future__ import annotations

import sys
from typing import Any

import bench
from adamw import GPT2, SMALL, Parameters, steps
from bench import Built, Cost, Work

import gpugrad as gg


def _make(size: Parameters, device: str, dtype: str, torch: Any) -> Built:
    settings = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
    return steps(
        size,
        device,
        dtype,
        torch,
        lambda parameters: gg.optim.SGD(parameters, **settings),
        lambda torch, parameters: torch.optim.SGD(parameters, fused=True, **settings),
        lambda n, half: Cost((22 if half else 20) * n, 7 * n),
    )


CASES = [Work("sgd", GPT2, SMALL, _make, "momentum")]

if __name__ == "__main__":
    sys.exit(bench.main(["sgd", *sys.argv[1:]]))
