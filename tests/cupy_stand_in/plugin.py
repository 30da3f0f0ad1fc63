"""Runs the tests marked ``gpu`` on the stand-in: ``pytest -p tests.cupy_stand_in.plugin -m gpu``.

GPUGRAD_STAND_IN is the compute capability of the GPU that it stands for, 90 by default.
"""

from __future__ import annotations

import os
import re

import pytest

from . import install

install(int(os.environ.get("GPUGRAD_STAND_IN", "90")))

# What the stand-in cannot run, or what would say nothing new: patterns of the names of tests.
ELSEWHERE = {
    r"^tests/benchmarks/": "times a GPU, and counts its memory",
    r"^tests/cuda/test_gemm\.py": "cublasLt against NumPy's reference, which takes its place here",
    r"^tests/emulator/": "the hardware against the emulator, which takes its place here",
    r"test_large_on_the_gpu": "minutes in the emulator; the same operations run at small sizes",
    r"test_the_gpu_computes_the_same": "the same kernels run in the emulator in tests beside it",
    r"test_a_graph_gives_the_same_bits": "a minute; steps of a smaller GPT are compiled and run",
    r"100000[13]\b": "of a size that takes seconds; smaller ones run",
    r"test_runs_on_several_streams": "there is but one queue here",
    r"test_(dtype_is_kept|on_the_gpu)\[.*float(16|32)\b(?<!bfloat16)": "bfloat16 runs, of which "
    "CuPy knows least; every dtype is kernels of its own, to be compiled for the emulator",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:GPU 0 has compute capability:UserWarning")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is ``ELSEWHERE``."""
    pattern = re.compile("|".join(ELSEWHERE))
    config.hook.pytest_deselected(items=[i for i in items if pattern.search(i.nodeid)])
    items[:] = [i for i in items if not pattern.search(i.nodeid)]
