"""What a device could compute at most, where its data sheet is known.

Model FLOPs utilisation (MFU) is the share of that peak which the model's own arithmetic takes:
tokens per second times `models.flops_per_token`. Chowdhery et al., "PaLM" (2022), appendix B.
"""

from __future__ import annotations

from .. import backend
from .devices import by_driver


def device_name(device: str) -> str:
    """Return the name of a CUDA device as its driver gives it, "CPU" for the CPU."""
    if device == "cpu":
        return "CPU"
    runtime = backend.cupy_module().cuda.runtime
    number = int(device.partition(":")[2] or runtime.getDevice())
    return runtime.getDeviceProperties(number)["name"].decode()


def peak_flops(name: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of a device by its name, None where it is not known."""
    found = by_driver(name)
    return None if found is None else found.rates.get(dtype)
