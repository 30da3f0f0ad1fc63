"""Where what a model is given goes: to the device of its parameters."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..tensor import Tensor


def beside(parameter: Any, given: Any) -> Tensor:
    """Return an array, a list or a tensor as a tensor on the device of a parameter; recorded."""
    x = ops.asarray(given)
    return x.to(parameter.device)
