"""Tensors that hold one array for the thread that records and another for all others.

While a step is recorded, its tensors have Buffers in the place of arrays. Another thread that
computes with the same model has to find the arrays, and an operation has to cost nothing more for
that while nobody records. So a lifted tensor is of another class for that time: one whose ``_data``
and ``_grad`` are properties, which look into the trace of the thread that asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Held = dict[int, dict[str, Any]]  # by the id of a tensor: the values of its slots in a trace


@functools.cache
def lifted_class(kind: type, held: Callable[[], Held | None]) -> type:
    """Return the class of lifted tensors of a class; ``held`` returns what this thread's hold."""

    def half(name: str) -> property:
        slot = getattr(kind, name)

        def get(tensor: Any) -> Any:
            own = (held() or {}).get(id(tensor))
            return slot.__get__(tensor) if own is None else own[name]

        def put(tensor: Any, value: Any) -> None:
            own = (held() or {}).get(id(tensor))
            if own is None:
                slot.__set__(tensor, value)
            else:
                own[name] = value

        return property(get, put)

    both = {name: half(name) for name in ("_data", "_grad")}
    return type(kind.__name__, (kind,), {"__slots__": (), "__module__": kind.__module__, **both})
