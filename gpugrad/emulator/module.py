"""Kernels on the CPU behind the same calls as on the GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cuda.source import Parameter, signatures
from . import compile as compiler
from .arguments import convert
from .faults import Report, to_exception
from .state import ORDERS, Settings, settings

MAX_THREADS, MAX_SHARED = 1024, 227 << 10  # what a GPU (sm_90) gives a block
_GRID_LIMITS = (2**31 - 1, 65535, 65535)
_BLOCK_LIMITS = (1024, 1024, 64)


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
        if name not in self.signatures:
            raise KeyError(
                f"{self.name} has no kernel {name!r}; it has {', '.join(self.signatures)}"
            )
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
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        *,
        how: Settings | None = None,
        reachable: Sequence[np.ndarray] = (),
    ) -> None:
        """Run the kernel and wait for it.

        Arrays must be C-contiguous numpy arrays or None; ``reachable`` are arrays that the kernel
        reaches through pointers in memory. ``how`` overrides what ``enabled`` chose. Raises
        TypeError and ValueError for arguments and sizes a GPU launch would not take, Fault for
        what goes wrong inside.
        """
        how = (how or settings() or Settings()).checked()
        grid_size = self._size("grid", grid, _GRID_LIMITS)
        block_size = self._size("block", block, _BLOCK_LIMITS)
        values, arrays, names = convert(self.name, self.parameters, args, self.module.defines)
        arrays += reachable
        names += [f"reachable[{i}]" for i in range(len(reachable))]
        if not 0 <= shared_mem <= MAX_SHARED:
            raise ValueError(
                f"kernel {self.name!r}: {shared_mem} bytes of dynamic shared memory; "
                f"a block has 0 to {MAX_SHARED}"
            )
        library, path = self.module.library(how.mode)
        entry = _Entry.in_dll(library, f"gpugrad_kernel_{self.name}")
        self._match(entry, values)
        threads = block_size[0] * block_size[1] * block_size[2]
        if threads > entry.max_threads:
            raise ValueError(
                f"kernel {self.name!r}: a block of {threads} threads; "
                f"__launch_bounds__ allows {entry.max_threads}"
            )
        regions = (_Array * max(1, len(arrays)))(
            *(
                _Array(array.ctypes.data, array.nbytes, array.flags.writeable, i)
                for i, array in enumerate(arrays)
            )
        )
        pointers = (ctypes.c_void_p * max(1, len(values)))(
            *(ctypes.addressof(value) for value in values)
        )
        launch = _Launch(
            entry.entry,
            pointers,
            grid_size,
            block_size,
            shared_mem,
            ORDERS.index(how.order),
            how.seed & 0xFFFFFFFF,
            how.poison,
            how.mode == "checked",
            how.seconds,
            regions,
            len(arrays),
            how.late_copies,
        )
        report = Report()
        runtime = ctypes.CDLL(str(compiler.runtime(self.module.portable)))
        with compiler.lock:
            failed = runtime.gpugrad_launch(ctypes.byref(launch), ctypes.byref(report))
        if failed == 2:
            raise MemoryError("the emulator finds no memory for the stacks of its threads")
        if failed:
            fault = to_exception(report, self.name, path, names)
            fault.how = how
            raise fault

    def _size(self, what: str, size: Sequence[int], limits: Sequence[int]) -> Any:
        given = tuple(int(n) for n in ((size,) if isinstance(size, int) else size))
        full = given + (1,) * (3 - len(given))
        good = 1 <= len(given) <= 3 and all(
            1 <= n <= limit for n, limit in zip(full, limits, strict=True)
        )
        if not good or (what == "block" and full[0] * full[1] * full[2] > MAX_THREADS):
            total = f", {MAX_THREADS} in all" if what == "block" else ""
            raise ValueError(
                f"kernel {self.name!r}: {what} {given} is not possible; "
                f"the limits are {tuple(limits)}{total}, the least is 1"
            )
        return (ctypes.c_uint32 * 3)(*full)

    def _match(self, entry: _Entry, values: Sequence[Any]) -> None:
        """Raise TypeError if the compiler saw other parameters than the parser of the source."""
        sizes = [entry.sizes[i] for i in range(entry.parameters)]
        if sizes != [ctypes.sizeof(value) for value in values]:
            raise TypeError(
                f"kernel {self.name!r}: its parameters take {sizes} bytes, "
                f"the arguments {[ctypes.sizeof(value) for value in values]}"
            )
