"""Random numbers and masks (kernels/random.cu), and the array library's own generator.

The floor counts the bytes written alone; the drawing takes integer operations beside it. NumPy and
CuPy draw float32 whatever the dtype is.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import bench
from bench import Built, Cost, Work

import gpugrad as gg
from gpugrad import backend


def _library(kind: str, xp: Any, n: int) -> Callable[[], object]:
    """Return what fills n elements with NumPy's or CuPy's default generator."""
    rng = xp.random.default_rng(0)
    return {
        "uniform": lambda: rng.random(n, dtype=xp.float32),
        "normal": lambda: rng.standard_normal(n, dtype=xp.float32),
        "integers": lambda: rng.integers(0, 50304, n),
        "bernoulli": lambda: (rng.random(n, dtype=xp.float32) < 0.9).astype(xp.float32),
    }[kind]


def _in_torch(kind: str, torch: Any, n: int, device: str, dtype: Any) -> Callable[[], object]:
    place = {"device": torch.device(device), "dtype": dtype}
    return {
        "uniform": lambda: torch.rand(n, **place),
        "normal": lambda: torch.randn(n, **place),
        "integers": lambda: torch.randint(50304, (n,), device=place["device"]),
        "bernoulli": lambda: torch.empty(n, **place).bernoulli_(0.9),
    }[kind]


def _make(n: int, device: str, dtype: str, torch: Any, kind: str) -> Built:
    draw = {
        "uniform": lambda: gg.random.uniform(size=n, dtype=dtype, device=device),
        "normal": lambda: gg.random.normal(size=n, dtype=dtype, device=device),
        "integers": lambda: gg.random.integers(50304, size=n, device=device),
        "bernoulli": lambda: gg.random.bernoulli(0.9, size=n, dtype=dtype, device=device),
    }[kind]
    xp = backend.namespace(device)
    library = _library(kind, xp, n)
    makers = {
        bench.fast_path(device): bench.only(draw),
        f"{xp.__name__}.random": bench.only(library),
    }
    if torch is not None:
        wanted = getattr(torch, dtype)
        makers["torch"] = bench.only(_in_torch(kind, torch, n, device, wanted))
    itemsize = 8 if kind == "integers" else backend.as_dtype(dtype).itemsize
    return Built(Cost(n * itemsize, 0), makers)


CASES = [
    Work(f"random.{kind}", 2**26, 2**20, functools.partial(_make, kind=kind))
    for kind in ("uniform", "normal", "integers", "bernoulli")
]

if __name__ == "__main__":
    sys.exit(bench.main(["random_fills", *sys.argv[1:]]))
