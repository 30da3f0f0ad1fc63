"""What a step launches, in order, and the memory it touches."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arguments import Strided
from .buffer import ARENA, CONSTANT, INPUT, META, Buffer, new
from .context import ESCAPED, NAME, NotRecordable, current, use
from .outside import Outside


class Launch(NamedTuple):
    """One entry of the list: ``function(*args, **kwargs)`` on arrays in the place of Buffers.

    ``reads`` and ``writes`` are all Buffers it touches; what is read and written is in both.
    ``operation`` names what it belongs to, ``flops`` are those of matrix products, ``drawn`` the
    blocks of random numbers that the step has taken by then.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    name: str
    operation: str
    flops: int
    drawn: int

    @property
    def nbytes(self) -> int:
        """The bytes it moves if it touches every element once."""
        return sum(b.nbytes for b in (*self.reads, *self.writes))


class Trace(Outside):
    """The launches of a step in order, and the memory they touch.

    ``capability`` is that of the GPU it is meant for (major and minor digit), which is there if
    ``on_gpu``. ``inputs`` are the Buffers of arguments, ``callbacks`` what the host does ahead of
    each run of the list.
    """

    def __init__(self, capability: int = 90, on_gpu: bool = False) -> None:
        super().__init__()
        self.capability = capability
        self.on_gpu = on_gpu
        self.launches: list[Launch] = []
        self.inputs: list[Buffer] = []
        self.callbacks: list[Callable[[], Any]] = []
        self.operations: list[str] = []  # what is being recorded, the innermost last
        self.guards: list[Callable[[], bool]] = []  # whether a recording still holds
        self.refused: NotRecordable | None = None  # the first that was: the step may have caught it
        self.checks: list[Callable[[], None]] = []  # what has to hold when the step ends
        self.modules: dict[Any, dict[str, Any]] = {}  # those that were used, and what they held
        self.settings: dict[Any, Any] = {}  # of the optimisers that have taken a step
        # what the step itself reads and sets of them, by the id of a group
        self.settings_read: dict[int, set[str]] = {}
        self.settings_set: dict[int, set[str]] = {}
        self.is_noting = True
        self.goes_back = False  # whether it computes gradients
        self.drawn: Callable[[], int] = int  # how many blocks of random numbers it has taken: none
        self.known: dict[Any, Any] = {}  # what NumPy's functions return: see dry_run.py

    # Memory

    def input(
        self, shape: Sequence[int], dtype: Any, strides: Sequence[int] | None = None
    ) -> Buffer:
        """Return an argument of the step: filled before each run."""
        buffer = new(INPUT, shape, dtype, self.buffer, strides)
        self.inputs.append(buffer)
        return buffer

    def constant(
        self, build: Callable[[Callable[[Any], int]], np.ndarray], shape: Any, dtype: Any
    ) -> Buffer:
        """Return an array that ``build(address_of)`` makes once memory has been laid out.

        ``address_of`` takes a Buffer or a real array and returns where it begins.
        """
        buffer = new(CONSTANT, shape, dtype, self.buffer)
        buffer.storage.build = build
        return buffer

    # Launches

    def before(self, callback: Callable[[], Any]) -> None:
        """Have the host call something ahead of each run: it may change real arrays in place."""
        self.callbacks.append(callback)

    def record(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any] | None = None,
        *,
        reads: Sequence[Any] = (),
        writes: Sequence[Any] = (),
        name: str = "",
        flops: int = 0,
    ) -> None:
        """Append ``function(*args, **kwargs)``; arrays among the arguments may lie in lists.

        ``reads`` and ``writes`` are the arrays it touches, real ones too.
        """
        read = tuple(self._settled(a) for a in reads)
        written = tuple(self._settled(a) for a in writes)
        for buffer in written:
            self.refuse_to_change(buffer)
            # who still wants the old values takes them now
            readers = buffer.storage.readers[:]
            buffer.storage.readers.clear()  # a list that overlapping storages share
            for reference in readers:
                waiting = reference()
                if waiting is not None:
                    waiting.settle()
        operation = self.operations[-1] if self.operations else ""
        given = (tuple(args), dict(kwargs or {}), read, written)
        names = (name or function.__name__, operation)
        self.launches.append(Launch(function, *given, *names, flops, self.drawn()))

    def drop_unread(self, results: Sequence[Buffer]) -> None:
        """Forget launches that write only temporaries which nothing reads, nor are results.

        Such are the last products of what is computed again for its gradients. What writes nothing
        at all is a check, and stays.
        """
        wanted = {b.storage for b in results}
        kept = []
        for launch in reversed(self.launches):
            storages = [b.storage for b in launch.writes]
            if not storages or any(s.kind != ARENA or s in wanted for s in storages):
                # what is written may be read too, and may have been written before
                wanted.update(b.storage for b in (*launch.reads, *launch.writes))
                kept.append(launch)
        self.launches = kept[::-1]

    def _settled(self, array: Any) -> Buffer:
        if isinstance(array, Strided):
            array = array.array
        buffer = array if isinstance(array, Buffer) else self.lift(array)
        buffer.settle()
        return buffer


_one_at_a_time = threading.Lock()  # a tensor is lifted by one trace only


def _after_fork() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()  # a thread that is not in the child may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def active(*arrays: Any) -> Trace:
    """Return the trace that this thread records to.

    What is computed of arrays on the device "meta" alone outside of any is forgotten. Raises
    NotRecordable for other recorded arrays.
    """
    trace = current()
    if trace is None:
        buffers = [a for a in arrays if isinstance(a, Buffer)]
        if buffers and all(b.storage.kind == META for b in buffers):
            return Trace()
        raise NotRecordable(ESCAPED)
    return trace


@contextlib.contextmanager
def recording(trace: Trace) -> Iterator[Trace]:
    """Record to a trace inside the ``with`` block; lifted tensors get their arrays back at its end.

    Not reentrant: a step that is being recorded runs other compiled steps as plain functions.
    Threads that record take turns; all others compute meanwhile, with the tensors' own arrays.
    """
    if current() is not None:
        raise RuntimeError(f"{NAME}: this thread records a step already, and one at a time")
    registry = importlib.import_module("gpugrad.registry")
    with _one_at_a_time, registry.lifting(_lift_tensors), use(trace):
        trace.begun = registry.next_number()
        try:
            yield trace
        finally:
            trace.restore()


def _lift_tensors(tensors: Sequence[Any]) -> None:
    """Lift tensors where this thread records; others may compute meanwhile."""
    trace = current()
    if trace is not None:
        trace.lift_tensors(tensors)
