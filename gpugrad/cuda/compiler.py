"""NVRTC: source to cubin, cached on disk by content. Needs no GPU and no driver.

The cache key is the whole source (headers inlined), the options, the architecture and NVRTC's
version. An entry is written under a temporary name and renamed, and carries its own checksum, so a
damaged one is compiled again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import cache as files

HEADERS = ("cuda_bf16.h", "cuda_fp16.h")  # that kernels include
NO_HEADERS = (
    f"{' and '.join(HEADERS)} are not found, neither in pip's nvidia packages nor under "
    "CUDA_HOME, CUDA_PATH or /usr/local/cuda"
)
LONG_COMPILE = 2.0  # seconds after which the first use of a kernel says what it waits for
_MAGIC = b"gpugrad cubin 1\n"


class CompileError(RuntimeError):
    """NVRTC refused a source; the message holds its log."""


class Resources(NamedTuple):
    """What one kernel takes on the GPU, per thread (registers, spills) or block (shared)."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


class Cubin(NamedTuple):
    """Machine code for one architecture, and the resources of each kernel in it."""

    code: bytes
    resources: dict[str, Resources]
    log: str


def nvrtc() -> Any:
    """Return CuPy's NVRTC binding, or raise RuntimeError that says what to install."""
    try:
        module = importlib.import_module("cupy.cuda").nvrtc
        module.getVersion()
    except Exception as error:
        raise RuntimeError(
            f"compiling CUDA kernels needs CuPy and NVRTC ({error}); "
            'pip install "gpugrad[cuda13]" brings both, `gpugrad doctor` checks them'
        ) from error
    return module


@functools.cache
def include_folder() -> str:
    """Return the folder of the CUDA headers that kernels include; RuntimeError where none is."""
    found = find_include_folder()
    if found is None:
        raise RuntimeError(
            f'{NO_HEADERS}; pip install "gpugrad[cuda13]" (or nvidia-cuda-runtime) brings them'
        )
    return str(found)


def find_include_folder() -> Path | None:
    """Return the first folder with all of HEADERS, None if there is none."""
    for folder in include_folders():
        if all((folder / name).is_file() for name in HEADERS):
            return folder
    return None


def include_folders() -> Iterator[Path]:
    """Yield where the CUDA headers may be, pip's packages before an installed toolkit."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        found = pathfinder.find_nvidia_header_directory("cudart")
    except (ImportError, AttributeError):  # not installed, or too old to know headers
        found = None
    if found:
        yield Path(found)
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(root).glob("*/include"), reverse=True)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable], "include")
    yield Path("/usr/local/cuda/include")


def cache_folder() -> Path:
    """Return where compiled kernels are kept: GPUGRAD_CACHE, else the user's cache folder."""
    chosen = os.environ.get("GPUGRAD_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpugrad"


def compile_cubin(
    source: str, name: str, arch: str, options: Sequence[str] = (), cache: bool = True
) -> Cubin:
    """Return the machine code of a source for an architecture such as "sm_90a".

    ``name`` is shown in messages. Raises CompileError with the compiler's log.
    """
    binding = nvrtc()
    flags = (
        f"-arch={arch}",
        "-std=c++17",
        "-default-device",
        f"-I{include_folder()}",
        "--ptxas-options=-v",
        *options,
    )
    version = ".".join(map(str, binding.getVersion()))
    kept = [f for f in flags if not f.startswith("-I")]
    key = hashlib.sha256("\0".join([version, *kept, source]).encode()).hexdigest()
    path = cache_folder() / "cubin" / f"{key}.cubin"
    if cache:
        found = _read(path)
        if found is not None:
            return found
    program = binding.createProgram(source, name, (), ())
    try:
        try:
            with _saying(f"gpugrad: compiling {name} for {arch}, once on this machine"):
                binding.compileProgram(program, flags)
        except binding.NVRTCError as error:
            log = binding.getProgramLog(program)
            raise CompileError(f"{name} does not compile for {arch}:\n{log}") from error
        log = binding.getProgramLog(program)
        code = binding.getCUBIN(program) + b"\0"  # the binding drops the last byte
    finally:
        binding.destroyProgram(program)
    cubin = Cubin(code, _resources(log), log)
    if cache:
        _write(path, cubin)
    return cubin


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """Say what is being waited for if it takes longer than LONG_COMPILE.

    It is said while it lasts: NVRTC runs without Python's lock.
    """
    timer = threading.Timer(LONG_COMPILE, lambda: print(what, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


_FUNCTION = re.compile(r"Function properties for (\w+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def _resources(log: str) -> dict[str, Resources]:
    """Read what ptxas says of each kernel."""
    found: dict[str, Resources] = {}
    for section in re.split(r"(?=Function properties for )", log):
        function, stack, used = (p.search(section) for p in (_FUNCTION, _STACK, _USED))
        if not (function and stack and used):
            continue
        shared = _SHARED.search(section)
        frame, stores, loads = map(int, stack.groups())
        found[function.group(1)] = Resources(
            int(used.group(1)), stores + loads, frame, int(shared.group(1)) if shared else 0
        )
    return found


def _write(path: Path, cubin: Cubin) -> None:
    head = json.dumps({"resources": cubin.resources, "log": cubin.log}).encode() + b"\n"
    files.write(path, _MAGIC, head + cubin.code)


def _read(path: Path) -> Cubin | None:
    """Return the cached entry; None if there is none or it is damaged."""
    body = files.read(path, _MAGIC)
    if body is None:
        return None
    head, _, code = body.partition(b"\n")
    entry = json.loads(head)
    resources = {name: Resources(*values) for name, values in entry["resources"].items()}
    return Cubin(code, resources, entry["log"])
