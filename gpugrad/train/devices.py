"""What GPUs can do at most, from their data sheets: memory, bandwidth, arithmetic.

None of these figures was measured here. Arithmetic is that of dense matrices; half precision is
with sums in float32, in the tensor cores. float32 is the rate of the CUDA cores: matrix products do
not round to TF32 unless asked to. float64 is that of the tensor cores where there are some.
"""

from __future__ import annotations

import re
from typing import NamedTuple

GB = 10**9


class Device(NamedTuple):
    """A kind of GPU: bytes of memory, bytes per second, operations per second by dtype.

    ``name`` is the short one, ``driver`` a regular expression for the names drivers give it.
    ``capability`` is the compute capability, major and minor digit. A gigabyte is 1e9 bytes here,
    which is about what drivers leave of it: most call 2**30 bytes that.
    """

    name: str
    driver: str
    capability: int
    memory: int
    bandwidth: float
    rates: dict[str, float]

    def flops(self, dtype: str) -> float:
        """Return the operations per second; ValueError for a dtype it has no matrix products in."""
        if dtype not in self.rates:
            raise ValueError(
                f"{self.name}: there is no rate for {dtype} in its data sheet, only for "
                f"{', '.join(self.rates)}"
            )
        return self.rates[dtype]


def _rates(half: float, single: float, double: float = 0.0, bfloat16: bool = True) -> dict:
    """Return operations per second by dtype, from those in units of 1e12."""
    given = {"float16": half, "float32": single, "float64": double, "bfloat16": half * bfloat16}
    return {dtype: rate * 1e12 for dtype, rate in given.items() if rate}


# The first whose expression is found in a driver's name is meant.
DEVICES = (
    Device("b200", r"B200", 100, 180 * GB, 8e12, _rates(2250, 80, 40)),
    Device("h200-nvl", r"H200 NVL", 90, 141 * GB, 4.8e12, _rates(835.5, 60, 60)),
    Device("h200", r"H200", 90, 141 * GB, 4.8e12, _rates(989.5, 67, 67)),
    Device("h100-nvl", r"H100 NVL", 90, 94 * GB, 3.9e12, _rates(835.5, 60, 60)),
    Device("h100-pcie", r"H100 PCIe", 90, 80 * GB, 2e12, _rates(756, 51, 51)),
    Device("h100", r"H100 80GB HBM3", 90, 80 * GB, 3.35e12, _rates(989.5, 67, 67)),
    Device("a100-80gb-pcie", r"A100 80GB PCIe", 80, 80 * GB, 1.935e12, _rates(312, 19.5, 19.5)),
    Device("a100-80gb", r"A100\S*-80GB", 80, 80 * GB, 2.039e12, _rates(312, 19.5, 19.5)),
    Device("a100-40gb", r"A100\S*-40GB", 80, 40 * GB, 1.555e12, _rates(312, 19.5, 19.5)),
    Device("l40s", r"L40S", 89, 48 * GB, 864e9, _rates(362, 91.6)),
    Device("l4", r"L4", 89, 24 * GB, 300e9, _rates(121, 30.3)),
    Device("a10", r"A10", 86, 24 * GB, 600e9, _rates(125, 31.2)),
    Device("t4", r"T4", 75, 16 * GB, 320e9, _rates(65, 8.1, bfloat16=False)),
    Device("v100-32gb", r"V100-SXM2-32GB", 70, 32 * GB, 900e9, _rates(125, 15.7, 7.8, False)),
    Device("v100-16gb", r"V100-SXM2-16GB", 70, 16 * GB, 900e9, _rates(125, 15.7, 7.8, False)),
    Device("rtx5090", r"RTX 5090", 120, 32 * GB, 1.792e12, _rates(209.5, 104.8)),
    Device("rtx4090", r"RTX 4090", 89, 24 * GB, 1.008e12, _rates(165.2, 82.6)),
    Device("rtx3090", r"RTX 3090", 86, 24 * GB, 936e9, _rates(71, 35.6)),
)


def by_driver(name: str) -> Device | None:
    """Return the GPU that a driver's name stands for ("NVIDIA H200"), None where it is not known.

    A laptop's GPU is another one than its name says.
    """
    if re.search(r"Laptop|Max-Q|RTX \d+ (Ti|D|SUPER)\b|\bMIG\b", name):
        return None
    return next((d for d in DEVICES if re.search(rf"\b{d.driver}\b", name)), None)


def device(name: str) -> Device:
    """Return a GPU by its short name ("h200") or that of a driver ("NVIDIA H200").

    Capitals, blanks and hyphens do not count. Raises ValueError that lists the names known.
    """
    wanted = _plain(name)
    found = next((d for d in DEVICES if _plain(d.name) == wanted), None) or by_driver(name)
    if found is None:
        names = [d.name for d in DEVICES]
        close = [n for n in names if wanted and _plain(n).startswith(wanted)]
        meant = f"; {name!r} could be {' or '.join(close)}" if close else ""
        raise ValueError(f"no data sheet of a GPU {name!r}{meant}; known are {', '.join(names)}")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
