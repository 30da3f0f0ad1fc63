"""Kernels on the CPU behind the same calls as on the GPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..cuda import tensor_map
from ..cuda.arguments import MAX_SHARED, Parameter, Strided, checked, checked_sizes
from ..cuda.emulation import ORDERS, Settings, settings
from ..cuda.source import check_name, signatures
from . import compile as compiler
from .faults import Report, to_exception

_shared_bytes = functools.cache(compiler.shared_bytes)


class _Array(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_int32),
        ("argument", ctypes.c_int32),
    )


class _Launch(ctypes.Structure):
    """``Launch`` in internal.hpp."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic", ctypes.c_uint64),
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
        ("poison", ctypes.c_int32),
        ("checked", ctypes.c_int32),
        ("seconds", ctypes.c_double),
        ("arrays", ctypes.POINTER(_Array)),
        ("array_count", ctypes.c_int32),
        ("late_copies", ctypes.c_int32),
        ("blocks", ctypes.c_uint64),
    )


class _Entry(ctypes.Structure):
    """``Kernel`` in runtime.hpp."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("parameters", ctypes.c_int32),
        ("sizes", ctypes.POINTER(ctypes.c_int32)),
        ("max_threads", ctypes.c_int32),
    )


class Module:
    """The kernels of one source, compiled for the CPU when they are first launched.

    ``source`` is the text with its headers inlined, ``defines`` the macros to compile it with.
    ``portable`` switches stacks without assembly.
    """

    def __init__(
        self,
        source: str,
        defines: Mapping[str, object] | None = None,
        name: str = "kernel.cu",
        portable: bool = False,
    ) -> None:
        self.source, self.defines, self.name, self.portable = (
            source,
            dict(defines or {}),
            name,
            portable,
        )
        self.signatures = signatures(source)
        if not self.signatures:
            raise ValueError(f'{name} has no kernel; declare one as extern "C" __global__ void ...')
        self._libraries: dict[str, tuple[ctypes.CDLL, Path]] = {}

    def get_function(self, name: str) -> Kernel:
        """Return the kernel of that name; KeyError lists those there are."""
        check_name(name, self.signatures, self.name)
        return Kernel(self, name)

    def library(self, mode: str) -> tuple[ctypes.CDLL, Path]:
        """Return the compiled library for a mode, and its path."""
        if mode not in self._libraries:
            path = compiler.build(
                self.source, mode, list(self.signatures), self.defines, self.name, self.portable
            )
            self._libraries[mode] = ctypes.CDLL(str(path)), path
        return self._libraries[mode]


class Kernel:
    """A kernel on the CPU. Call it as CuPy's: ``kernel(grid, block, arguments, shared_mem=0)``."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        self.parameters: tuple[Parameter, ...] = module.signatures[name]

    def __call__(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        *,
        how: Settings | None = None,
        reachable: Sequence[np.ndarray] = (),
    ) -> None:
        """Run the kernel and wait for it.

        Arrays must be C-contiguous numpy arrays, Strided or None; ``reachable`` are arrays that
        the kernel reaches through pointers in memory. ``how`` overrides what ``enabled`` chose.
        Raises TypeError and ValueError for arguments and sizes a GPU launch would not take, Fault
        for what goes wrong inside.
        """
        how = (how or settings() or Settings()).checked()
        grid, block = checked_sizes(self.name, grid, block, shared_mem)
        given = checked(self.name, self.parameters, args, self.module.defines)
        values = [_c_value(*pair) for pair in zip(self.parameters, given, strict=True)]
        named = [
            (_memory(self.name, parameter.name, value), parameter.name)
            for parameter, value in zip(self.parameters, given, strict=True)
            if isinstance(value, (np.ndarray, Strided))
        ] + [(array, f"reachable[{i}]") for i, array in enumerate(reachable)]
        library, path = self.module.library(how.mode)
        entry = _Entry.in_dll(library, f"gpugrad_kernel_{self.name}")
        self._match(entry, values)
        threads = block[0] * block[1] * block[2]
        if threads > entry.max_threads:
            raise ValueError(
                f"kernel {self.name!r}: a block of {threads} threads; "
                f"__launch_bounds__ allows {entry.max_threads}"
            )
        if shared_mem > MAX_SHARED - compiler.STATIC_SHARED:
            static = _shared_bytes(path, self.name)
            if shared_mem + static > MAX_SHARED:
                raise ValueError(
                    f"kernel {self.name!r}: {shared_mem} bytes of dynamic shared memory beside "
                    f"{static} that it declares; a block has {MAX_SHARED}"
                )
        regions = _array_type(_Array, len(named))(
            *(
                _Array(array.ctypes.data, array.nbytes, array.flags.writeable, i)
                for i, (array, _) in enumerate(named)
            )
        )
        pointers = _array_type(ctypes.c_void_p, len(values))(
            *(v.ctypes.data if isinstance(v, np.ndarray) else ctypes.addressof(v) for v in values)
        )
        launch = _Launch(
            entry.entry,
            pointers,
            _array_type(ctypes.c_uint32, 3)(*grid),
            _array_type(ctypes.c_uint32, 3)(*block),
            shared_mem,
            ORDERS.index(how.order),
            how.seed & 0xFFFFFFFF,
            how.poison,
            how.mode == "checked",
            how.seconds,
            regions,
            len(named),
            how.late_copies,
            how.blocks or 2**64 - 1,
        )
        report = Report()
        runtime = compiler.loaded(compiler.runtime(self.module.portable))
        with compiler.lock:
            failed = runtime.gpugrad_launch(ctypes.byref(launch), ctypes.byref(report))
        if failed == 2:
            raise MemoryError("the emulator finds no memory for the stacks of its threads")
        if failed:
            fault = to_exception(report, self.name, path, [name for _, name in named])
            fault.how = how
            raise fault

    def _match(self, entry: _Entry, values: Sequence[Any]) -> None:
        """Raise TypeError if the compiler saw other parameters than the parser of the source."""
        sizes = [entry.sizes[i] for i in range(entry.parameters)]
        given = [v.nbytes if isinstance(v, np.ndarray) else ctypes.sizeof(v) for v in values]
        if sizes != given:
            raise TypeError(
                f"kernel {self.name!r}: its parameters take {sizes} bytes, the arguments {given}"
            )


@functools.cache
def _array_type(kind: Any, length: int) -> Any:
    """Return ctypes' type of an array: a new one would be a cycle for the garbage collector."""
    return kind * max(1, length)


def _c_value(parameter: Parameter, value: Any) -> Any:
    """Return what is passed, as a ctypes object; a TensorMap as an array of one element."""
    if parameter.type == tensor_map.NAME:
        array, box = value
        return tensor_map.in_the_open(array, box, array.ctypes.data)
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, (np.ndarray, Strided)):
        held = value.array if isinstance(value, Strided) else value
        return ctypes.c_void_p(held.ctypes.data)
    return np.ctypeslib.as_ctypes_type(value.dtype)(value)


def _memory(kernel: str, parameter: str, value: Any) -> np.ndarray:
    """Return the array that holds all that an argument may reach."""
    if not isinstance(value, Strided):
        return value
    base = backend.memory_base(value.array)
    base = base.transpose(sorted(range(base.ndim), key=lambda axis: -base.strides[axis]))
    if not base.flags.c_contiguous:
        raise ValueError(
            f"kernel {kernel!r}, argument {parameter!r}: the array is a view of memory with gaps; "
            "copy it"
        )
    return base
