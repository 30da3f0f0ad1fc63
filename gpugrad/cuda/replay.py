"""Running a recorded list of launches: memory laid out once, then the same calls every time.

On a GPU the first run makes the calls one by one, the second captures them into a CUDA graph, and
all later ones launch that graph. In the emulator, and where NumPy computes, every run makes the
calls; other processes may help (helped.py).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend, processes
from . import arena, kernel, transfer
from .arguments import Strided
from .emulation import settings
from .helped import Helped
from .layout import Layout
from .recording import (
    CONSTANT,
    GRADIENT,
    META,
    REAL,
    Buffer,
    Launch,
    NotRecordable,
    Storage,
    Trace,
    Whole,
    array_at,
    extent,
)


class Replay:
    """A trace with memory: ``write`` the inputs, ``run``, ``read`` what came out.

    ``device`` is "cpu" (NumPy or the emulator) or "cuda:N". Real arrays on the CPU that nothing
    writes are copied there once; for others on another device NotRecordable is raised.
    """

    def __init__(
        self, trace: Trace, device: str, outputs: Sequence[Buffer], kept: Sequence[Buffer]
    ) -> None:
        self.device, self.trace = device, trace
        self.layout = Layout(trace, outputs, kept)
        self.counts: collections.Counter[str] = collections.Counter()
        self._xp = backend.namespace(device)
        self._roots: dict[Storage, Any] = {}
        self._arrays: dict[Buffer, Any] = {}
        self._left: dict[Buffer, Any] = {}
        self._constants: list[transfer.Upload] = []  # whose values may still be on their way
        self._helped = self._help()
        self.is_shared = self._helped is not None  # so that a forked process has the same memory
        self._lay_out()
        self.written = self._lasting(kept)
        self._changed, self._last_reads = self._changes(outputs)
        changed = [s for s in self.layout.others if s.kind == REAL and id(s.array) in self._changed]
        self._owns_changed = all(s.array.flags.owndata for s in changed)
        self._changed_memory = [  # where it begins and ends, and when it is first written
            (s.start, s.start + s.nbytes, self._changed[id(s.array)]) for s in changed
        ]
        self._calls = [self._bound(number, {}) for number in range(len(trace.launches))]
        if self._helped and not self._helped.begin(self._roots, self._bound, self._calls):
            self._helped = None
        self._runs = 0
        self.failed: Launch | None = None  # the one whose call raised an error in the last run
        self._graph: Any = None
        self._stream: Any = (
            None  # on which calls are made and captured: products keep memory for it
        )
        self._queue: Any = None  # the stream of the last run
        self._uploads: dict[Buffer, transfer.Upload] = {}

    # Memory

    def _help(self) -> Helped | None:
        """Return what lets other processes help, where that is possible and pays."""
        large = self.layout.plan.size >= processes.LEAST
        helps = self.trace.buffer.by_numpy and large and processes.available()
        return Helped(self.trace) if helps else None

    def _bytes(self, size: int) -> Any:
        return _bytes(self._xp, size) if self._helped is None else self._helped.memory.zeros(size)

    def _lay_out(self) -> None:
        if any(storage.kind == META for storage in self.layout.others):
            raise NotRecordable("a model on device 'meta' has no memory: nothing can run on it")
        self.arena = self._bytes(self.layout.plan.size)
        for storage, offset in self.layout.offsets.items():
            self._roots[storage] = _part(self.arena, offset, storage.nbytes)
        written = {b.storage for launch in self.trace.launches for b in launch.writes}
        constants = []
        for storage in (*self.layout.others, *(b.storage for b in self.trace.inputs)):
            if storage.kind == REAL:
                self._roots[storage] = self._real(storage, storage in written)
            elif storage not in self._roots:
                self._roots[storage] = self._bytes(storage.nbytes)
                if storage.kind == CONSTANT:
                    constants.append(storage)
        for storage in constants:
            values = np.ascontiguousarray(storage.build(self.address))
            content = values.reshape(-1).view(np.uint8)
            if self._xp is np:
                self._roots[storage][...] = content
            else:
                upload = transfer.Upload(self._xp, self._roots[storage])
                upload(content)
                self._constants.append(upload)

    def _real(self, storage: Storage, is_written: bool) -> Any:
        """Return the bytes of a real array, or of a copy on this device."""
        array, address = storage.array, storage.start
        if not self._is_here(array):
            if is_written or not isinstance(array, np.ndarray):  # a GPU's is at no address here
                what = "changes" if is_written else "is read"
                raise NotRecordable(
                    f"gg.compile: an array on {backend.device_of(array)} {what} in a step that "
                    f"runs on {self.device}; move it there first"
                )
            content = array_at((storage.nbytes,), (1,), np.uint8, address, array)
            return backend.to_device(content, self.device)
        if self._xp is np:
            return array_at((storage.nbytes,), (1,), np.uint8, address, array)
        memory = self._xp.cuda.UnownedMemory(address, storage.nbytes, array, array.device.id)
        pointer = self._xp.cuda.MemoryPointer(memory, 0)
        return self._xp.ndarray((storage.nbytes,), np.uint8, pointer)

    def _lasting(self, kept: Sequence[Buffer]) -> set[int]:
        """Return the ids of the arrays that own the memory a run writes and others may look at."""
        written = [b for launch in self.trace.launches for b in launch.writes]
        gradients = [b for b in written if b.storage.kind == GRADIENT]
        gradients += [b for b in kept if b.storage.kind != REAL]
        # of memory that is shared tensors hold copies: see `left`
        own = [] if self.is_shared else [backend.memory_base(self.array(b)) for b in gradients]
        real = [b.storage.array for b in written if b.storage.kind == REAL]
        return set(map(id, (*own, *real)))

    def _changes(self, outputs: Sequence[Buffer]) -> tuple[dict[int, int], list[int]]:
        """Return when arrays from outside are first written, by the id of what owns their memory,
        and when each argument is last read.
        """
        changed: dict[int, int] = {}
        last: dict[Storage, int] = {}
        for number, launch in enumerate(self.trace.launches):
            last.update((b.storage, number) for b in launch.reads)
            for buffer in launch.writes:
                if buffer.storage.kind == REAL:
                    changed.setdefault(id(buffer.storage.array), number)
        last.update((b.storage, len(self.trace.launches)) for b in outputs)
        return changed, [last.get(b.storage, -1) for b in self.trace.inputs[1:]]

    def follow(self) -> None:
        """Have what is queued from now on come after the last run, on whichever stream that was.

        All runs share their memory, and a graph may be launched on several streams.
        """
        if self._xp is not np:
            current, last = self._xp.cuda.get_current_stream(), self._queue
            if last is not None and last.ptr != current.ptr:
                current.wait_event(last.record())
            self._queue = current

    def refuse_changing(self, arguments: Sequence[Any]) -> None:
        """Raise NotRecordable for an argument on memory that the step changes and then reads: it is
        a copy that would be read.
        """
        for position, (array, last) in enumerate(zip(arguments, self._last_reads, strict=True)):
            base = backend.memory_base(array)
            first = self._changed.get(id(base))
            if first is None and not (self._owns_changed and base.flags.owndata):
                first = self._first_change(base)  # from_dlpack, frombuffer: NumPy sees no relation
            if first is not None and last > first:
                raise NotRecordable(
                    f"gg.compile: array {position} of the arguments ({array.dtype}"
                    f"{list(array.shape)}) shares its memory with a tensor that the step changes "
                    "in place, and is read afterwards; pass a copy (.copy()), or let the step find "
                    "that tensor around it"
                )

    def _first_change(self, array: Any) -> int | None:
        """Return when memory that is an array's as well is first written, None for never."""
        low, high = extent(array.shape, array.strides, array.itemsize)
        begin = kernel.address(array)
        low, high = begin + low, begin + high
        found = [n for start, stop, n in self._changed_memory if start < high and low < stop]
        return min(found, default=None)

    def array(self, buffer: Buffer) -> Any:
        """Return the NumPy or CuPy array on the memory of a Buffer."""
        found = self._arrays.get(buffer)
        if found is None:
            storage, real = buffer.storage, buffer.original
            if storage.kind == REAL and real is not None and self._is_here(real):
                found = real
            else:
                found = self._view(self._roots[storage], buffer)
            self._arrays[buffer] = found
        return found

    def _is_here(self, array: Any) -> bool:
        return backend.device_of(array) == self.device

    def _view(self, root: Any, buffer: Buffer) -> Any:
        shape, dtype, strides = buffer.shape, buffer.dtype, buffer.strides
        if not buffer.size:
            return self._xp.empty(shape, dtype)
        if self._xp is np:
            return np.ndarray(shape, dtype, root, buffer.offset, strides)
        return self._xp.ndarray(shape, dtype, root.data + buffer.offset, strides=strides)

    def address(self, array: Any) -> int:
        """Return where a Buffer's memory, or a real array, begins."""
        if not isinstance(array, Buffer):
            return kernel.address(array)
        return kernel.address(self._roots[array.storage]) + array.offset

    # Calls

    def _bound(self, number: int, copies: Mapping[Storage, Any]) -> Callable[[], None]:
        """Return the call of a launch, with copies of some storages in their place."""

        def array(buffer: Buffer) -> Any:
            root = copies.get(buffer.storage)
            return self.array(buffer) if root is None else self._view(root, buffer)

        launch = self.trace.launches[number]
        args, kwargs = self.concrete(launch, array)
        if getattr(launch.function, "__name__", "") == "launch":
            self.counts[launch.name] += 1
        if isinstance(launch.function, Whole):
            return launch.function.bound(*args, **kwargs)
        return functools.partial(launch.function, *args, **kwargs)

    def concrete(
        self, launch: Launch, array: Callable[[Buffer], Any] | None = None
    ) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments of a launch, with arrays in the place of Buffers."""
        array = array or self.array
        return _concrete(launch.args, array), _concrete(launch.kwargs, array)

    def write(self, buffer: Buffer, value: Any) -> None:
        """Fill an input from an array of its shape and dtype, on the CPU or the device."""
        target = self.array(buffer)
        if self._xp is np or not isinstance(value, np.ndarray):
            target[...] = value
        elif target.size:
            upload = self._uploads.get(buffer)
            if upload is None:
                upload = self._uploads[buffer] = transfer.Upload(self._xp, target)
            upload(value)

    def outlasting(self, array: Any) -> Any:
        """Return an array, or a copy if it lies in memory that a run or ``write`` changes."""
        is_written = id(backend.memory_base(array)) in self.written
        return transfer.duplicate(array) if is_written else array

    def left(self, buffer: Buffer) -> Any:
        """Return the array of what the last run left in a Buffer, which tensors may hold.

        Where other processes share the memory of the recording it is a copy, always the same one:
        a process that is forked must not write to the memory of its parent.
        """
        array = self.array(buffer)
        if not self.is_shared or buffer.storage.kind == REAL:
            return array
        found = self._left.get(buffer)
        if found is None:
            found = self._left[buffer] = np.empty_like(array)
            self.written.add(id(found))
        np.copyto(found, array)
        return found

    def holds(self, buffer: Buffer) -> bool:
        """Return whether a Buffer has memory: something is launched that touches it."""
        return buffer.storage in self._roots

    def read(self, buffer: Buffer) -> Any:
        """Return a copy of what the last run left in a Buffer; a GPU is not waited for."""
        return transfer.duplicate(self.array(buffer))

    def run(self) -> None:
        """Make all calls, in order; on a GPU queue them on the current stream."""
        self.failed = None
        for callback in self.trace.callbacks:
            callback()
        self._runs += 1
        if self._helped is not None:
            self._helped.wake()
        if self._xp is np:
            how = settings()
            if how is not None and how.mode == "checked":
                self.arena[...] = how.poison
            with np.errstate(all="ignore"):  # as a GPU does
                self._make_calls()
        elif self._runs == 1:  # loads modules, tunes products: what a capture cannot do
            self._make_calls_apart()
        else:
            if self._graph is None:
                self._graph = self._captured()
            self._graph.launch(self._xp.cuda.get_current_stream())
            kernel.launches.update(self.counts)

    def _make_calls(self) -> None:
        calls = iter(self._calls)
        try:
            for call in calls:
                call()
        except Exception:
            self.failed = self.trace.launches[-1 - operator.length_hint(calls)]
            raise

    def _make_calls_apart(self) -> None:
        """Make the calls on a stream of their own, between what is queued before and after."""
        self._stream = self._xp.cuda.Stream(non_blocking=True)
        current = self._xp.cuda.get_current_stream()
        self._stream.wait_event(current.record())
        with self._stream:
            self._make_calls()
        current.wait_event(self._stream.record())

    def _captured(self) -> Any:
        before = kernel.launches.copy()
        stream = self._stream
        with stream:
            stream.begin_capture()
            try:
                self._make_calls()
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first says more
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        kernel.launches.clear()
        kernel.launches.update(before)
        return graph


def _concrete(value: Any, array: Callable[[Buffer], Any]) -> Any:
    """Return a value in which arrays are in the place of Buffers."""
    if isinstance(value, Buffer):
        return array(value)
    if isinstance(value, Strided):
        return value._replace(array=_concrete(value.array, array))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_concrete(v, array) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_concrete(v, array) for v in value)
    if isinstance(value, dict):
        return {k: _concrete(v, array) for k, v in value.items()}
    return value


def _bytes(xp: Any, size: int) -> Any:
    """Return memory that begins at a multiple of the arena's alignment."""
    if xp is not np:
        return xp.empty(max(1, size), np.uint8)  # CuPy's pool aligns to 512
    memory = np.zeros(size + arena.ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % arena.ALIGNMENT
    return memory[start : start + size]


def _part(memory: Any, offset: int, size: int) -> Any:
    """Return some bytes of an arena, as an array that knows of no others."""
    if isinstance(memory, np.ndarray):
        return array_at((size,), (1,), np.uint8, memory.ctypes.data + offset, memory)
    return memory[offset : offset + size]
