"""CUDA sources: found, compiled with NVRTC (no GPU needed), cached, and launched."""

from ..backend import cuda_is_available as is_available
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
    "is_available",
    "launches",
    "strided",
    "variants",
]
