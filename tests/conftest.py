"""What all tests share: where they run, and a fresh state of the random numbers."""

from __future__ import annotations

import gc
import os

import pytest

import gpugrad as gg
from gpugrad import backend, openblas

if (blas := openblas._threads()) is not None:
    blas.set(1)  # for what tests compute with NumPy: they run side by side


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu``, with the reason, where no GPU can be used."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    cupy, reason = backend.cupy_or_reason()
    if cupy is not None and os.environ.get("GPUGRAD_TEST_POOL") == "0":
        cupy.cuda.set_allocator(None)
    if cupy is None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over the tests: half a million objects that all stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from one seed, on the CPU unless the test is marked ``gpu``."""
    on_gpu = request.node.get_closest_marker("gpu") is not None
    monkeypatch.setenv("GPUGRAD_DEVICE", "cuda" if on_gpu else "cpu")
    gg.manual_seed(0)
