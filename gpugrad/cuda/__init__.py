"""CUDA sources: found, compiled with NVRTC (no GPU needed), cached, and launched."""

from .arguments import Strided
from .gemm import gemm
from .kernel import (
    EMULATED,
    SOURCES,
    Source,
    address,
    capability,
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
    "EMULATED",
    "SOURCES",
    "Source",
    "Strided",
    "address",
    "capability",
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
