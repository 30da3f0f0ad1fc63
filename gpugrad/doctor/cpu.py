"""The doctor's checks that need no GPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

import numpy as np

from ..cuda import cache
from ..cuda.compiler import cache_folder
from ..emulator.compile import compiler_version
from ..ops import tensor
from .check import FAILED, MISSING, OK, Check, install, pip, version

# What installs a C++ compiler, by the package manager that a system has.
_COMPILER = {
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "yum": "yum install gcc-c++",
    "zypper": "zypper install gcc-c++",
    "pacman": "pacman -S gcc",
    "apk": "apk add g++",
    "brew": "brew install gcc",
}


def check_python() -> Check:
    """Python's version; one that is too old cannot even import this."""
    return Check("Python", OK, f"{platform.python_version()}, {sys.executable}")


def check_numpy() -> Check:
    """NumPy's version, its BLAS, and a matrix product."""
    fix = pip("install", "--force-reinstall", "numpy>=2")
    if int(np.__version__.partition(".")[0]) < 2:
        return Check("NumPy", FAILED, f"{np.__version__} is too old", fix)
    blas = np.show_config(mode="dicts")["Build Dependencies"].get("blas", {})
    detail = f"{np.__version__}, BLAS {blas.get('name', 'unknown')} {blas.get('version', '')}"
    x = np.arange(6.0).reshape(2, 3)
    if (x @ x.T).tolist() != [[5.0, 14.0], [14.0, 50.0]]:
        return Check("NumPy", FAILED, f"{detail}: a matrix product is wrong", fix)
    return Check("NumPy", OK, detail.rstrip())


def check_gradient() -> Check:
    """A gradient by gpugrad itself."""
    x = tensor([[1.0, 2.0], [3.0, 4.0]], device="cpu", requires_grad=True)
    (x @ x).sum().backward()
    found = x.grad.tolist()
    if found != [[7.0, 11.0], [9.0, 13.0]]:
        return Check("gradient", FAILED, f"of sum(x @ x) on the CPU: {found}", install())
    return Check("gradient", OK, "of sum(x @ x) on the CPU is right")


def check_library(name: str, extra: str = "", use: str = "") -> Check:
    """A library, required or, with an extra, optional."""
    found = version(name)
    if found:
        return Check(name, OK, found)
    return Check(name, MISSING, f"not installed{use and f' ({use})'}", install(extra))


def check_compiler() -> Check:
    """g++, which builds the CUDA kernels for the CPU."""
    path = shutil.which("g++")
    lines = (line for manager, line in _COMPILER.items() if shutil.which(manager))
    fix = next(lines, "install GCC's C++ compiler")
    if path is None:
        return Check("g++", MISSING, "not found (runs the CUDA kernels on the CPU, for tests)", fix)
    program = "#include <cstdint>\n#include <thread>\nint main() { return sizeof(float) - 4; }\n"
    command = [path, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    result = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60)
    if result.returncode:
        return Check("g++", FAILED, f"{path}: {result.stderr.strip()}")
    try:
        found = compiler_version(path)
    except RuntimeError as error:
        return Check("g++", FAILED, str(error), fix)
    return Check("g++", OK, f"{found}, {path}")


def check_cache() -> Check:
    """The folder of compiled kernels."""
    folder = cache_folder()
    try:
        cache.temporary(folder / "doctor").unlink()
    except OSError as error:
        return Check("kernel cache", FAILED, str(error), "let GPUGRAD_CACHE name another folder")
    return Check("kernel cache", OK, str(folder))
