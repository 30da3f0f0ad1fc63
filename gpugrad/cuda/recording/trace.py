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
from .buffer import ARENA, CONSTANT, INPUT, META, REAL, Buffer, Storage, new, shadow_of
from .lifted import Held, lifted_class

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


class Leaf(NamedTuple):
    """A tensor from outside of the step, and what it came with."""

    tensor: Any
    array: Any
    gradient: Any
    requires_grad: bool
    hooks: tuple

    def holds(self) -> bool:
        """Return whether the tensor is as it was; its gradient aside."""
        tensor = self.tensor
        return (
            tensor._data is self.array
            and tensor._requires_grad is self.requires_grad
            and tuple(tensor._hooks or ()) == self.hooks
        )


class Trace:
    """The launches of a step in order, and the memory they touch.

    ``capability`` is that of the GPU it is meant for (major and minor digit), which is there if
    ``on_gpu``. ``inputs`` are the Buffers of arguments, ``callbacks`` what the host does ahead of
    each run of the list.
    """

    def __init__(self, capability: int = 90, on_gpu: bool = False) -> None:
        self.capability = capability
        self.on_gpu = on_gpu
        self.launches: list[Launch] = []
        self.inputs: list[Buffer] = []
        self.callbacks: list[Callable[[], Any]] = []
        self.operations: list[str] = []  # what is being recorded, the innermost last
        self.real: dict[int, Buffer] = {}  # by the id of the array
        self._memory: dict[int, Storage] = {}  # by the id of the array that owns it
        self._held: list[Any] = []
        self.leaves: list[Leaf] = []  # tensors that were there before
        self.held: Held = {}  # what these hold for the thread that records
        self.created: dict[int, Any] = {}  # real arrays that the step makes, by their id
        self.guards: list[Callable[[], bool]] = []  # whether a recording still holds
        self.checks: list[Callable[[], None]] = []  # what has to hold when the step ends
        self.looked: set[Any] = set()  # leaves whose gradient an optimiser has looked for
        self.cleared: set[Any] = set()  # of these, whose gradient the step forgets
        self.modules: dict[Any, dict[str, Any]] = {}  # those that were used, and what they held
        self.settings: dict[Any, Any] = {}  # of the optimisers that have taken a step
        self.gradients: list[Any] = []  # of the leaves, at the end of the step

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
        found = self.real.get(id(array))
        if found is None:
            base = backend.memory_base(array)  # views of one memory are views of one storage
            storage = self._memory.get(id(base))
            if storage is None:
                storage = self._memory[id(base)] = Storage(REAL, base.nbytes, base)
                if id(base) in self.created:
                    storage = self._memory[id(base)] = self._made_anew(storage, base)
            shadow = shadow_of(array.shape, array.dtype, array.strides)
            found = Buffer(storage, address_of(array) - address_of(base), shadow)
            self.real[id(array)] = found
            self._held.append(array)  # or its id might become another's
        return found

    def _made_anew(self, constant: Storage, base: Any) -> Storage:
        """Return temporary memory that gets the values of a constant at each run."""
        whole = Buffer(constant, 0, shadow_of((base.nbytes,), np.uint8))
        return whole.copy().storage

    def lift_tensors(self, tensors: Sequence[Any]) -> None:
        """Give tensors a Buffer for their array, until ``restore``, if one has to be recorded."""
        given = [t for t in tensors if hasattr(t, "_requires_grad")]
        if not any(isinstance(t._data, Buffer) or backend.is_float(t._data.dtype) for t in given):
            return  # integers and booleans alone are constants, computed once
        for tensor in given:
            self.lift_tensor(tensor)

    def lift_tensor(self, tensor: Any) -> None:
        """Give a tensor a Buffer for its array, until ``restore``."""
        if isinstance(tensor._data, backend.Symbolic):
            return
        if id(backend.memory_base(tensor._data)) in self.created:
            tensor._data = self.lift(tensor._data)
        else:
            hooks = tuple(tensor._hooks or ())
            leaf = Leaf(tensor, tensor._data, tensor._grad, tensor._requires_grad, hooks)
            self.leaves.append(leaf)
            self.held[id(tensor)] = {"_data": self.lift(tensor._data), "_grad": tensor._grad}
            tensor.__class__ = lifted_class(tensor.__class__, _held)

    def restore(self) -> list[Any]:
        """Let the lifted tensors hold what they held; return the gradients they had at the end."""
        ends = [leaf.tensor._grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.tensor.__class__ = leaf.tensor.__class__.__base__
        self.held.clear()
        return ends

    def own(self, tensor: Any) -> None:
        """Let a tensor be changed: a constant that the step makes is made anew at each run."""
        self.lift_tensor(tensor)

    @property
    def place(self) -> str | None:
        """Where the tensors from outside are, those on the CPU that nothing changes aside."""
        places = {backend.device_of(leaf.array) for leaf in self.leaves}
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
        for buffer in written:  # who still wants the old values takes them now
            readers, buffer.storage.readers = buffer.storage.readers, []
            for reference in readers:
                waiting = reference()
                if waiting is not None:
                    waiting.settle()
        operation = self.operations[-1] if self.operations else ""
        given = (tuple(args), dict(kwargs or {}))
        self.launches.append(
            Launch(function, *given, read, written, name or function.__name__, operation, flops)
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
        try:
            yield trace
        finally:
            trace.gradients = trace.restore()
            _current.reset(token)


def _lift_tensors(tensors: Sequence[Any]) -> None:
    """Lift tensors where this thread records; others may compute meanwhile."""
    trace = _current.get()
    if trace is not None:
        trace.lift_tensors(tensors)


def forget_gradient(tensor: Any) -> None:
    """Note that the step forgets the gradient a tensor comes with, whatever that is."""
    trace = _current.get()
    if trace is not None:
        trace.lift_tensor(tensor)
        leaf = next((one for one in trace.leaves if one.tensor is tensor), None)
        if leaf is None or tensor._grad is not leaf.gradient or tensor in trace.looked:
            return
        if leaf.gradient is None or id(leaf.gradient._data) not in trace.real:
            trace.cleared.add(tensor)  # before the step has used it


def looks_for_gradient(tensor: Any) -> None:
    """Note that what a step does depends on whether a tensor has a gradient."""
    trace = _current.get()
    if trace is not None:
        trace.lift_tensor(tensor)
        trace.looked.add(tensor)


def changes(tensor: Any, by: Any) -> None:
    """Note that a step changes a tensor in place, by a number or another tensor."""
    trace = _current.get()
    if trace is not None:
        trace.own(tensor)
        trace.lift_tensors([tensor, by])


def created(array: Any) -> None:
    """Note that a step makes an array: if it changes it, then anew at each run."""
    trace = _current.get()
    if trace is not None and not isinstance(array, Buffer):
        base = backend.memory_base(array)
        trace.created[id(base)] = base


def data_of(tensor: Any) -> Any:
    """Return a tensor's array; while a step is recorded, the one that stands for it."""
    trace = _current.get()
    if trace is not None:
        trace.own(tensor)
    return tensor._data


def assigned(tensor: Any, value: Any) -> bool:
    """Note that a step gives a tensor other data: its elements are overwritten. False if none is.

    Raises NotRecordable for data of another shape or dtype.
    """
    trace = _current.get()
    if trace is None:
        return False
    trace.own(tensor)
    if value is not tensor._data:
        if value.shape != tensor._data.shape or value.dtype != tensor._data.dtype:
            raise not_recordable(f"data of another shape or dtype for {tensor._data}")
        tensor._data[...] = value
    return True


def reads(tensor: Any) -> None:
    """Refuse to hand out the values of a tensor while a step is recorded: they may change."""
    if _current.get() is not None:
        raise not_recordable(
            f"reading the values of {tensor.dtype}{list(tensor.shape)} (print, float, item, if)"
        )


def uses(module: Any) -> None:
    """Note that a step uses a module: its mode, numbers and parts belong to the recording."""
    trace = _current.get()
    if trace is not None and module not in trace.modules:
        trace.modules[module] = module.held()


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
