"""Ctrl-C while the command `gpugrad` is still importing: it ends as commands do, without a trace.

Nothing has begun by then, so the signal may end the process itself. Programs that import gpugrad
see no change.
"""

from __future__ import annotations

import os
import signal
import sys


def _is_command() -> bool:
    """Return whether the process is `gpugrad ...` or `python -m gpugrad ...`."""
    program = sys.orig_argv[1:3]
    return program == ["-m", "gpugrad"] or os.path.basename((program or [""])[0]) == "gpugrad"


_importing = _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _importing:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def done() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    global _importing
    if _importing:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _importing = False
