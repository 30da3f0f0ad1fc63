"""The processes of a compiled step on NumPy: rows worked on side by side, each with a Python.

Threads that call NumPy wait for each other: who comes back from a call while another holds the
interpreter lock sleeps, which takes longer than many a call. A process has a lock of its own. So a
step that is replayed has helpers forked from this process: they find the same work on the same
memory, which both share, and take their part of the rows (team.py). What they are told and what
they answer are a few words of that memory, at which both sides look for a while before they sleep
(helper.py).

How rows are cut is up to ``threads.for_rows``; so results are those of threads, to the last bit.
Helpers work on nothing but rows of arrays in shared memory. They end with the step they belong to,
or with this process. Where a process cannot be forked, or with ``GPUGRAD_FORK=0``, threads do it.
"""

from __future__ import annotations

import os
import platform
import sys

from .. import threads
from .helper import VARIABLE, is_helper
from .memory import Memory
from .team import Team, shareable

__all__ = ["LEAST", "VARIABLE", "Memory", "Team", "available", "is_helper", "shareable"]

LEAST = 1 << 20  # bytes of a step's temporaries below which nobody has to help


def available() -> bool:
    """Return whether a step may have helpers; ValueError where GPUGRAD_FORK is neither 0 nor 1.

    There are some on Linux, on x86-64, where ``threads.get_num_threads()`` is 2 or more.
    """
    allowed = asked()
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return allowed and here and threads.get_num_threads() > 1


def asked() -> bool:
    """Return whether GPUGRAD_FORK lets steps have helpers; ValueError for neither 0 nor 1."""
    asked = os.environ.get(VARIABLE) or "1"
    if asked not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {asked!r}")
    return asked == "1"
