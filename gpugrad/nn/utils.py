"""Where PyTorch keeps gradient clipping (see ``optim``) and models without initial values."""

from __future__ import annotations

from ..optim.clip import clip_grad_norm_
from .init import skip_init

__all__ = ["clip_grad_norm_", "skip_init"]
