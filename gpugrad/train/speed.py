"""What a device could compute at most, where its data sheet is known.

Model FLOPs utilisation (MFU) is the share of that peak which the model's own arithmetic takes:
tokens per second times `models.flops_per_token`. Chowdhery et al., "PaLM" (2022), appendix B.
"""

from __future__ import annotations

import re

from .. import backend

# Dense FLOP/s from NVIDIA's data sheets. float32 is that of the CUDA cores: matrix products do not
# round to TF32 unless asked to. float64 is that of the tensor cores where there are some. "half" is
# bfloat16 and float16 in the tensor cores with sums in float32; old ones know no bfloat16.
_PEAKS = {
    r"H200 NVL": {"half": 835.5e12, "float32": 60e12, "float64": 60e12},
    r"H200": {"half": 989.5e12, "float32": 67e12, "float64": 67e12},
    r"H100 PCIe": {"half": 756e12, "float32": 51e12, "float64": 51e12},
    r"H100 80GB HBM3": {"half": 989.5e12, "float32": 67e12, "float64": 67e12},
    r"A100": {"half": 312e12, "float32": 19.5e12, "float64": 19.5e12},
    r"L40S": {"half": 362e12, "float32": 91.6e12},
    r"L4": {"half": 121e12, "float32": 30.3e12},
    r"T4": {"float16": 65e12, "float32": 8.1e12},
    r"V100-SXM2": {"float16": 125e12, "float32": 15.7e12, "float64": 7.8e12},
    r"RTX 4090": {"half": 165.2e12, "float32": 82.6e12},
    r"RTX 3090": {"half": 71e12, "float32": 35.6e12},
}


def device_name(device: str) -> str:
    """Return the name of a CUDA device as its driver gives it, "CPU" for the CPU."""
    if device == "cpu":
        return "CPU"
    runtime = backend.cupy_module().cuda.runtime
    number = int(device.partition(":")[2] or runtime.getDevice())
    return runtime.getDeviceProperties(number)["name"].decode()


def peak_flops(name: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of a device by its name, None where it is not known."""
    if "Laptop" in name or "Max-Q" in name:
        return None
    for part, peaks in _PEAKS.items():
        if re.search(rf"\b{part}\b", name):
            return peaks.get(dtype, peaks.get("half") if dtype in ("bfloat16", "float16") else None)
    return None
