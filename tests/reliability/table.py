"""Print the table of faults and outcomes: `python tests/reliability/table.py`.

Runs the tests that strike runs. --trials says how often they are struck at random moments, and
--strike-seed at which; --flip-stride 1 flips every bit of every file of a run. Other arguments are
pytest's. In the suite a fixed few of these trials run, here by default 240 and one bit of 211.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        sys.exit()
    here = Path(__file__).parent
    files = [here / f"test_{name}.py" for name in ("crash", "faults", "flips", "random")]
    sys.exit(pytest.main([*map(str, files), "-v", "-n0", "--trials=240", *sys.argv[1:]]))
