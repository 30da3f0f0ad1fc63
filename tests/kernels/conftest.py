"""What the tests of kernels share: a record of the matrix products."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


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
