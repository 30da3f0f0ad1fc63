"""Print the table of faults and outcomes: `python tests/reliability/table.py --trials 240`.

Runs every test of this folder; --trials says how many runs are struck at random moments, and
--strike-seed at which. Other arguments are pytest's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "-n0", *sys.argv[1:]]))
