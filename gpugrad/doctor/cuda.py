"""The doctor's checks of the way to a GPU, each step on its own: driver, device, CuPy, NVRTC."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..cuda import compiler, cublaslt
from .check import FAILED, MISSING, OK, Check, install, pip, version

_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")
_NVIDIA = "0x10de"  # the vendor's number on the PCI bus
_OLDEST = 12000  # the oldest CUDA that a driver has to support, 12.0
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_KERNEL = """#include <cuda_bf16.h>
#include <cuda_fp16.h>
extern "C" __global__ void doctor(const __half* x, float* y) { *y = __half2float(*x); }
"""
_PLAIN_KERNEL = 'extern "C" __global__ void doctor(float* y) { *y = 1.0f; }\n'


class Driver(NamedTuple):
    """The NVIDIA driver: what was found, the CUDA it supports (13000 is 13.0), its devices."""

    check: Check
    cuda: int = 0
    devices: tuple[str, ...] = ()

    @property
    def extra(self) -> str:
        """The extra that fits."""
        return "cuda12" if _OLDEST <= self.cuda < 13000 else "cuda13"


def find_driver() -> Driver:
    """Ask the driver directly, without CuPy."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if on_bus():
            fix = "install the NVIDIA driver; start a container with --gpus all"
            return Driver(Check("driver", MISSING, f"a GPU is there, but {error}", fix))
        return Driver(Check("driver", MISSING, "no NVIDIA GPU on this machine"))
    cuda, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(cuda))
    detail = f"for CUDA {cuda.value // 1000}.{cuda.value % 1000 // 10}"
    code = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if code:
        name = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(name))
        what = (name.value or b"").decode() or f"error {code}"
        fix = "run nvidia-smi: it has to list the GPU before anything else can use it"
        return Driver(Check("driver", FAILED, f"{detail}, but it says {what}", fix), cuda.value)
    devices = tuple(_describe(library, number) for number in range(count.value))
    if cuda.value < _OLDEST:
        fix = "install NVIDIA driver 525 or newer"
        return Driver(Check("driver", FAILED, f"{detail}: too old", fix), cuda.value, devices)
    return Driver(Check("driver", OK, detail), cuda.value, devices)


def _describe(library: ctypes.CDLL, number: int) -> str:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return (
        f"{name.value.decode()}, {memory.value / 2**30:.0f} GiB, compute capability "
        f"{major.value}.{minor.value}"
    )


def on_bus(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Return whether something by NVIDIA is plugged in."""
    return any(path.read_text().strip() == _NVIDIA for path in devices.glob("*/vendor"))


def check_device(driver: Driver) -> Check:
    """The GPUs that the driver shows."""
    if driver.devices:
        return Check("device", OK, "\n".join(driver.devices))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver.cuda and hidden is not None:
        return Check(
            "device", MISSING, f"CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES"
        )
    return Check("device", MISSING, "no GPU is visible")


def check_cupy(driver: Driver) -> Check:
    """CuPy: installed once, for the CUDA of the driver, and able to see the device."""
    found = {name: number for name in _CUPY if (number := version(name))}
    detail = ", ".join(f"{name} {number}" for name, number in found.items())
    replace = f"{pip('uninstall', '-y', *found)} && {install(driver.extra)}"
    if len(found) > 1:
        return Check("CuPy", FAILED, f"{detail}: these overwrite each other's files", replace)
    module, reason = backend.cupy_or_reason()
    if module is not None:
        return Check("CuPy", OK, detail or f"{module.__version__}")
    if not found and "cupy" not in sys.modules:
        return Check("CuPy", MISSING, "not installed", install(driver.extra))
    if "cupy" not in sys.modules or driver.devices:
        fix = "" if "CUPY_CACHE_DIR" in reason else replace  # the reason says what helps
        return Check("CuPy", FAILED, f"{detail}: {reason}", fix)
    return Check("CuPy", OK, f"{detail}, which waits for a GPU")


def check_nvrtc(driver: Driver) -> Check:
    """NVRTC, which compiles the kernels, without a GPU too."""
    binding = _nvrtc()
    if binding is None:
        return Check("NVRTC", MISSING, "comes with CuPy", install(driver.extra))
    try:
        number = ".".join(map(str, binding.getVersion()))
        _compile(binding, _PLAIN_KERNEL)
    except Exception as error:  # its type depends on what is missing and on CuPy's version
        return Check("NVRTC", FAILED, f"{type(error).__name__}: {error}", install(driver.extra))
    return Check("NVRTC", OK, f"{number} compiles a kernel")


def check_headers(driver: Driver) -> Check:
    """The CUDA headers that kernels include."""
    folder = compiler.find_include_folder()
    fix = install(driver.extra)
    if folder is None:
        return Check("CUDA headers", MISSING, compiler.NO_HEADERS, fix)
    binding = _nvrtc()
    if binding is None:
        return Check("CUDA headers", OK, f"{folder} (not tried without NVRTC)")
    try:
        _compile(binding, _KERNEL, f"-I{folder}")
    except Exception as error:  # as above
        return Check("CUDA headers", FAILED, f"{folder}: {type(error).__name__}: {error}", fix)
    return Check("CUDA headers", OK, str(folder))


def check_cublaslt(driver: Driver) -> Check:
    """cublasLt, which multiplies matrices on a GPU."""
    try:
        found = cublaslt.library()
    except RuntimeError as error:
        reason = str(error.__cause__).partition("\n")[0]
        return Check("cublasLt", MISSING, reason, install(driver.extra))
    return Check("cublasLt", OK, f"{found.version} ({found.path})")


def check_computing(driver: Driver) -> Check:
    """A kernel launch and a matrix product on the GPU."""
    cupy, reason = backend.cupy_or_reason()
    if cupy is None:
        return Check("GPU arrays", MISSING, reason)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    try:
        y = cupy.asarray(x)
        found = cupy.asnumpy((y + y) @ y.T)
    except Exception as error:  # cuBLAS, NVRTC or headers may be missing, or the memory be full
        what = f"{type(error).__name__}: {error}"
        return Check("GPU arrays", FAILED, what, install(driver.extra))
    if not np.array_equal(found, (x + x) @ x.T):
        return Check("GPU arrays", FAILED, f"(x + x) @ x.T is wrong: {found.tolist()}")
    return Check("GPU arrays", OK, "a sum and a matrix product are right")


def _nvrtc() -> Any:
    """Return CuPy's binding of NVRTC, None where CuPy cannot be imported."""
    backend.cupy_or_reason()  # imports it
    cupy = sys.modules.get("cupy")
    return None if cupy is None else cupy.cuda.nvrtc


def _compile(binding: Any, source: str, *options: str) -> None:
    program = binding.createProgram(source, "doctor.cu", (), ())
    try:
        binding.compileProgram(program, ("-std=c++17", *options))
    finally:
        binding.destroyProgram(program)
