"""What the tests of gg.compile share; they find plain_and_compiled.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpugrad import emulator

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def rng() -> np.random.Generator:
    """Draw other numbers in every run."""
    return np.random.default_rng()


@pytest.fixture
def emulated() -> Iterator[None]:
    """Run kernels in the emulator."""
    with emulator.enabled("plain"):
        yield
