"""Print the table of faults and outcomes: `python tests/reliability/table.py --trials 240`.

Runs the tests that strike runs; --trials says how many runs are struck at random moments, and
--strike-seed at which. Other arguments are pytest's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    here = Path(__file__).parent
    files = [here / f"test_{name}.py" for name in ("crash", "faults", "random")]
    sys.exit(pytest.main([*map(str, files), "-v", "-n0", *sys.argv[1:]]))
