"""``check`` and ``sweep``: kernels in both builds and in every order of threads and blocks."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import memory_base
from ..cuda import source
from ..cuda.arguments import Strided
from ..cuda.emulation import Settings, enabled
from .faults import OrderDependent
from .memory import mark, marks_of, marks_of_owner
from .module import Kernel, Module

_PAD = 4096  # bytes around every array, so that a step outside never meets another one
_ALIGNMENT = 256  # of an allocation on the GPU
# ascending and descending order see most mistakes; the bytes are a NaN and a huge number, since
# fmaxf and fminf hide a NaN
SWEEP = (
    Settings("checked", "ascending", poison=0xFF),
    Settings("checked", "descending", poison=0x7E, late_copies=True),
    Settings("checked", "random", seed=1, poison=0xFF, late_copies=True),
    Settings("checked", "random", seed=2, poison=0x7E),
    Settings("plain", "ascending", poison=0x7E, late_copies=True),
    Settings("plain", "descending", poison=0xFF),
)


def check(
    path: str | os.PathLike[str] | Module,
    kernel: str | None = None,
    *,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared_mem: int = 0,
    defines: Mapping[str, object] | None = None,
    sweep: Sequence[Settings] = SWEEP,
    bitwise: bool = True,
) -> list[Any]:
    """Run a kernel of a .cu file on the CPU in many ways and return its arguments afterwards.

    Every run of ``sweep`` (checked and plain build; ascending, descending and random orders of
    threads and blocks; two contents of shared memory) starts from copies of ``args``: numpy arrays,
    ``cuda.strided`` ones, None for a null pointer, numbers. Copies of arrays that overlap do so
    too; where one begins inside of its memory, its alignment is that of its place there, as on a
    GPU. The returned list holds the arrays as the first run left them; yours stay as they are.
    ``path`` is a file, the source itself, or a Module; ``kernel`` may be left out where there is
    only one. ``__CUDA_ARCH__`` is 900 unless ``defines`` sets it; ``GPUGRAD_EMULATE`` is defined
    here alone.

    Raises the Fault that was found, with kernel, block, thread, variable and line; OrderDependent
    if the arrays are not bitwise equal after all runs, bytes of ``empty`` arrays that nobody wrote
    aside (``bitwise=False`` allows it, for floating atomics); CompileError; TypeError and
    ValueError for arguments no launch would take.
    """
    if isinstance(path, Module):
        module = path
    elif isinstance(path, str) and "__global__" in path:
        module = Module(path, defines)
    else:
        file = Path(path)
        module = Module(source.inline(file), defines, file.name)
    names = list(module.signatures)
    if kernel is None and len(names) > 1:
        raise ValueError(f"{module.name} has several kernels: kernel= one of {', '.join(names)}")
    function = module.get_function(names[0] if kernel is None else kernel)
    expected: list[Any] | None = None
    for how in sweep:
        after = _copies(args, how.poison)
        function(grid, block, after, shared_mem, how=how)
        if expected is None:
            expected = after
        elif bitwise:
            _compare(function, expected, after, sweep[0], how)
    return list(args) if expected is None else expected


def sweep(
    run: Callable[[], Any],
    settings: Sequence[Settings] = SWEEP,
    bitwise: bool = True,
) -> Any:
    """Call a function that launches kernels under each of the settings; return what it gave first.

    For kernels behind a launcher or an operation: ``run`` makes its results anew from the same
    inputs, and returns arrays or tensors, or nested tuples, lists and dicts of them. Raises the
    Fault that was found, and OrderDependent if the results are not bitwise equal under all
    settings.
    """
    first: Any = None
    for i, how in enumerate(settings):
        with enabled(**how._asdict()):
            found = run()
        if i == 0:
            first = found
        elif bitwise:
            _compare_results("the result", first, found, settings[0], how)
    return first


def _compare_results(what: str, a: Any, b: Any, first: Settings, how: Settings) -> None:
    if isinstance(a, (tuple, list)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare_results(f"{what}[{i}]", x, y, first, how)
    elif isinstance(a, dict):
        for key, x in a.items():
            _compare_results(f"{what}[{key!r}]", x, b[key], first, how)
    elif a is not None:
        x, y = np.asarray(a), np.asarray(b)
        if x.tobytes() == y.tobytes():
            return
        differs = [p.tobytes() != q.tobytes() for p, q in zip(x.flat, y.flat, strict=True)]
        k = differs.index(True)
        marks = marks_of(x)
        unwritten = marks is not None and marks.reshape(x.size, -1)[k].any()
        raise OrderDependent(
            f"order-dependent: element {k} of {what} is {x.flat[k]} in one run and {y.flat[k]} in "
            f"another ({sum(differs)} of {x.size} differ)"
            f"{'; no kernel wrote it: this is what memory held before' if unwritten else ''}"
            f"\n  one: {first}\n  another: {how}",
            "",
            variable=what,
        )


def _copies(args: Sequence[Any], poison: int) -> list[Any]:
    """Return the arguments with every array copied; what overlaps, into views of one copy."""
    spans = [span for span in map(_span, args) if span]
    pieces: list[_Span] = []
    for span in sorted(spans, key=lambda span: span[:2]):
        if pieces and span.start < pieces[-1].end:
            pieces[-1] = pieces[-1]._replace(end=max(span.end, pieces[-1].end))
        else:
            pieces.append(span)
    copies = [(piece.start, _copy(piece, poison)) for piece in pieces]
    views: dict[int, np.ndarray] = {}
    made = []
    for value in args:
        if _span(value):
            array = value.array if isinstance(value, Strided) else value
            view = views.setdefault(id(array), _view(array, copies))
            value = value._replace(array=view) if isinstance(value, Strided) else view
        made.append(value)
    return made


class _Span(NamedTuple):
    """The addresses that a launch lets an argument reach, and the array that owns them."""

    start: int
    end: int
    owner: np.ndarray


def _span(value: Any) -> _Span | None:
    """Return an argument's; None for numbers, and for arrays that the launch refuses."""
    array = value.array if isinstance(value, Strided) else value
    if not isinstance(array, np.ndarray):
        return None
    owner = memory_base(array)
    if isinstance(value, Strided):
        array = owner
    elif not array.flags.c_contiguous:
        return None
    start, end = np.lib.array_utils.byte_bounds(array)
    return _Span(start, end, owner) if end - start == array.nbytes else None


def _copy(span: _Span, poison: int) -> np.ndarray:
    """Return the bytes of a span, aligned as if their owner were an allocation of its own."""
    size, offset = span.end - span.start, span.start - span.owner.ctypes.data
    memory = bytearray(size + 2 * _PAD + _ALIGNMENT)  # no array: what looks at it owns it
    first = np.frombuffer(memory, np.uint8).ctypes.data + _PAD
    copy = np.ndarray(size, np.uint8, memory, _PAD + (offset - first) % _ALIGNMENT)
    ctypes.memmove(copy.ctypes.data, span.start, size)
    marks = marks_of_owner(span.owner)
    if marks is not None:
        mark(copy, marks[offset : offset + size], poison)
    copy.flags.writeable = span.owner.flags.writeable
    return copy


def _view(array: np.ndarray, copies: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Return what looks at its copy as the array does at its memory."""
    address = array.ctypes.data
    start, copy = [found for found in copies if found[0] <= address][-1]
    view = np.ndarray(array.shape, array.dtype, copy, address - start, array.strides)
    view.flags.writeable = array.flags.writeable
    return view


def _compare(
    function: Kernel, expected: Sequence[Any], after: Sequence[Any], first: Settings, how: Settings
) -> None:
    for parameter, a, b in zip(function.parameters, expected, after, strict=True):
        if isinstance(a, Strided):
            a, b = a.array, b.array
        if not isinstance(a, np.ndarray):
            continue
        differs = np.frombuffer(a.tobytes(), np.uint8) != np.frombuffer(b.tobytes(), np.uint8)
        unwritten = marks_of(a)
        if unwritten is not None:
            differs &= unwritten == 0
        if not differs.any():
            continue
        index = int(differs.argmax()) // a.itemsize
        raise OrderDependent(
            f"order-dependent result in kernel {function.name!r}: element {index} of "
            f"{parameter.name!r} is {a.reshape(-1)[index]} in one run and "
            f"{b.reshape(-1)[index]} in another\n  one: {first}\n  another: {how}",
            function.name,
            variable=parameter.name,
        )
