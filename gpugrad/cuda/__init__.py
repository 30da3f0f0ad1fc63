"""CUDA sources: found, compiled with NVRTC (no GPU needed), cached, and launched."""

from .arguments import Strided
from .gemm import gemm
from .kernel import (
    SOURCES,
    Source,
    address,
    contiguous,
    dtype_code,
    empty,
    emulated,
    fits,
    launches,
    strided,
    variants,
)

__all__ = [
    "SOURCES",
    "Source",
    "Strided",
    "address",
    "contiguous",
    "dtype_code",
    "empty",
    "emulated",
    "fits",
    "gemm",
    "launches",
    "strided",
    "variants",
]
