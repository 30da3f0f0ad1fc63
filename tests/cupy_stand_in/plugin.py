"""Runs the tests marked ``gpu`` on the stand-in: ``pytest -p tests.cupy_stand_in.plugin -m gpu``.

GPUGRAD_STAND_IN is the compute capability of the GPU that it stands for, 90 by default.
"""

from __future__ import annotations

import os

import pytest

from . import install

install(int(os.environ.get("GPUGRAD_STAND_IN", "90")))

# What the stand-in cannot run, or what would say nothing: parts of the names of tests, and why.
ELSEWHERE = {
    "tests/benchmarks/": "times a GPU, and counts its memory",
    "tests/cuda/test_gemm.py": "cublasLt against NumPy's reference, which takes its place here",
    "tests/emulator/test_conformance.py": "the hardware against the emulator, which is its own",
    "test_large_on_the_gpu": "minutes in the emulator; the same operations run at small sizes",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:GPU 0 has compute capability:UserWarning")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is ``ELSEWHERE``."""
    left = [item for item in items if any(name in item.nodeid for name in ELSEWHERE)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]
