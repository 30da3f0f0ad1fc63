"""gpugrad."""

from __future__ import annotations

__version__ = "0.1.0"

from . import ops
from .engine import detect_anomaly, enable_grad, grad, is_grad_enabled, no_grad
from .ops import *
from .tensor import Tensor
