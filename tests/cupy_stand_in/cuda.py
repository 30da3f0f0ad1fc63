"""What gpugrad needs of ``cupy.cuda``: one GPU on which work is done as soon as it is queued."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class CUDARuntimeError(RuntimeError):
    """Of this kind are the errors of the CUDA runtime."""


class Device:
    """The GPU."""

    compute_capability = "90"
    id = 0

    def __init__(self, device: int = 0) -> None:
        if device != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.attributes = {"MultiProcessorCount": 132, "L2CacheSize": 50 << 20}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    __hash__ = None  # type: ignore[assignment]  # as CuPy's

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def use(self) -> Device:
        return self

    def synchronize(self) -> None:
        wait("Device.synchronize")


# Streams and graphs


class Event:
    """A point in a stream, which has always been reached."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        wait("Event.synchronize")


class Graph:
    """Work that was captured: it is done when the graph is launched."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []

    def launch(self, stream: Stream | None = None) -> None:
        for each in self.work:
            each()


class Stream:
    """A stream: the current one within ``with``, and that of a graph while it captures."""

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int = 0
    ) -> None:
        self.ptr = 0 if null else id(self)
        self._graph: Graph | None = None

    def __enter__(self) -> Stream:
        _streams().append(self)
        return self

    def __exit__(self, *args: object) -> None:
        _streams().pop()

    def record(self, event: Event | None = None) -> Event:
        return event or Event()

    def wait_event(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"wait_event: an Event is needed, not {type(event).__name__}")

    def synchronize(self) -> None:
        if self._graph is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: synchronize in a capture")

    def is_capturing(self) -> bool:
        return self._graph is not None

    def begin_capture(self, mode: object = None) -> None:
        if self is _null:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the null stream")
        self._graph = Graph()

    def end_capture(self) -> Graph:
        if self._graph is None:
            raise CUDARuntimeError("cudaErrorIllegalState: no capture began")
        graph, self._graph = self._graph, None
        return graph

    def do(self, work: Callable[[], object]) -> None:
        """Do work now, or keep it for the graph that is captured."""
        if self._graph is None:
            work()
        else:
            self._graph.work.append(work)


_null = Stream(null=True)
_of_thread = threading.local()


def _streams() -> list[Stream]:
    """Return the streams that this thread has entered."""
    if not hasattr(_of_thread, "streams"):
        _of_thread.streams = [_null]
    return _of_thread.streams


def current_stream() -> Stream:
    """Return the stream on which this thread queues work."""
    return _streams()[-1]


def queue(work: Callable[[], object]) -> None:
    """Queue work that writes memory which is there already."""
    current_stream().do(work)


def wait(what: str) -> None:
    """Raise CUDARuntimeError if work that cannot be captured, or waits, comes in a capture."""
    if current_stream().is_capturing():
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} in a capture")


# Memory


class UnownedMemory:
    """Bytes at an address, which belong to ``owner``."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id
        self.bytes = np.empty(0, np.uint8)
        if size:
            self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(ptr))


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: UnownedMemory, offset: int) -> None:
        self.mem, self.offset = mem, offset
        self.device = Device()

    @property
    def ptr(self) -> int:
        return self.mem.ptr + self.offset

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.offset + offset)

    def _part(self, size: int) -> np.ndarray:
        if not 0 <= self.offset <= self.offset + size <= self.mem.size:
            raise Unnoticed(f"{size} bytes at {self.offset} of {self.mem.size}")
        return self.mem.bytes[self.offset : self.offset + size]

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        part = self._part(size)
        (stream or current_stream()).do(lambda: part.fill(value))

    def copy_from_host_async(
        self, mem: int | ctypes.c_void_p, size: int, stream: Stream | None = None
    ) -> None:
        part = self._part(size)
        (stream or current_stream()).do(lambda: ctypes.memmove(part.ctypes.data, mem, size))


class PinnedMemory(bytearray):
    """Memory of the host; NumPy arrays are made on it."""

    @property
    def ptr(self) -> int:
        return int(np.frombuffer(self, np.uint8).ctypes.data)


class Unnoticed(AssertionError):
    """Raised for what a GPU does not notice and does wrong."""


def namespace() -> Any:
    """Return what stands for ``cupy.cuda``."""
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        getDeviceProperties=lambda device: {
            "name": b"stand-in",
            "multiProcessorCount": 132,
            "totalGlobalMem": 1 << 34,
        },
        memGetInfo=lambda: (1 << 33, 1 << 34),
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        deviceSynchronize=lambda: wait("deviceSynchronize"),
    )
    return SimpleNamespace(
        runtime=runtime,
        Device=Device,
        Stream=Stream,
        Event=Event,
        UnownedMemory=UnownedMemory,
        MemoryPointer=MemoryPointer,
        get_current_stream=current_stream,
        alloc_pinned_memory=PinnedMemory,
        is_available=lambda: True,
        get_device_id=lambda: 0,
    )
