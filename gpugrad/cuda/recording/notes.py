"""What tensors, operations and modules tell the trace of the step that they are used in.

Outside of a recording, and for other threads, all of these do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ... import backend
from .context import current, not_recordable


def gradient_of(tensor: Any) -> Any:
    """Return a tensor's gradient; note that what the step does depends on it."""
    trace = current()
    if trace is not None:
        trace.lift_tensor(tensor)
        leaf = trace.leaves.get(tensor)
        if leaf is not None:
            leaf.observe()
    return tensor._grad


def assigns_gradient(tensor: Any) -> None:
    """Note that the step gives a tensor another gradient, or none."""
    trace = current()
    if trace is not None:
        trace.lift_tensor(tensor)
        leaf = trace.leaves.get(tensor)
        if leaf is not None:
            leaf.assign()


def touches(tensor: Any) -> None:
    """Note that the step is about to change a setting of a tensor: whether it requires a gradient,
    or its hooks.
    """
    trace = current()
    if trace is not None and tensor not in trace.made:
        trace.lift_tensor(tensor)


def changes(tensor: Any, by: Any) -> None:
    """Note that a step changes a tensor in place, by a number or another tensor."""
    trace = current()
    if trace is not None:
        trace.own(tensor)
        trace.lift_tensors([tensor, by])


def rebinds(tensor: Any, what: str) -> None:
    """Refuse to make a tensor from outside the result of recorded operations."""
    trace = current()
    if trace is not None and tensor in trace.leaves:
        raise not_recordable(
            f"{what} of a tensor from outside ({tensor.dtype}{list(tensor.shape)}) by one that "
            "requires a gradient (under gg.no_grad it changes in place)"
        )


def created(array: Any) -> None:
    """Note that a step makes an array: if it changes it, then anew at each run."""
    trace = current()
    if trace is not None and not isinstance(array, backend.Symbolic) and array.size:
        base = backend.memory_base(array)
        trace.created[id(base)] = base


def wraps(tensor: Any, data: Any) -> None:
    """Note that a step makes a tensor, on the memory of some array or of data of its own."""
    trace = current()
    if trace is None or isinstance(tensor._data, backend.Symbolic):
        return
    trace.made.add(tensor)
    base = backend.memory_base(tensor._data)
    if not backend.is_array(data) or base is not backend.memory_base(data):
        trace.created[id(base)] = base


def data_of(tensor: Any) -> Any:
    """Return a tensor's array; while a step is recorded, the one that stands for it."""
    trace = current()
    if trace is not None:
        trace.own(tensor)
    return tensor._data


def array_of(tensor: Any) -> Any:
    """Return the array that a tensor holds outside of the step that is being recorded."""
    trace = current()
    leaf = None if trace is None else trace.leaves.get(tensor)
    return tensor._data if leaf is None else leaf.array


def assigned(tensor: Any, value: Any) -> bool:
    """Give a tensor other data until the step ends, when they overwrite its own. False if no step
    is recorded.

    Raises NotRecordable for data of another shape or dtype.
    """
    trace = current()
    if trace is None:
        return False
    trace.own(tensor)
    if value.shape != tensor._data.shape or value.dtype != tensor._data.dtype:
        raise not_recordable(f"data of another shape or dtype for {tensor._data}")
    tensor._data = value if isinstance(value, backend.Symbolic) else trace.lift(value)
    return True


def reads(tensor: Any) -> None:
    """Refuse to hand out the values of a tensor while a step is recorded: they may change."""
    refuses(f"reading the values of {tensor.dtype}{list(tensor.shape)} (print, float, item, if)")


def reads_settings(group: Any, keys: Sequence[Any]) -> None:
    """Note that a step reads settings of an optimiser's group, to compute with them."""
    trace = current()
    if trace is not None and trace.is_noting:
        done = trace.settings_set.get(id(group), ())
        trace.settings_read.setdefault(id(group), set()).update(k for k in keys if k not in done)


def sets_settings(group: Any, keys: Sequence[Any]) -> None:
    """Note that a step sets settings of an optimiser's group, the optimiser itself aside."""
    trace = current()
    if trace is not None and trace.is_noting:
        trace.settings_set.setdefault(id(group), set()).update(keys)


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Have what an optimiser reads of its own settings be no number of the step."""
    trace = current()
    if trace is None:
        yield
        return
    outer, trace.is_noting = trace.is_noting, False
    try:
        yield
    finally:
        trace.is_noting = outer


def goes_back() -> None:
    """Note that a step computes gradients itself."""
    trace = current()
    if trace is not None:
        trace.goes_back = True


def refuses(what: str) -> None:
    """Raise NotRecordable: what a step does cannot be repeated by launches."""
    if current() is not None:
        raise not_recordable(what)


def uses(module: Any) -> None:
    """Note that a step uses a module: its mode, numbers and parts belong to the recording."""
    trace = current()
    if trace is not None and module not in trace.modules:
        trace.modules[module] = module.held()
