from __future__ import annotations

import sys
from pathlib import Path

# The benchmarks are scripts beside the package: they import each other by plain name.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
