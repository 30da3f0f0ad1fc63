"""Where PyTorch keeps gradient clipping: see ``optim``."""

from __future__ import annotations

from ..optim.clip import clip_grad_norm_

__all__ = ["clip_grad_norm_"]
