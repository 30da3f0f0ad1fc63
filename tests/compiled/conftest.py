"""Finds what the tests of gg.compile share: plain_and_compiled.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
