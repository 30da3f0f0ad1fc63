"""Checks for operations of your own: gradients, implementations beside a spec, hard cases.

Derivatives against finite differences, in float64::

    x = gg.tensor(np.random.rand(3, 4), requires_grad=True)
    gg.testing.gradcheck(my_op, x)        # the gradient
    gg.testing.gradgradcheck(my_op, x)    # the gradient of the gradient

A faster implementation against a plain one, in the precision it will run in::

    gg.testing.assert_implements(my_kernel, my_spec, [x], gg.bfloat16)

A CUDA kernel made an operation by ``gg.kernel``, run on the CPU::

    gg.testing.check_kernel(my_op)

The first operation of a whole model whose implementations do not agree::

    gg.testing.crosscheck(model, (ids, targets))

``shapes`` and ``layouts`` give the inputs that break kernels.
"""

from __future__ import annotations

from ..boundary import name_all
from .cases import LENGTHS, layouts, shapes
from .closeness import assert_close, assert_implements, tolerance
from .crosscheck import Difference, Report, crosscheck
from .derivatives import gradcheck, gradgradcheck
from .kernels import check_kernel

__all__ = [
    "LENGTHS",
    "Difference",
    "Report",
    "assert_close",
    "assert_implements",
    "check_kernel",
    "crosscheck",
    "gradcheck",
    "gradgradcheck",
    "layouts",
    "shapes",
    "tolerance",
]

name_all(globals(), "gpugrad.testing.")
