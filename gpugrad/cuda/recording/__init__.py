"""Recording: what a step function launches, as a list, from shapes alone.

While a Trace is active, arrays are Buffers: they have a shape, a dtype and a place in some storage,
but no elements. A kernel launch, a matrix product or a chain of elementwise operations with a
Buffer among its arguments is not run but appended to the trace. Where the storages lie is decided
afterwards (cuda/arena.py), and the list is run as often as wanted (cuda/replay.py)::

    with recording(Trace()) as trace:
        x = trace.input((4, 8), float32)
        ...                                # operations on x
    trace.launches
"""

from __future__ import annotations

from .buffer import ARENA, CONSTANT, INPUT, META, REAL, Buffer, Storage, address, array_at, new
from .launches import copy_to, launch, product
from .library import xp
from .trace import (
    Launch,
    Leaf,
    NotRecordable,
    Trace,
    active,
    assigned,
    changes,
    created,
    current,
    data_of,
    forget_gradient,
    looks_for_gradient,
    not_recordable,
    operation,
    reads,
    recording,
    uses,
)

__all__ = [
    "ARENA",
    "CONSTANT",
    "INPUT",
    "META",
    "REAL",
    "Buffer",
    "Launch",
    "Leaf",
    "NotRecordable",
    "Storage",
    "Trace",
    "active",
    "address",
    "array_at",
    "assigned",
    "changes",
    "copy_to",
    "created",
    "current",
    "data_of",
    "forget_gradient",
    "launch",
    "looks_for_gradient",
    "new",
    "not_recordable",
    "operation",
    "product",
    "reads",
    "recording",
    "uses",
    "xp",
]
