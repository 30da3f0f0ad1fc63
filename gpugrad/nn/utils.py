"""Where PyTorch keeps gradient clipping (see ``optim``) and models without initial values."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .init import skip_init

if TYPE_CHECKING:
    from ..optim.clip import clip_grad_norm_

__all__ = ["clip_grad_norm_", "skip_init"]


def __getattr__(name: str) -> object:
    if name == "clip_grad_norm_":
        return importlib.import_module("gpugrad.optim.clip").clip_grad_norm_  # imports stay fast
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
