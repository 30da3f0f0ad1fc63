"""What the tests of kernels share: a record of the matrix products; NumPy that rounds alike."""

from __future__ import annotations

import importlib
from typing import Any

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
