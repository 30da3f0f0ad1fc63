"""What the tests of gg.compile share; they find plain_and_compiled.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def rng() -> np.random.Generator:
    """Draw other numbers in every run."""
    return np.random.default_rng()


@pytest.fixture(params=["kernels", "numpy"])
def launched(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compile to launches of kernels, which the emulator runs, and to calls of NumPy."""
    with importlib.import_module("plain_and_compiled").WAYS[request.param]():
        yield request.param
