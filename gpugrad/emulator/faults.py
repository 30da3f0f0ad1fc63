"""What the emulator reports: one exception class per kind of fault, with the place it happened."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..cuda.emulation import Settings
from .compile import tool


class Fault(RuntimeError):
    """A kernel did something that a GPU does not define, or would not survive.

    Attributes: ``kernel``, ``block`` and ``thread`` (indices of three), ``file``, ``line``, and
    where they are known ``variable``, ``other`` (the Place of the access it collides with) and
    ``how`` (the Settings of the run, to repeat it).
    """

    kind = "fault"

    def __init__(self, message: str, kernel: str = "", **details: Any) -> None:
        super().__init__(message)
        self.kernel = kernel
        self.block: tuple[int, ...] | None = details.get("block")
        self.thread: tuple[int, ...] | None = details.get("thread")
        self.file: str = details.get("file", "")
        self.line: int = details.get("line", 0)
        self.variable: str | None = details.get("variable")
        self.other: Place | None = details.get("other")
        self.how: Settings | None = details.get("how")


class Race(Fault):
    """Two threads access the same memory, one of them writes, nothing orders them."""

    kind = "data race"


class OutOfBounds(Fault):
    """An access or an index outside of an array or of shared memory."""

    kind = "out of bounds"


class Uninitialised(Fault):
    """A read of memory that nobody has written."""

    kind = "uninitialised read"


class Misaligned(Fault):
    """An access at an address that is not a multiple of its alignment."""

    kind = "misaligned access"


class Overflow(Fault):
    """Signed integer overflow, a float that its integer cannot hold, a shift not defined."""

    kind = "integer overflow"


class DivergentBarrier(Fault):
    """A barrier that the threads of a block do not reach together, or some never: they returned."""

    kind = "divergent barrier"


class WarpMismatch(Fault):
    """A warp operation with a wrong mask, or whose lanes do not come together."""

    kind = "warp mismatch"


class Deadlock(Fault):
    """All threads wait for one another."""

    kind = "deadlock"


class Timeout(Fault):
    """A kernel did not end within its processor time."""

    kind = "endless loop"


class MemoryFault(Fault):
    """A null pointer, or an address where no memory is."""

    kind = "memory fault"


class StackOverflow(Fault):
    """Local variables beyond a thread's stack."""

    kind = "stack overflow"


class AssertionFailed(Fault):
    """``assert`` or ``__trap`` in a kernel."""

    kind = "assertion"


class Division(Fault):
    """Integer division by zero."""

    kind = "integer division"


class Undefined(Fault):
    """Another operation that C++ does not define."""

    kind = "undefined behaviour"


class ReadOnly(Fault):
    """A write to an array that is not writeable."""

    kind = "write to a read-only array"


class OrderDependent(Fault):
    """Results differ between orders of threads, or with what memory held before."""

    kind = "order-dependent result"


# in the order of `Kind` in internal.hpp
_KINDS: tuple[type[Fault], ...] = (
    Fault,
    Race,
    OutOfBounds,
    Uninitialised,
    Misaligned,
    Overflow,
    DivergentBarrier,
    WarpMismatch,
    Deadlock,
    Timeout,
    MemoryFault,
    StackOverflow,
    AssertionFailed,
    Division,
    Undefined,
    ReadOnly,
)
_NOWHERE, _SHARED, _DYNAMIC, _GLOBAL, _STATIC = range(5)


class Place(NamedTuple):
    """A thread at a line of the source; ``callers`` if that line was inlined into others."""

    block: tuple[int, ...]
    thread: tuple[int, ...]
    file: str
    line: int
    callers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " called from ".join([f"{self.file}:{self.line}", *self.callers])


class RawPlace(ctypes.Structure):
    """``Place`` in internal.hpp."""

    _fields_ = (
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("pc", ctypes.c_uint64),
        ("file", ctypes.c_char * 256),
        ("line", ctypes.c_int32),
    )


class Report(ctypes.Structure):
    """``Report`` in internal.hpp."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("has_other", ctypes.c_int32),
        ("here", RawPlace),
        ("other", RawPlace),
        ("space", ctypes.c_int32),
        ("argument", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("extent", ctypes.c_int64),
        ("text", ctypes.c_char * 1200),
    )


def to_exception(report: Report, kernel: str, library: Path, arguments: Sequence[str]) -> Fault:
    """Return the exception for a report; ``arguments`` names the launch's arrays."""
    cls = _KINDS[report.kind]
    here = _place(report.here, library)
    variable, memory = _memory(report, library, arguments)
    message = (
        f"{cls.kind} in kernel {kernel!r} at {here}, block {here.block}, "
        f"thread {here.thread}: {report.text.decode(errors='replace')}"
    )
    if memory:
        message += f"\n  memory: {memory}"
    other = _place(report.other, library) if report.has_other else None
    if other:
        block = "the same block" if other.block == here.block else f"block {other.block}"
        message += f"\n  the other access: {other}, {block}, thread {other.thread}"
    return cls(
        message,
        kernel,
        block=here.block,
        thread=here.thread,
        file=here.file,
        line=here.line,
        variable=variable,
        other=other,
    )


def _place(raw: RawPlace, library: Path) -> Place:
    lines = _source_lines(library, raw.pc - 1) if raw.pc else []  # a return address: the call is
    lines = lines or [(raw.file.decode(errors="replace") or "?", raw.line)]  # before it
    callers = tuple(f"{file}:{line}" for file, line in lines[1:])
    return Place(tuple(raw.block), tuple(raw.thread), *lines[0], callers)


def _source_lines(library: Path, address: int) -> list[tuple[str, int]]:
    """Return file and line of an address in a library, then of the calls inlined around it."""
    lines = []
    for shown in tool("addr2line", "-i", "-e", str(library), hex(address)).splitlines():
        file, _, rest = shown.rpartition(":")
        number = rest.split(" ")[0]  # "12 (discriminator 3)"
        lines.append((Path(file).name, int(number) if number.isdigit() else 0))
    return [line for line in lines if line[0] not in ("runtime.hpp", "??")]


def _memory(report: Report, library: Path, arguments: Sequence[str]) -> tuple[str | None, str]:
    """Return the variable's name and a sentence on the bytes accessed."""
    if report.space == _NOWHERE:
        return None, ""
    offset, size, extent = report.offset, report.size, report.extent
    if report.space == _GLOBAL:
        name, what = arguments[report.argument], "array"
    elif report.space == _DYNAMIC:
        name, what = "dynamic shared memory", ""
    else:
        kind, start = ("TLS", 0) if report.space == _SHARED else ("OBJECT", report.argument)
        what = "shared" if report.space == _SHARED else "variable"
        found = _symbol(library, kind, start + offset)
        if found is None:
            return None, f"{what} memory"
        name, begin, extent = found
        offset = start + offset - begin
        if offset >= extent:
            return None, f"{what} memory, {offset - extent} bytes behind the end of {name!r}"
    where = f"bytes {offset} to {offset + size - 1} of {extent}"
    return name, f"{what} {name!r}, {where}" if what else f"{name}, {where}"


def _symbol(library: Path, kind: str, address: int) -> tuple[str, int, int] | None:
    """Return (name, start, size) of the variable that holds an address, else of the last before."""
    last = None
    for line in tool("readelf", "-sW", "--demangle", str(library)).splitlines():
        words = line.split(None, 7)
        if len(words) < 8 or words[3] != kind:
            continue
        start, size = int(words[1], 16), int(words[2], 0)
        found = words[7].split("::")[-1], start, size
        if start <= address < start + size:
            return found
        if size and start <= address and (last is None or start > last[1]):
            last = found
    return last
