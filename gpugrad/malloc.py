"""Freed memory stays with the process, so that new arrays do not wait for the kernel.

NumPy takes the memory of an array from malloc and gives it back with the last reference. Large
pieces glibc returns to the system at once, and those at the end of its heap soon after: the next
array then faults on every page it touches, and the system fills each page with zeros, which takes
longer than most elementwise operations. A training step needs the same memory in every step.

There is no pool of arrays beside this, for there is nothing left to gain: a training step of a GPT
(4 layers, 128 wide, or 6 layers, 384 wide) faults on 2 to 3 pages, and an array from malloc costs
0.1 µs more than one from a list. A compiled step (``gg.compile``) has its arrays in one arena.

The settings are the process's, not gpugrad's alone: freed pieces of up to 32 MiB (the most that
glibc allows) go back to its heap, and the heap does not shrink; what it holds is reused by all
parts of the program. ``GPUGRAD_MALLOC=system`` leaves malloc alone, and so do glibc's own variables
(``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``), which say what is
wanted. Without glibc (macOS, Windows, musl) nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import os

VARIABLE = "GPUGRAD_MALLOC"
CHOICES = ("keep", "system")
OTHERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")  # glibc's

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>; mallopt(3)
_LARGEST = 1 << 25  # HEAP_MAX_SIZE / 2: glibc refuses a larger threshold
_NEVER = -1


def asked() -> str:
    """Return what GPUGRAD_MALLOC asks for; ValueError for what is none of CHOICES."""
    asked = os.environ.get(VARIABLE) or "keep"
    if asked not in CHOICES:
        raise ValueError(f"{VARIABLE} must be {' or '.join(CHOICES)}, got {asked!r}")
    return asked


@functools.cache
def keep_freed() -> bool:
    """Let malloc keep what is freed, from now on; return whether it does by our doing.

    The first call decides: the environment is not read again. Raises ValueError where
    GPUGRAD_MALLOC is neither "keep" nor "system".
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if asked() == "system" or tuned or any(name in os.environ for name in OTHERS):
        return False
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))
