"""What an array holds beside ordinary numbers: counted on its device, read later."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .kernel import DTYPE_CODES, Source, contiguous, variants

SOURCE = Source(
    "extremes.cu", (*variants(GPUGRAD_DTYPE=(0, 1, 2)), {"GPUGRAD_DOUBLE": 1}), large=True
)
ROW = 6  # numbers, uint64, in which the kernel leaves what it found

_THREADS = 256
_BLOCKS = 132 * 4  # four on each processor of a Hopper GPU
_SIGN = np.uint64(1 << 63)


class Extremes(NamedTuple):
    """How many elements are NaN, +infinity and -infinity, the first of them, the finite range.

    ``first`` is an index into the elements in C order, None where all are finite; ``low`` and
    ``high`` are None where none is.
    """

    nan: int
    above: int
    below: int
    first: int | None
    low: float | None
    high: float | None

    @property
    def infinite(self) -> int:
        """How many elements are infinite."""
        return self.above + self.below


def of_numpy(x: np.ndarray) -> Extremes:
    """Return the extremes of a floating numpy array, at once."""
    finite = np.isfinite(x)
    wide = x.astype(np.float64)
    kept = wide[finite]
    return Extremes(
        int(np.isnan(wide).sum()),
        int((wide == np.inf).sum()),
        int((wide == -np.inf).sum()),
        None if finite.all() else int(np.argmin(finite.reshape(-1))),
        float(kept.min()) if kept.size else None,
        float(kept.max()) if kept.size else None,
    )


def queue(x: Any, found: Any) -> None:
    """Have a kernel add the extremes of a floating array to a row of zeros: uint64, (ROW,).

    Both are on one GPU or, while the emulator is active, numpy arrays. Nothing waits for it.
    """
    if not x.size:
        return
    x = contiguous(x)
    code = DTYPE_CODES.get(x.dtype)
    defines = {"GPUGRAD_DOUBLE": 1} if x.dtype == backend.float64 else {"GPUGRAD_DTYPE": code}
    blocks = min(-(-x.size // _THREADS), _BLOCKS)
    SOURCE.launch("extremes", (blocks,), (_THREADS,), (x, x.size, found), **defines)


def read(row: np.ndarray) -> Extremes:
    """Return what a row, copied from the device, says."""
    nan, above, below, first, low, high = row
    return Extremes(
        int(nan),
        int(above),
        int(below),
        int(~first) if first else None,
        _value(~low) if low else None,
        _value(high) if high else None,
    )


def _value(key: np.uint64) -> float:
    bits = key ^ _SIGN if key & _SIGN else ~key
    return float(bits.view(np.float64))
