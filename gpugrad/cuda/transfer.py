"""Moving what a replay reads and writes, without waiting for the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Symbolic

_SLOTS = 2  # one is filled while the other is on its way


class Upload:
    """Copies arrays from the CPU into one array on a GPU, by way of pinned memory.

    The call returns when the values have been taken, before they have arrived; what is queued on
    the current stream afterwards sees them.
    """

    def __init__(self, cupy: Any, target: Any) -> None:
        self._target = target
        self._stream = cupy.cuda.get_current_stream
        self._slots = []
        for _ in range(_SLOTS):
            memory = cupy.cuda.alloc_pinned_memory(target.nbytes)
            view = np.frombuffer(memory, target.dtype, target.size).reshape(target.shape)
            self._slots.append((memory, view, cupy.cuda.Event(disable_timing=True)))
        self._turn = 0

    def __call__(self, values: np.ndarray) -> None:
        """Queue the copy of values of the array's shape and dtype."""
        memory, view, done = self._slots[self._turn]
        self._turn = (self._turn + 1) % _SLOTS
        done.synchronize()  # its last copy; returns at once where there was none
        view[...] = values
        stream = self._stream()
        self._target.data.copy_from_host_async(memory.ptr, self._target.nbytes, stream)
        done.record(stream)


def duplicate(array: Any) -> Any:
    """Return a copy of an array, its axes in the same order, queued on the current stream."""
    return array.copy(order="K")


def fill(array: Any, value: float) -> None:
    """Overwrite every element of an array; zeros without a kernel."""
    if isinstance(array, (np.ndarray, Symbolic)) or value or not array.flags.c_contiguous:
        array.fill(value)
    else:
        array.data.memset_async(0, array.nbytes)
