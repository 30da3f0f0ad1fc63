"""How many threads NumPy's matrix products take."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

# OpenBLAS's own name, and those it has in the wheels of NumPy
_SETTERS = tuple(
    f"{prefix}openblas_set_num_threads{suffix}"
    for prefix in ("scipy_", "")
    for suffix in ("64_", "")
)


def limit_threads(count: int, maps: Path = Path("/proc/self/maps")) -> bool:
    """Let OpenBLAS use `count` threads; return whether that could be done.

    Not when the environment asks for a number itself, nor with another BLAS.
    """
    if any(os.environ.get(name) for name in VARIABLES) or not maps.exists():
        return False
    paths = set(re.findall(r"/\S*openblas\S*", maps.read_text()))
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(ctypes.c_int(count))
                return True
    return False
