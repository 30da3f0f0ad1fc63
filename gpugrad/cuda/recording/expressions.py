"""Elementwise operations on Buffers: expressions that become one kernel when they are read."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import backend
from .. import symbolic
from ..elementwise import Program
from .buffer import ARENA, Buffer, Storage
from .context import not_recordable
from .launches import apply
from .shadow import shadow_of
from .trace import active

# what kernels compute of masks alone; the rest, such as sums of them, makes integers
_OF_MASKS = {*symbolic.LOGIC, *symbolic._OF_MASKS, "equal", "not_equal", "where", "astype"}
MOST_PENDING = 24  # operations of an expression that waits for its first reader


def _symbol_of(value: Any, inputs: dict[Buffer, int], known: dict[Any, Any], top: bool) -> Any:
    """Return a value as an expression over numbered inputs."""
    if not isinstance(value, Buffer):
        return value
    found = known.get(id(value))
    if found is not None:
        return found
    if value._storage is not None:
        found = symbolic.argument(inputs.setdefault(value, len(inputs)), value.dtype)
    else:
        assert value._expression is not None
        op, args = value._expression
        if op == "astype":
            found = _symbol_of(args[0], inputs, known, False).astype(args[1])
        else:
            given = [_symbol_of(a, inputs, known, False) for a in args]
            found = getattr(symbolic.xp, op)(*given)
    known[id(value)] = found
    return found


def expression(op: str, *args: Any) -> Buffer:
    """Return the result of an elementwise operation, to be computed when it is read."""
    given: list[Any] = []
    for a in args:
        if backend.is_array(a) and not isinstance(a, Buffer):
            a = active().lift(a) if a.ndim or not isinstance(a, np.ndarray) else a[()]
        given.append(a)
    arrays = [a for a in given if isinstance(a, Buffer)]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    for a in arrays:
        if a._storage is None and (a.shape != shape or a._operations > MOST_PENDING):
            a.settle()  # once is enough
    try:
        if _takes_integers(op, given):
            return apply(op, *given)
        if op == "astype":
            dtype = given[1]
            symbolic.argument(0, arrays[0].dtype).astype(dtype)
        else:
            placed = [
                symbolic.argument(i, a.dtype) if isinstance(a, Buffer) else a
                for i, a in enumerate(given)
            ]
            dtype = getattr(symbolic.xp, op)(*placed).dtype
    except symbolic.Untraceable as error:
        names = ", ".join(str(getattr(a, "dtype", type(a).__name__)) for a in given)
        raise not_recordable(f"{op} of {names}: {error};") from None
    out = Buffer(None, 0, shadow_of(shape, dtype), (op, tuple(given)))
    if not out.size:
        out._storage, out._expression = Storage(ARENA, 0), None
        return out
    for a in arrays:
        for source in _sources(a):
            source.readers.append(weakref.ref(out))
    return out


def _takes_integers(op: str, args: Sequence[Any]) -> bool:
    """Return whether an operation is one on integers, or between them and other numbers."""
    dtypes = [a.dtype for a in args if isinstance(a, Buffer)]
    dtypes += [np.dtype(args[1])] if op == "astype" else []
    has_integers = any(dtype.kind in "iu" for dtype in dtypes)
    masks_only = all(dtype == backend.bool_ for dtype in dtypes)
    return has_integers or (masks_only and op not in _OF_MASKS)


def _sources(value: Buffer) -> list[Storage]:
    """Return the storages an expression reads."""
    if value._storage is not None:
        return [value._storage]
    assert value._expression is not None
    return [s for a in value._expression[1] if isinstance(a, Buffer) for s in _sources(a)]


def compute(out: Buffer) -> None:
    """Append the kernel that computes an expression, and give it memory."""
    inputs: dict[Buffer, int] = {}
    symbol = _symbol_of(out, inputs, {}, True)
    name = out._expression[0] if out._expression is not None else ""
    arrays = list(inputs)
    if symbol.op == "constant":  # such as the sign of zeros
        made = out.namespace.full(out.shape, symbol.value, out.dtype)
        out._storage, out._offset = made._storage, made._offset
        out._expression = None
        return
    if out.dtype == backend.bool_:
        made = apply("astype", out.astype(backend.float32).settle(), out.dtype)
        out._storage, out._offset, out._expression = made._storage, made._offset, None
        out._operations = 0
        return
    try:
        program = Program(name, [a.dtype for a in arrays], [symbol])
    except symbolic.Untraceable as error:
        raise not_recordable(f"{name}: {error};") from None
    found = program.run(arrays)
    if found is None:
        raise not_recordable(f"{name} of shapes {[a.shape for a in arrays]}")
    (made,) = found
    out._storage, out._offset, out._expression = made._storage, made._offset, None
    out._operations = 0
