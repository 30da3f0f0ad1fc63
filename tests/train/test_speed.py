"""Peaks of devices by name."""

from __future__ import annotations

import pytest

from gpugrad.train.speed import device_name, peak_flops


@pytest.mark.parametrize(
    ("name", "dtype", "wanted"),
    [
        ("NVIDIA H200", "float32", 67e12),
        ("NVIDIA H200 NVL", "float32", 60e12),
        ("NVIDIA A100-SXM4-80GB", "float64", 19.5e12),
        ("NVIDIA L40S", "float32", 91.6e12),
        ("NVIDIA L40", "float32", None),
        ("NVIDIA L4", "float32", 30.3e12),
        ("NVIDIA L4", "float64", None),
        ("Tesla T4", "float32", 8.1e12),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float32", None),
        ("NVIDIA H200", "bfloat16", 989.5e12),
        ("NVIDIA H100 PCIe", "float16", 756e12),
        ("Tesla T4", "float16", 65e12),
        ("Tesla T4", "bfloat16", None),
        ("CPU", "bfloat16", None),
        ("CPU", "float32", None),
    ],
)
def test_peaks(name, dtype, wanted):
    assert peak_flops(name, dtype) == wanted


def test_the_cpu_has_a_name():
    assert device_name("cpu") == "CPU"
