"""Kernels and products on arrays of the stand-in: by the emulator and by NumPy's reference."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import cuda
from .arrays import ndarray


def on_host(x: Any) -> Any:
    """Return an argument of a kernel with NumPy's array in the place of one of the stand-in."""
    if isinstance(x, np.ndarray):
        raise TypeError("a kernel on a GPU was given a NumPy array")
    if isinstance(x, ndarray):
        return x._values
    if hasattr(x, "_replace"):  # Strided
        return x._replace(array=on_host(x.array))
    return x


class Module:
    """The kernels of one source: ``gpugrad.cuda.device.Module`` whose driver is the emulator."""

    def __init__(
        self, source: str, defines: Mapping[str, object], name: str, device: int, since: int
    ) -> None:
        if int(cuda.Device(device).compute_capability) < since:
            raise RuntimeError(f"{name} needs a GPU of compute capability {since / 10}")
        emulator = importlib.import_module("gpugrad.emulator")
        self._emulated = emulator.Module(source, defines, name)
        self._how = emulator.Settings("plain")

    def get_function(self, name: str) -> Any:
        kernel, how = self._emulated.get_function(name), self._how

        def launch(
            grid: Any, block: Any, args: Sequence[Any], shared_mem: int = 0, *, reachable: Any = ()
        ) -> None:
            passed, near = [on_host(x) for x in args], [on_host(x) for x in reachable]
            cuda.queue(lambda: kernel(grid, block, passed, shared_mem, how=how, reachable=near))

        return launch


def _product(problem: Any, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any) -> None:
    """Queue a product, as ``gpugrad.cuda.gemm_plans.run`` does."""
    reference = importlib.import_module("gpugrad.cuda._gemm_numpy")
    x, y, z, *others = (on_host(each) for each in (a, b, out, bias, aux, alpha))
    cuda.queue(lambda: reference.run(x, y, z, problem.epilogue, *others, problem.beta))


def install() -> None:
    """Let gpugrad launch kernels in the emulator, and products without cublasLt."""
    device: Any = importlib.import_module("gpugrad.cuda.device")
    device.Module = Module
    plans: Any = importlib.import_module("gpugrad.cuda.gemm_plans")
    plans.run, plans.supports = _product, lambda problem: True
