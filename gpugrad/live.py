"""Which arrays are in memory, and who made them: what an error says when there is no more of it.

Nobody keeps account. When memory runs out, the garbage collector knows all objects, and through
them all arrays: parameters by the path of their modules, results by the operation that made them,
what operations saved for their gradients, what is laid out for a recorded step, and anything else
by what holds it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import backend, registry
from .cuda import recording
from .registry import Node, describe

SHOWN = 8  # the largest ones
_PACKAGE = __name__.rpartition(".")[0]
_NESTED = (dict, list, tuple)  # which the collector does not know where they hold arrays alone
_PARAMETER, _SAVED, _RESULT, _OWN, _HELD = range(5)  # who names memory that several hold


class Held(NamedTuple):
    """Memory of so many bytes: the array it was seen as, and in words who made it."""

    nbytes: int
    array: str
    maker: str

    def __str__(self) -> str:
        return f"{in_units(self.nbytes):>10}  {self.array:<24}  {self.maker}"


def largest(count: int = SHOWN, error: BaseException | None = None) -> tuple[list[Held], int]:
    """Return what takes most memory, largest first, and the bytes of all arrays found.

    Variables of functions that ``error`` went through count, those of others do not.
    """
    objects = gc.get_objects()
    found: dict[int, tuple[int, Held, Any]] = {}
    for rank, array, maker in (*_arrays(objects, _names(objects)), *_variables(error)):
        base = _owner(array)
        seen = array if array.nbytes == base.nbytes else base
        held = rank, Held(int(base.nbytes), describe(seen), maker), base  # or its id is another's
        found[id(base)] = min(found.get(id(base), held), held, key=lambda other: other[0])
    every = sorted((held for _, held, _ in found.values()), reverse=True)
    return every[:count], sum(held.nbytes for held in every)


def report(error: BaseException | None = None) -> str:
    """Return what takes most memory, as lines: see largest."""
    held, total = largest(error=error)
    lines = [f"arrays take {in_units(total)}, most of it these:", *map(str, held)]
    planned = _planned(gc.get_objects())
    if planned:
        lines += ["in one step that is recorded, these would be largest:", *map(str, planned)]
    return "\n".join(lines)


class OutOfMemoryError(MemoryError):
    """Memory ran out; the message has what takes most of it."""


def explained(error: MemoryError, doing: str = "") -> OutOfMemoryError:
    """Return an error that says what memory ran out for, and what takes most of it."""
    if isinstance(error, OutOfMemoryError):
        return error
    what = f"{doing}: {error}" if doing else str(error)
    return OutOfMemoryError(f"out of memory: {what or 'there is none left'}\n{report(error)}")


def in_units(nbytes: int) -> str:
    """Return a number of bytes in words, as in ``1.5 GiB``."""
    size = float(nbytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _names(objects: list[Any]) -> dict[int, str]:
    """Return the paths of parameters and buffers, by the ids of their tensors."""
    names: dict[int, str] = {}
    for module in objects:
        if not hasattr(type(module), "named_modules"):
            continue
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            path = f"{type(module).__name__}.{name}"
            if path.count(".") > names.get(id(tensor), "").count("."):
                names[id(tensor)] = path  # from the outermost module
    return names


def _arrays(objects: list[Any], names: dict[int, str]) -> Iterator[tuple[int, Any, str]]:
    """Yield each array somebody holds, with how well it names it, and the name."""
    for owner in objects:
        if isinstance(owner, registry.Tensor):
            yield from _of_tensor(owner, names)
        elif isinstance(owner, Node):
            for slot, value in _saved(owner):
                if _is_real(value):
                    yield _SAVED, value, f"saved by {_made(owner, names)}, its {slot}"
        else:
            kind = type(owner)
            is_ours = str(kind.__module__).startswith(_PACKAGE) and kind.__name__[0] != "_"
            is_own = is_ours and hasattr(owner, "__dict__")
            for key, value in _items(vars(owner) if is_own else owner):
                if _is_real(value):
                    name = f"held by a {kind.__name__}" + (f" as {key!r}" if key else "")
                    yield _OWN if is_own else _HELD, value, name


def _variables(error: BaseException | None) -> Iterator[tuple[int, Any, str]]:
    """Yield the arrays that are variables of functions an error left: no other object has them.

    Not those of functions that still run: looking at them would keep them alive.
    """
    trace = None if error is None else error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        for name, value in frame.f_locals.items():
            if _is_real(value):
                yield _OWN, value, f"the variable {name!r} of {frame.f_code.co_name}"


def _owner(array: Any) -> Any:
    """Return the array whose memory an array looks at, at an address or with strides of its own."""
    while True:
        array = backend.memory_base(array)
        base = getattr(array, "base", None)
        base = getattr(base, "base", getattr(base, "keep", None))
        if not _is_real(base):
            return array
        array = base


def _is_real(value: Any) -> bool:
    """Return whether it is an array with memory."""
    return backend.is_array(value) and not isinstance(value, backend.Symbolic)


def _of_tensor(tensor: Any, names: dict[int, str]) -> Iterator[tuple[int, Any, str]]:
    data, node, path = tensor._data, tensor._node, names.get(id(tensor))
    if _is_real(data):
        if path:
            yield _PARAMETER, data, path
        else:
            yield _RESULT, data, f"result of {_made(node, names)}" if node else "a tensor"
    if tensor._grad is not None and _is_real(tensor._grad._data):
        yield _PARAMETER, tensor._grad._data, f"gradient of {path or 'a tensor'}"


def _made(node: Node, names: dict[int, str]) -> str:
    """Return a node's operation, the parameters it was given, and its line where that is known."""
    given = [names[id(p)] for p in node.parents if id(p) in names]
    of = f" with {', '.join(given)}" if given else ""
    place = getattr(node, "place", None)  # under detect_anomaly
    return f"{node.op.name}{of}" + (f" at {place.line}" if place else "")


def _saved(node: Node) -> list[tuple[str, Any]]:
    values = node.saved or ()
    slots = getattr(node.op, "slots", ())
    return [(slots[i] if i < len(slots) else f"array {i}", v) for i, v in enumerate(values)]


def _items(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, through containers that the collector does not know."""
    stack = [("", owner)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            copied = dict(value)  # at once: making a list of items may collect some of them
            inside = [(k if isinstance(k, str) else key, v) for k, v in copied.items()]
        else:
            inside = [(key, v) for v in gc.get_referents(value)]
        for name, v in inside:
            if isinstance(v, _NESTED) and not gc.is_tracked(v):
                stack.append((name, v))
            else:
                yield name, v


def _planned(objects: list[Any]) -> list[Held]:
    """Return the largest temporaries of recorded steps."""
    made: dict[Any, Held] = {}
    for trace in objects:
        if isinstance(trace, recording.Trace):
            for launch in trace.launches:
                for buffer in launch.writes:
                    storage = buffer.storage
                    if storage.kind == recording.ARENA:
                        made.setdefault(
                            storage,
                            Held(storage.nbytes, describe(buffer), f"written by {launch.name}"),
                        )
    return sorted(made.values(), reverse=True)[:SHOWN]


registry.out_of_memory = explained
