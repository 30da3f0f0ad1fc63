"""Sources and their launches: the same call for arrays on a GPU and, emulated, on the CPU.

    SOURCE = Source("layer_norm.cu", variants=variants(GPUGRAD_DTYPE=(0, 1, 2)))
    SOURCE.launch("layer_norm_forward", (rows,), (256,), args, GPUGRAD_DTYPE=dtype_code(x.dtype))

A source is compiled when one of its kernels is first launched, once per variant (a choice of
macros) and architecture.
"""

from __future__ import annotations

import collections
import functools
import importlib
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from .arguments import LARGEST, Strided
from .emulation import settings

if TYPE_CHECKING:
    from pathlib import Path

EMULATED = 1000  # the compute capability of the emulator: it lacks nothing
OF_META = 90  # that of arrays without elements, outside of a recording
OLDEST = 75  # compute capability that kernels need, unless they say otherwise
DTYPE_CODES = {backend.float32: 0, backend.bfloat16: 1, backend.float16: 2}  # GPUGRAD_DTYPE

SOURCES: dict[str, Source] = {}  # every source that was declared, by its path
launches: collections.Counter[str] = collections.Counter()  # by kernel


def variants(**choices: Sequence[object]) -> tuple[dict[str, object], ...]:
    """Return every combination of the values of some macros."""
    return tuple(
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    )


def dtype_code(dtype: np.dtype) -> int:
    """Return what GPUGRAD_DTYPE is for a dtype; TypeError where kernels know none."""
    if dtype not in DTYPE_CODES:
        names = ", ".join(d.name for d in DTYPE_CODES)
        raise TypeError(f"CUDA kernels compute with {names}, not {dtype}")
    return DTYPE_CODES[dtype]


def fits(*arrays: Any, since: int = OLDEST) -> bool:
    """Return whether kernels can take the arrays, None aside.

    The floating ones have to share one dtype that kernels know; a GPU must have at least the
    compute capability ``since`` (major and minor digit).
    """
    given = [a for a in arrays if a is not None]
    found = {a.dtype for a in given if backend.is_float(a.dtype)}
    if len(found) != 1 or not found <= DTYPE_CODES.keys():
        return False
    return capability(given[0]) >= since


def capability(array: Any) -> int:
    """Return the compute capability of the GPU an array is on, major and minor digit as in 90.

    In the emulator, which runs the kernels of any GPU, it is EMULATED.
    """
    if isinstance(array, np.ndarray):
        return EMULATED
    if isinstance(array, backend.Symbolic):
        trace = _module("cuda.recording").current()
        return OF_META if trace is None else int(trace.capability)
    return _capability(array.device)


_capabilities: dict[int, int] = {}  # by the number of a GPU: CuPy's devices have no hash


def _capability(device: Any) -> int:
    """Return a GPU's compute capability; warn once of one that few kernels or none can run on."""
    if device.id in _capabilities:
        return _capabilities[device.id]
    capability = _capabilities[device.id] = int(device.compute_capability)
    if capability < OLDEST:
        missing = (
            f"gpugrad's kernels need {OLDEST / 10}, and random numbers, products of matrices and "
            "gradients need kernels; GPUGRAD_DEVICE=cpu computes with NumPy"
        )
    elif capability < 80:
        missing = (
            "gpugrad's kernels of attention need 8.0, CuPy's operations take their place; "
            "gg.compile runs steps as they are"
        )
    else:
        return capability
    warnings.warn(
        f"GPU {device.id} has compute capability {capability / 10}: {missing}", stacklevel=4
    )
    return capability


def emulated() -> bool:
    """Return whether kernels take numpy arrays now."""
    return settings() is not None


def strided(array: Any, box: tuple[int, ...] | None = None) -> Strided:
    """Mark an argument whose strides the kernel gets as numbers, so that any layout will do.

    Also what a parameter that is a ``TensorMap`` is given; with ``box``, lengths along the axes of
    the array, for copies of boxes by the copy engine (see ``tensor_map``).
    """
    return Strided(array, box)


def empty(shape: int | Sequence[int], dtype: Any, like: Any) -> Any:
    """Return an array for a kernel to fill, on the kind of device ``like`` is on (the current GPU).

    In the checked emulator its bytes count as uninitialised until a kernel writes them.
    """
    if not isinstance(like, np.ndarray):
        return backend.xp_of(like).empty(shape, dtype)  # a GPU's, or a recorded one
    how = settings()
    if how is not None and how.mode == "checked":
        return _module("emulator").empty(shape, dtype, how.poison)
    return np.empty(shape, dtype)


def contiguous(array: Any) -> Any:
    """Return the array, or a copy with its elements in C order; None is passed on."""
    if array is None or array.flags.c_contiguous:
        return array
    return backend.xp_of(array).ascontiguousarray(array)


def address(array: Any) -> int:
    """Return where an array begins in its device's memory, for tables of pointers.

    A recorded array has no place yet; what is returned then has the alignment that it will have.
    """
    if isinstance(array, backend.Symbolic):
        return int(_module("cuda.recording").address(array))
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


class Source:
    """One .cu file. ``variants`` are the choices of macros it is compiled and tested with.

    A relative ``path`` names a shipped kernel. ``large`` declares that the kernels index with 64
    bits; without it arrays of more than 2**31 - 1 elements are refused. ``since`` is the compute
    capability (major and minor digit) of the oldest GPU it can run on, ``until`` that of the
    newest. With ``text``, headers written into it, the source was generated: there is no file, and
    SOURCES does not list it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        variants: Sequence[Mapping[str, object]] = ({},),
        large: bool = False,
        since: int = OLDEST,
        until: int = EMULATED,
        text: str | None = None,
    ) -> None:
        self._path = path
        self.name = os.path.basename(path)
        self.variants = tuple(dict(variant) for variant in variants)
        self.large, self.since, self.until = large, since, until
        self.launches = 0  # of all its kernels
        self._modules: dict[tuple, Any] = {}
        self._functions: dict[tuple, Any] = {}
        self._text = text
        if text is None:
            SOURCES[os.fspath(path)] = self

    @property
    def path(self) -> Path:
        """Where the file is."""
        return _module("cuda.source").folder() / self._path

    @property
    def text(self) -> str:
        """The source with its headers written into it."""
        if self._text is None:
            self._text = _module("cuda.source").inline(self.path)
        return self._text

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        reachable: Sequence[Any] = (),
        written: Sequence[Any] = (),
        **defines: object,
    ) -> None:
        """Run a kernel on cupy arrays on their GPU, on numpy arrays in the emulator.

        ``args``: C-contiguous arrays (or ``strided``), None for a null pointer, numbers, which are
        cast to the declared types. ``reachable`` and ``written`` are arrays whose addresses lie in
        memory, those the kernel only reads and those it writes. ``shared_mem`` is in bytes. On a
        GPU the launch is queued on the current stream; with recorded arrays (``recording``) it is
        appended to the list.

        Raises KeyError for a kernel that the source has not, TypeError, ValueError and
        OverflowError for what a GPU would refuse or silently misread, RuntimeError where numpy
        arrays come while the emulator is off, Fault for what the emulator finds. Messages hold the
        kernel and the arguments.
        """
        devices = {_device(value) for value in (*args, *reachable, *written)} - {None}
        if "recorded" in devices:
            _module("cuda.recording").launch(
                self, kernel, grid, block, args, shared_mem, reachable, written, defines
            )
            return
        if len(devices) != 1:
            source = _module("cuda.source")
            source.check_name(kernel, source.signatures(self.text), self.name)
            raise ValueError(
                f"kernel {kernel!r}: its arrays are on {sorted(map(str, devices)) or 'no device'}, "
                f"they must be on one{self._shown(args)}"
            )
        device = devices.pop()
        key = (kernel, device, *sorted(defines.items()))
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = self._function(kernel, device, defines)
        if not self.large:
            self.refuse_large(kernel, args)
        try:
            function(grid, block, args, shared_mem, reachable=(*reachable, *written))
        except Exception as error:
            text = str(error)
            error.args = (f"{text}{self._shown(args)}", *error.args[1:])
            raise
        launches[kernel] += 1
        self.launches += 1

    def _function(self, kernel: str, device: Any, defines: dict[str, object]) -> Any:
        key = (device, *sorted(defines.items()))
        module = self._modules.get(key)
        if module is None:
            if device == "cpu":
                module = _module("emulator").Module(self.text, defines, self.name)
            else:
                module = _module("cuda.device").Module(
                    self.text, defines, self.name, device, self.since
                )
            self._modules[key] = module
        function = module.get_function(kernel)
        return _Emulated(function) if device == "cpu" else function

    def refuse_large(self, kernel: str, args: Sequence[Any]) -> None:
        """Raise ValueError for an array that 32 bits cannot index."""
        for value in args:
            array = value.array if isinstance(value, Strided) else value
            if backend.is_array(array) and array.size > LARGEST:
                raise ValueError(
                    f"kernel {kernel!r} indexes with 32 bits, but an argument of shape "
                    f"{array.shape} has {array.size} elements (at most {LARGEST}); split it"
                )

    def _shown(self, args: Sequence[Any]) -> str:
        return f"\n  {self.name}, arguments: {', '.join(map(_describe, args))}"


class _Emulated:
    """An emulated kernel that refuses to run while the emulator is off."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if settings() is None:
            raise RuntimeError(
                f"kernel {self.kernel.name!r} got numpy arrays while the emulator is off; move "
                "them to a GPU, or use gpugrad.emulator.enabled() or GPUGRAD_EMULATE=plain"
            )
        self.kernel(*args, **kwargs)


@functools.cache
def _module(name: str) -> Any:
    """Return what launches alone need: importing gpugrad stays fast."""
    return importlib.import_module(f"gpugrad.{name}")


def _device(value: Any) -> Any:
    """Return "cpu", the number of a GPU, "recorded", or None for what is no array."""
    array = value.array if isinstance(value, Strided) else value
    if isinstance(array, backend.Symbolic):
        return "recorded"
    if isinstance(array, np.ndarray):
        return "cpu"
    return array.device.id if backend.is_array(array) else None


def _describe(value: Any) -> str:
    array = value.array if isinstance(value, Strided) else value
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        kind = "" if backend.is_array(array) else f"{type(array).__name__} "
        return f"{kind}{array.dtype}{list(array.shape)}"
    return repr(value)
