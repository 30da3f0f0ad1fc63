"""What the tests of kernels share: a record of the matrix products; NumPy that rounds alike;
arrays whose elements lie any distance apart.
"""

from __future__ import annotations

import importlib
import math
import mmap
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpugrad import openblas


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of all matrix products that are computed from now on, as Problems."""
    gemm = importlib.import_module("gpugrad.cuda.gemm")
    seen: list[Any] = []
    run = gemm._run

    def recorded(problem: Any, *arrays: Any) -> None:
        seen.append(problem)
        run(problem, *arrays)

    monkeypatch.setattr(gemm, "_run", recorded)
    return seen


@pytest.fixture
def without_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have optimisers round every operation as kernels do in the emulator, and sum in float64.

    One pass of OpenBLAS rounds once for a product and a sum.
    """
    monkeypatch.setattr(openblas, "_axpby", dict)
    monkeypatch.setattr(openblas, "available", lambda: False)


@pytest.fixture
def apart() -> Callable[[np.ndarray, int, int], np.ndarray]:
    """Return a function of x, an axis and a distance, which returns a copy of x whose elements lie
    so many elements apart along the axis: more, if need be, than there is memory.
    """

    def moved(x: np.ndarray, axis: int, distance: int) -> np.ndarray:
        steps = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
        steps[axis] = distance
        count = 1 + sum((n - 1) * step for n, step in zip(x.shape, steps, strict=True))
        with tempfile.TemporaryFile() as file:  # of which only what is touched exists
            file.truncate(count * x.itemsize)
            memory = np.frombuffer(mmap.mmap(file.fileno(), 0), x.dtype)
        made: np.ndarray = np.ndarray(
            x.shape, x.dtype, memory, 0, [step * x.itemsize for step in steps]
        )
        made[...] = x
        return made

    return moved
