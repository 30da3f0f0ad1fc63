"""g++: kernel source to a shared library, cached on disk by content.

The runtime (the .cpp files here) is one library, compiled once; every kernel source is another
that is linked to it. The checked build asks the compiler for its race and undefined-behaviour
instrumentation, but links it to the runtime's own functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..cuda import cache
from ..cuda.compiler import (
    LONG_COMPILE,
    NO_HEADERS,
    CompileError,
    cache_folder,
    find_include_folder,
    include_folder,
)
from ..cuda.source import declarations

lock = threading.RLock()  # the runtime runs one kernel at a time
if hasattr(os, "register_at_fork"):  # a child must not find it in the middle of one
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )
STATIC_SHARED = 48 << 10  # bytes, on every GPU
OLDEST_GCC = 12  # whose C++20, instrumentation and _Float16 the builds are made for
_HERE = Path(__file__).parent
_ALWAYS = _HERE / "include" / "always"  # headers in the place of the C library's
_FALLBACK = _HERE / "include" / "fallback"  # headers for bfloat16 and float16, without CUDA's
_COMMON = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-pthread")
# DWARF 4: binutils reads version 5 wrongly where the text comes from standard input
_KERNEL = (
    *_COMMON,
    "-g1",
    "-gdwarf-4",
    "-fno-strict-aliasing",
    "-fstack-clash-protection",
    "-ffp-contract=off",
    "-fno-plt",  # an alarm between kernel and runtime would meet code that has no line
)
_RUNTIME = (*_COMMON, "-O2", "-g1", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra")
# local variables start differently in the two builds, so that results which depend on it differ
_MODES = {
    "plain": ("-O2", "-ftrivial-auto-var-init=zero"),
    "checked": (
        "-O1",
        "-fsanitize=thread,undefined,float-cast-overflow",
        "-fno-sanitize=vptr",
        "-fno-sanitize-recover=all",
        "--param=tsan-instrument-func-entry-exit=0",
        "--param=tsan-distinguish-volatile=1",
        "-ftrivial-auto-var-init=pattern",
        "-fno-tree-fre",  # would give a variable, set on one way only, that value on all of them
    ),
}
_INPUT = ("-include", str(_HERE / "runtime.hpp"), "-x", "c++", "-")
_SOURCES = (
    "runtime.cpp",
    "async.cpp",
    "mbarrier.cpp",
    "tensor.cpp",
    "warpgroup.cpp",
    "checks.cpp",
    "hooks.cpp",
    "signals.cpp",
    "internal.hpp",
)
_WARNINGS = (
    "-Wall",
    "-Wno-unknown-pragmas",  # what nvcc does not warn of
    "-Wno-sign-compare",
    "-Wno-psabi",
    "-Werror=uninitialized",
    "-Wno-error=maybe-uninitialized",  # may be wrong
)
_HEADERS = ("assert.h", "cuda_pipeline*.h", "math_constants.h", "cuComplex.h", "cuda_bf16.h*")
_INCLUDED = ("cuda_fp*.h*", "vector_*.h*", "nv/target", "narrow.h")  # by those
_OF_CUDA = r"(?:cuda_(?!pipeline)\w+|math_constants|cuComplex)\.h"
_CUDA_HEADER = re.compile(rf"^[ \t]*#[ \t]*include[ \t]*<{_OF_CUDA}>", re.MULTILINE)
_ALIGNMENT = r"\b(?:__align__|alignas|__attribute__)\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_EXTERN_SHARED = re.compile(  # words in any order, name, [], further dimensions
    rf"(\b__shared__\s+)?\bextern\b((?:{_ALIGNMENT}|[\w:<>,*\s])+?)\b(\w+)\s*\[\s*\]"
    r"((?:\s*\[[^\]]*\])*)\s*;"
)
_NOT_THE_TYPE = re.compile(rf"{_ALIGNMENT}|\b__shared__\b|\s+")
_PRAGMA_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once[ \t]*$", re.MULTILINE)


_HINTS = {  # by what g++ says
    r"Assembler messages|(possible|put|operand) constraint|__cvta_generic_to": (
        '\ninline assembly is for GPUs: #include "ptx.cuh" has cp.async, ldmatrix, mma and more '
        "for the GPU and the emulator alike; what it lacks needs a body of its own under #ifdef "
        "GPUGRAD_EMULATE"
    ),
    r"fatal error: \S+\.cuh: No such file": (
        '\nheaders by "..." are found where a kernel comes from a .cu file, not from text'
    ),
    r"fatal error: \S+: No such file": (
        "\nthe emulator has CUDA's built-in functions and, of its headers, cuda_fp16.h, "
        "cuda_bf16.h, cuda_pipeline.h, cuComplex.h and math_constants.h, but no cooperative "
        "groups, wmma, CUB, cuRAND, libcu++"
    ),
}


@functools.cache
def compiler() -> tuple[str, str]:
    """Return the path and the version of g++; RuntimeError says what to install."""
    path = shutil.which("g++")
    if path is None:
        raise RuntimeError(_no_compiler("finds none"))
    return path, compiler_version(path)


def compiler_version(path: str) -> str:
    """Return what a g++ says it is; RuntimeError where that is not GCC of a version that will do.

    On macOS g++ is another name of clang.
    """
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    line = next(iter(shown.stdout.splitlines()), "")
    if shown.returncode or not line:
        what = shown.stderr.strip() or f"status {shown.returncode}"
        raise RuntimeError(_no_compiler(f"{path} --version fails: {what}"))
    if "clang" in shown.stdout.lower():
        raise RuntimeError(_no_compiler(f"{path} is not GCC but {line}"))
    command = [path, "-dumpfullversion", "-dumpversion"]  # the first is unknown before GCC 7
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    major = dumped.partition(".")[0]
    if not major.isdecimal():
        raise RuntimeError(_no_compiler(f"{path} does not say its version but {dumped!r}"))
    if int(major) < OLDEST_GCC:
        raise RuntimeError(_no_compiler(f"{path} is version {dumped}"))
    return line


def _no_compiler(what: str) -> str:
    return (
        f"the emulator needs g++ ({OLDEST_GCC} or newer) to run CUDA kernels on the CPU and "
        f"{what}: apt-get install g++ (or your system's package of GCC) and let it be the first "
        "g++ in PATH; without the emulator, unset GPUGRAD_EMULATE and the NumPy implementations "
        "are used"
    )


@functools.cache
def loaded(path: Path) -> ctypes.CDLL:
    """Return a library by its path: once, as each CDLL leaves a cycle for the garbage collector."""
    return ctypes.CDLL(str(path))


@functools.cache
def runtime(portable: bool = False) -> Path:
    """Return the runtime's library, compiled on first use and loaded.

    ``portable`` switches stacks by ucontext instead of assembly (the only way off x86-64).
    """
    files = [_HERE / name for name in _SOURCES]
    texts = [file.read_text(encoding="utf-8") for file in files]
    flags = [*_RUNTIME, *(["-DGPUGRAD_PORTABLE"] if portable else [])]
    key = _key(flags, *texts)
    # the soname lets kernels find the loaded library wherever the cache lies
    name = f"gpugrad_runtime_{key[:16]}.so"
    path = cache_folder() / "emulator" / name
    if not _is_whole(path):
        with _replacing(path) as temporary:
            sources = [str(file) for file in files if file.suffix == ".cpp"]
            link = ["-shared", f"-Wl,-soname,{name}", "-ldl", "-o", temporary]
            what = "the emulator's runtime"
            _warn(what, _run([*flags, f"-I{_HERE}", *sources, *link], None, what))
    loaded(path)
    return path


def build(
    source: str,
    mode: str,
    kernels: Sequence[str],
    defines: Mapping[str, object] | None = None,
    name: str = "kernel.cu",
    portable: bool = False,
) -> Path:
    """Return the library of a source (headers inlined) in a mode, "plain" or "checked".

    Raises CompileError with the compiler's messages; shows its warnings, those of an earlier
    process too.
    """
    library = runtime(portable)
    flags, text = _translated(source, mode, kernels, defines, name)
    header = (_HERE / "runtime.hpp").read_text(encoding="utf-8")
    key = _key(*_keyed(flags), library.name, header, text)
    path = cache_folder() / "emulator" / f"{key}.so"
    log = path.with_suffix(".log")
    if not _is_whole(path):
        with _replacing(path) as temporary:
            object_file = temporary + ".o"
            try:
                said = _run([*flags, *_INPUT, "-c", "-o", object_file], text, name)
                # without -fsanitize, which would link the compiler's own runtime
                said += _run(
                    ["-shared", "-Wl,-z,now,-z,defs", object_file, str(library), "-o", temporary],
                    None,
                    name,
                )
            finally:
                Path(object_file).unlink(missing_ok=True)
            for kernel in kernels:
                if (size := shared_bytes(Path(temporary), kernel)) > STATIC_SHARED:
                    raise CompileError(
                        f"{name}: kernel {kernel!r} declares {size} bytes of shared memory; a GPU "
                        f"has {STATIC_SHARED} for what is not dynamic (extern __shared__)"
                    )
            if said:
                with _replacing(log) as written:
                    Path(written).write_text(said, encoding="utf-8")
    _warn(name, log.read_text(encoding="utf-8") if log.exists() else "")
    return path


def _is_whole(library: Path) -> bool:
    """Return whether a library is there up to its end, where the table of its sections lies.

    A full disk or a machine that stopped may have cut it off: loading it would end the process.
    """
    try:
        with library.open("rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    if len(head) < 64 or not head.startswith(b"\x7fELF"):
        return False
    table, length, count = (*struct.unpack_from("Q", head, 40), *struct.unpack_from("HH", head, 58))
    return bool(size >= table + length * count)


def shared_bytes(library: Path, kernel: str) -> int:
    """Return how much shared memory a kernel itself declares, that of functions it calls aside."""
    symbols = (line.split() for line in tool("readelf", "-sW", str(library)).splitlines())
    local = f"_ZZ{len(kernel)}{kernel}E"
    return sum(int(s[2], 0) for s in symbols if "TLS" in s[3:4] and s[-1].startswith(local))


def tool(*command: str) -> str:
    """Return what a program of binutils (which g++ needs as well) prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""  # a report without names is better than none
    return done.stdout


def _translated(
    source: str, mode: str, kernels: Sequence[str], defines: Mapping[str, object] | None, name: str
) -> tuple[list[str], str]:
    """Return the flags that compile a source in a mode, and its text as g++ takes it."""
    flags = [*_KERNEL, *_MODES[mode], *_WARNINGS, "-isystem", str(_ALWAYS)]
    flags += [f"-D{key}={value}" for key, value in (defines or {}).items()]
    flags += _cuda_headers(source)
    marked = source if source.startswith("#line") else f'#line 1 "{name}"\n{source}'
    return flags, _prepare(marked, kernels)


def _cuda_headers(source: str) -> list[str]:
    """Return the flags for CUDA's own headers, where a source names them."""
    if not _CUDA_HEADER.search(source):
        return []
    folder = find_include_folder()
    if folder is None:
        return ["-isystem", str(_FALLBACK)]
    return ["-isystem", str(_HERE / "include"), "-isystem", str(folder)]


def _keyed(flags: Sequence[str]) -> list[str]:
    """Return the flags with digests of headers in the place of where these lie."""
    parts: list[str] = []
    for flag in flags:
        is_folder = bool(parts) and parts[-1] == "-isystem"
        files = (
            sorted(f for name in (*_HEADERS, *_INCLUDED) for f in Path(flag).glob(name))
            if is_folder
            else []
        )
        parts += [_digest(file, file.stat().st_mtime_ns) for file in files] or [flag]
    return parts


@functools.cache
def _digest(file: Path, changed: int) -> str:
    """Return the digest of a file that was changed at that time."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _prepare(source: str, kernels: Sequence[str]) -> str:
    """Return the source as g++ takes it: dynamic shared memory, and an entry for every kernel."""
    text = _EXTERN_SHARED.sub(
        _dynamic_shared,
        _PRAGMA_ONCE.sub("", source),  # headers are part of the main file here
    )
    declared = declarations(source)
    entries = "".join(
        f"GPUGRAD_EXPORT extern const gpugrad_emulator::Kernel gpugrad_kernel_{kernel};\n"
        f"const gpugrad_emulator::Kernel gpugrad_kernel_{kernel} =\n"
        f'    gpugrad_emulator::describe<{kernel}>("{kernel}", {kernel}, '
        f"{declared[kernel].bound or '1024'});\n"
        for kernel in kernels
    )
    return f'{text}\n#line 1 "entries"\nextern "C" {{\n{entries}}}\n'


def _dynamic_shared(declared: re.Match[str]) -> str:
    """Return ``extern __shared__ T name[]`` as a pointer to where a launch's memory begins."""
    if "__shared__" not in declared[0]:
        return declared[0]
    name, dimensions = declared.group(3, 4)
    kind = _NOT_THE_TYPE.sub(" ", declared[2])
    return f"GPUGRAD_DYNAMIC({name},{kind}[]{dimensions});" + "\n" * declared[0].count("\n")


def _key(*parts: object) -> str:
    return hashlib.sha256("\0".join([compiler()[1], *map(str, parts)]).encode()).hexdigest()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """Give a temporary name; what is there at the end becomes ``path`` in one step."""
    temporary = cache.temporary(path)
    try:
        yield str(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _warn(name: str, said: str) -> None:
    if said:
        warnings.warn(f"{name}, compiled for the emulator:\n{said}", stacklevel=4)


def _run(arguments: Sequence[str], text: str | None, name: str) -> str:
    """Run the compiler and return its warnings."""
    command = [compiler()[0], *arguments]
    started = time.monotonic()
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    _waited(time.monotonic() - started)
    if done.returncode:
        if re.search(rf"fatal error: {_OF_CUDA}", done.stderr):
            include_folder()  # raises what to install
        hint = next((hint for said, hint in _HINTS.items() if re.search(said, done.stderr)), "")
        if str(_FALLBACK) in arguments:
            hint = (
                f"\n{NO_HEADERS}: the emulator's own have what gpugrad's kernels need of bfloat16 "
                'and float16, no more; pip install "gpugrad[cuda13]" (or nvidia-cuda-runtime) '
                "brings CUDA's"
            )
        raise CompileError(f"{name} does not compile for the emulator:\n{done.stderr}{hint}")
    return done.stderr


_seconds = 0.0  # spent compiling


def _waited(seconds: float) -> None:
    """Say once, when it has taken long, what is being waited for."""
    global _seconds
    if _seconds <= LONG_COMPILE < _seconds + seconds:
        print(
            "gpugrad: compiling kernels for the emulator; what is compiled is kept in "
            f"{cache_folder()}",
            file=sys.stderr,
        )
    _seconds += seconds
