"""What a step launches, in order, and the memory it touches."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import backend
from ..arguments import Strided
from ..kernel import address as address_of
from .buffer import ARENA, CONSTANT, GRADIENT, INPUT, META, REAL, Buffer, Storage, new, shadow_of
from .leaves import Leaf
from .lifted import Held, lifted_class
from .memory import Regions, storage_of

NAME = "gg.compile"
ESCAPED = (
    f"an array without elements is used outside of {NAME}: it was made while a step was recorded; "
    "return it from the step"
)


class NotRecordable(RuntimeError):
    """What a step does depends on more than the shapes of its arrays, or no kernel computes it."""


class Launch(NamedTuple):
    """One entry of the list: ``function(*args, **kwargs)`` on arrays in the place of Buffers.

    ``reads`` and ``writes`` are all Buffers it touches; what is read and written is in both.
    ``operation`` names what it belongs to, ``flops`` are those of matrix products.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    name: str
    operation: str
    flops: int

    @property
    def nbytes(self) -> int:
        """The bytes it moves if it touches every element once."""
        return sum(b.nbytes for b in (*self.reads, *self.writes))


class Trace:
    """The launches of a step in order, and the memory they touch.

    ``capability`` is that of the GPU it is meant for (major and minor digit), which is there if
    ``on_gpu``. ``inputs`` are the Buffers of arguments, ``callbacks`` what the host does ahead of
    each run of the list.
    """

    def __init__(self, capability: int = 90, on_gpu: bool = False) -> None:
        self.capability = capability
        self.on_gpu = on_gpu
        self.begun = 0  # nodes with a smaller number are from outside
        self.launches: list[Launch] = []
        self.inputs: list[Buffer] = []
        self.callbacks: list[Callable[[], Any]] = []
        self.operations: list[str] = []  # what is being recorded, the innermost last
        self._lifted: dict[int, Buffer] = {}  # real arrays, by their id
        self._memory: dict[int, Storage] = {}  # by the id of the array that owns it
        self._anew: dict[int, Storage] = {}  # what is made anew of it, where the step makes it
        self._regions = Regions()
        self._outside: set[Storage] = set()  # real memory of tensors that were there before
        self._wrapped: set[Storage] = set()  # real memory that the step makes tensors of
        self.leaves: dict[Any, Leaf] = {}  # tensors that were there before, as they were
        self.held: Held = {}  # what these hold for the thread that records
        self.made: set[Any] = set()  # tensors that the step makes of real arrays
        self.created: dict[int, Any] = {}  # real arrays that the step makes, by their id
        self.changed: set[int] = set()  # ids of those of them that it changes
        self.guards: list[Callable[[], bool]] = []  # whether a recording still holds
        self.checks: list[Callable[[], None]] = []  # what has to hold when the step ends
        self.modules: dict[Any, dict[str, Any]] = {}  # those that were used, and what they held
        self.settings: dict[Any, Any] = {}  # of the optimisers that have taken a step

    # Memory

    def input(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Return an argument of the step: filled before each run."""
        buffer = new(INPUT, shape, dtype)
        self.inputs.append(buffer)
        return buffer

    def constant(
        self, build: Callable[[Callable[[Any], int]], np.ndarray], shape: Any, dtype: Any
    ) -> Buffer:
        """Return an array that ``build(address_of)`` makes once memory has been laid out.

        ``address_of`` takes a Buffer or a real array and returns where it begins.
        """
        buffer = new(CONSTANT, shape, dtype)
        buffer.storage.build = build
        return buffer

    def lift(self, array: Any) -> Buffer:
        """Return the Buffer that stands for a real array, for one array always the same."""
        found = self._lifted.get(id(array))
        if found is None:
            base = backend.memory_base(array)  # views of one memory are views of one storage
            memory = self._memory.get(id(base))
            if memory is None:
                memory = self._memory[id(base)] = storage_of(base)
                if id(base) in self.created:
                    self._anew[id(base)] = self._made_anew(memory)
                else:
                    self._regions.add(memory)
            offset = address_of(array) - memory.start
            shadow = shadow_of(array.shape, array.dtype, array.strides)
            found = Buffer(self._anew.get(id(base), memory), offset, shadow)
            found.original = array  # held, or its id might become another's
            self._lifted[id(array)] = found
        return found

    @staticmethod
    def _made_anew(constant: Storage) -> Storage:
        """Return temporary memory that gets the values of a constant at each run."""
        whole = Buffer(constant, 0, shadow_of((constant.nbytes,), np.uint8))
        return whole.copy().storage

    def lift_tensors(self, tensors: Sequence[Any]) -> None:
        """Give tensors a Buffer for their array, until ``restore``, if one has to be recorded."""
        given = [t for t in tensors if hasattr(t, "_requires_grad")]
        if not all(map(self._is_constant, given)):
            for tensor in given:
                self.lift_tensor(tensor)

    def _is_constant(self, tensor: Any) -> bool:
        """Return whether the step makes these integers or booleans, and has not changed them.

        What is computed of such alone is computed once.
        """
        array = tensor._data
        if isinstance(array, backend.Symbolic) or backend.is_float(array.dtype):
            return False
        base = id(backend.memory_base(array))
        return base in self.created and base not in self.changed

    def lift_tensor(self, tensor: Any) -> None:
        """Give a tensor a Buffer for its array, and one for its gradient, until ``restore``."""
        array = tensor._data
        if isinstance(array, backend.Symbolic):
            return
        node = tensor._node
        if node is not None and node.number < self.begun:
            raise not_recordable(f"a graph from outside of the step (that of {_described(tensor)})")
        buffer = self.lift(array)
        if tensor in self.made or node is not None:
            self._wrapped.add(buffer.storage)
        elif id(backend.memory_base(array)) not in self.created:
            self._outside.add(buffer.storage)
            leaf = Leaf(tensor, buffer)
            self.held[id(tensor)] = {"_data": buffer, "_grad": self._slot(leaf)}
            self.leaves[tensor] = leaf
            tensor.__class__ = lifted_class(tensor.__class__, _held)
            return
        tensor._data = buffer

    def _slot(self, leaf: Leaf) -> Any:
        """Return the tensor that stands for the gradient a leaf comes with, None for none."""
        gradient = leaf.gradient
        if gradient is None or isinstance(gradient._data, backend.Symbolic):
            return gradient
        if gradient._node is not None:
            raise not_recordable(f"a gradient with a graph (that of {_described(leaf.tensor)})")
        leaf.slot = new(GRADIENT, gradient.shape, gradient.dtype)
        return type(gradient)._wrap(leaf.slot, None)

    def restore(self) -> None:
        """Let the lifted tensors hold what they came with."""
        for leaf in self.leaves.values():
            leaf.tensor.__class__ = leaf.tensor.__class__.__base__
            leaf.tensor._requires_grad = leaf.requires_grad
        self.held.clear()

    def own(self, tensor: Any) -> None:
        """Let a tensor be changed: a constant that the step makes is made anew at each run."""
        if not isinstance(tensor._data, backend.Symbolic):
            base = id(backend.memory_base(tensor._data))
            if base in self.created:
                self.changed.add(base)
        self.lift_tensor(tensor)

    @property
    def place(self) -> str | None:
        """Where the tensors from outside are, those on the CPU that nothing changes aside."""
        places = {backend.device_of(leaf.array) for leaf in self.leaves.values()}
        if len(places) > 1:
            places.discard("cpu")  # constants, which will be copied
        return min(places, default=None)

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
            self._refuse_to_change(buffer)
            # who still wants the old values takes them now
            readers = buffer.storage.readers[:]
            buffer.storage.readers.clear()  # a list that overlapping storages share
            for reference in readers:
                waiting = reference()
                if waiting is not None:
                    waiting.settle()
        operation = self.operations[-1] if self.operations else ""
        given = (tuple(args), dict(kwargs or {}))
        self.launches.append(
            Launch(function, *given, read, written, name or function.__name__, operation, flops)
        )

    def _refuse_to_change(self, buffer: Buffer) -> None:
        """Raise NotRecordable where a change would be lost, or pile up from run to run."""
        storage = buffer.storage
        if storage.kind == INPUT:
            raise not_recordable(
                f"changing an argument in place ({_described(buffer)}; x = x + 1 makes another),"
            )
        if storage in self._wrapped and storage not in self._outside and storage.kind == REAL:
            raise not_recordable(
                f"changing {_described(buffer)}, a tensor on an array which may be the step's own "
                "or not (gg.tensor makes a copy, which is),"
            )

    def drop_unread(self, results: Sequence[Buffer]) -> None:
        """Forget launches that write only temporaries which nothing reads, nor are results.

        Such are the last products of what is computed again for its gradients.
        """
        wanted = {b.storage for b in results}
        kept = []
        for launch in reversed(self.launches):
            if any(b.storage.kind != ARENA or b.storage in wanted for b in launch.writes):
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


_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)
_one_at_a_time = threading.Lock()  # a tensor is lifted by one trace only


def current() -> Trace | None:
    """Return the trace that this thread records to now, if any."""
    return _current.get()


def _held() -> Held | None:
    """Return what lifted tensors hold for this thread."""
    trace = _current.get()
    return None if trace is None else trace.held


def active(*arrays: Any) -> Trace:
    """Return the trace that this thread records to.

    What is computed of arrays on the device "meta" alone outside of any is forgotten. Raises
    NotRecordable for other recorded arrays.
    """
    trace = _current.get()
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
    if _current.get() is not None:
        raise RuntimeError(f"{NAME}: this thread records a step already, and one at a time")
    registry = importlib.import_module("gpugrad.registry")
    with _one_at_a_time, registry.lifting(_lift_tensors):
        token = _current.set(trace)
        trace.begun = registry.next_number()
        try:
            yield trace
        finally:
            trace.restore()
            _current.reset(token)


def _lift_tensors(tensors: Sequence[Any]) -> None:
    """Lift tensors where this thread records; others may compute meanwhile."""
    trace = _current.get()
    if trace is not None:
        trace.lift_tensors(tensors)


class operation:
    """Context that says what the launches inside belong to: for tables of costs, and messages."""

    __slots__ = ("name", "trace")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.trace = _current.get()
        if self.trace is not None:
            self.trace.operations.append(self.name)

    def __exit__(self, *error: object) -> None:
        if self.trace is not None:
            self.trace.operations.pop()


def _described(tensor: Any) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


def not_recordable(what: str) -> NotRecordable:
    """Return the error that says what a step did, and in which line."""
    engine = importlib.import_module("gpugrad.engine")
    trace = _current.get()
    if trace is None:
        return NotRecordable(ESCAPED)
    inside = f" (in {trace.operations[-1]})" if trace.operations else ""
    return NotRecordable(
        f"{NAME}: {what} cannot be recorded{inside}, at {engine.user_line()}. A recorded step is a "
        "list of launches over static shapes: do it outside of the step, or with operations that "
        "have kernels"
    )
