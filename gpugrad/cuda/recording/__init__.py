"""Recording: what a step function launches, as a list, from shapes alone.

While a Trace is active, arrays are Buffers: they have a shape, a dtype and a place in some storage,
but no elements. A kernel launch, a matrix product or a chain of elementwise operations with a
Buffer among its arguments is not run but appended to the trace. Where the storages lie is decided
afterwards (cuda/arena.py), and the list is run as often as wanted (cuda/replay.py)::

    with recording(Trace()) as trace:
        x = trace.input((4, 8), float32)
        ...                                # operations on x
    trace.launches

While a NumpyTrace is active the launches are calls of NumPy (numpy_buffer.py).
"""

from __future__ import annotations

from .buffer import (
    ARENA,
    CONSTANT,
    GRADIENT,
    INPUT,
    META,
    REAL,
    Buffer,
    Storage,
    address,
    new,
)
from .context import NotRecordable, current, not_recordable, operation
from .launches import copy_to, launch, product
from .leaves import Leaf
from .library import xp
from .notes import (
    array_of,
    assigned,
    assigns_gradient,
    changes,
    created,
    data_of,
    goes_back,
    gradient_of,
    reads,
    reads_settings,
    rebinds,
    refuses,
    sets_settings,
    touches,
    unnoticed,
    uses,
    wraps,
)
from .numpy_buffer import NumpyTrace
from .numpy_calls import Repeated, Whole, as_one, changing, whole
from .shadow import array_at, dense, extent
from .trace import Launch, Trace, active, recording

__all__ = [
    "ARENA",
    "CONSTANT",
    "GRADIENT",
    "INPUT",
    "META",
    "REAL",
    "Buffer",
    "Launch",
    "Leaf",
    "NotRecordable",
    "NumpyTrace",
    "Repeated",
    "Storage",
    "Trace",
    "Whole",
    "active",
    "address",
    "array_at",
    "array_of",
    "as_one",
    "assigned",
    "assigns_gradient",
    "changes",
    "changing",
    "copy_to",
    "created",
    "current",
    "data_of",
    "dense",
    "extent",
    "goes_back",
    "gradient_of",
    "launch",
    "new",
    "not_recordable",
    "operation",
    "product",
    "reads",
    "reads_settings",
    "rebinds",
    "recording",
    "refuses",
    "sets_settings",
    "touches",
    "unnoticed",
    "uses",
    "whole",
    "wraps",
    "xp",
]
