"""Kernels on a GPU: cubins loaded by CuPy. The same calls as the emulator's Module and Kernel."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend
from . import tensor_map
from .arguments import Parameter, Strided, checked, checked_sizes
from .compiler import compile_cubin
from .kernel import address
from .source import check_name, signatures


def architecture(capability: int) -> str:
    """Return the architecture to compile for, with the features of that GPU alone if it has any."""
    return f"sm_{capability}" + ("a" if capability >= 90 else "")


class Module:
    """The kernels of one source, compiled for a GPU and loaded into its context.

    Raises RuntimeError for a GPU older than ``since``, CompileError with the compiler's log.
    """

    def __init__(
        self, source: str, defines: Mapping[str, object], name: str, device: int, since: int
    ) -> None:
        self.name, self.defines = name, dict(defines)
        self.signatures = signatures(source)
        self._shared: dict[str, int] = {}  # bytes of dynamic shared memory that kernels may have
        self._asking = threading.Lock()
        options = [f"-D{key}={value}" for key, value in self.defines.items()]
        self.device = backend.cupy_module().cuda.Device(device)
        capability = int(self.device.compute_capability)
        if capability < since:
            raise RuntimeError(
                f"{name} needs a GPU of compute capability {since / 10}; device {device} has "
                f"{capability / 10}"
            )
        self.cubin = compile_cubin(source, name, architecture(capability), options)
        self._loaded = importlib.import_module("cupy.cuda.function").Module()
        with self.device:
            self._loaded.load(self.cubin.code)

    def get_function(self, name: str) -> Kernel:
        """Return the kernel of that name; KeyError lists those there are."""
        check_name(name, self.signatures, self.name)
        return Kernel(self, name, self._loaded.get_function(name))

    def allow_shared(self, name: str, function: Any, size: int) -> int:
        """Tell the driver how many bytes of dynamic shared memory a kernel may have; return them.

        Untold it may have 48 KiB less its static ones. They never become fewer.
        """
        driver = importlib.import_module("cupy.cuda").driver
        with self._asking:
            if size > self._shared.get(name, 0):
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(function.ptr, attribute, size)
                self._shared[name] = size
            return self._shared[name]


class Kernel:
    """A kernel on a GPU. Call it as CuPy's: ``kernel(grid, block, arguments, shared_mem=0)``."""

    def __init__(self, module: Module, name: str, function: Any) -> None:
        self.module, self.name = module, name
        self.parameters: tuple[Parameter, ...] = module.signatures[name]
        self._function = function
        self._allowed = 0  # bytes of dynamic shared memory

    def __call__(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        *,
        reachable: Sequence[Any] = (),
    ) -> None:
        """Queue the kernel on the current stream. ``reachable`` only keeps arrays alive."""
        grid, block = checked_sizes(self.name, grid, block, shared_mem)
        values = checked(self.name, self.parameters, args, self.module.defines)
        # CuPy would pass None as no pointer to a parameter at all: a crash
        passed = tuple(map(_value, self.parameters, values))
        with self.module.device:
            if shared_mem > self._allowed:
                self._allowed = self.module.allow_shared(self.name, self._function, shared_mem)
            self._function(grid, block, passed, shared_mem)


def _value(parameter: Parameter, value: Any) -> Any:
    if value is None:
        return np.uint64(0)
    if not isinstance(value, Strided):
        return np.uint64(address(value)) if backend.is_array(value) else value
    if parameter.type != tensor_map.NAME:
        return np.uint64(address(value.array))
    array, box = value
    if box is None:
        return tensor_map.in_the_open(array, box, address(array))
    return tensor_map.by_driver(array, box, address(array))
