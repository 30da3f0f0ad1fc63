"""``check_kernel``: all that can be known of an operation's CUDA kernels without a GPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, emulator, engine
from ..cuda import compiler, lock
from ..cuda.kernel import Source
from ..fused.base import Fused
from ..fused.kernel import Kernel
from ..registry import Sample
from ..tensor import Tensor
from .closeness import assert_implements
from .derivatives import gradcheck, gradgradcheck

ARCHITECTURES = ("sm_80", "sm_90a")  # that check_kernel compiles for


def check_kernel(
    op: Kernel,
    samples: Sequence[Sample] | None = None,
    dtypes: Sequence[Any] = (backend.float32,),
    scale: float = 0.0,
    seed: int = 0,
) -> None:
    """Check an operation made with ``gg.kernel`` on its samples, or on others; raise what is wrong.

    For each sample: the definition's first and second derivatives against finite differences in
    float64; then in each of ``dtypes`` the kernels in the emulator, in both builds and every order
    of threads, for races, reads of uninitialised or foreign memory and results that depend on the
    order; and their results and gradients against the definition by the 2x/3x rule (``scale`` as
    in ``tolerance``).

    Before that NVRTC compiles the variants for ``ARCHITECTURES``, except those older than
    ``op.source.since``: g++, the emulator's compiler, takes more (std headers, ``INFINITY``). Where
    NVRTC is not installed, whether a GPU's compiler takes the source stays unknown.

    Raises AssertionError, emulator.Fault, cuda.compiler.CompileError with NVRTC's message, and
    ValueError if the kernels never ran.
    """
    _compile(op.source)
    for sample in op.samples if samples is None else samples:
        inputs = drawn(op, sample, seed)
        spec, run = _bound(op.spec, sample), _bound(op, sample)
        if any(x is not None and x.requires_grad for x in inputs):
            gradcheck(spec, inputs)
            gradgradcheck(spec, inputs)
        for dtype in map(backend.as_dtype, dtypes):
            before = op.source.launches  # its own: the gradients of the rest may launch others
            emulator.sweep(functools.partial(everything, run, inputs, dtype))
            if op.source.launches == before:
                raise ValueError(
                    f"{op.name}: the kernels do not run for {dtype} at {sample!r}; see fits and "
                    "the dtypes of the variants"
                )
            with emulator.enabled("plain"):
                assert_implements(run, spec, inputs, dtype, scale=scale)


def _compile(source: Source) -> None:
    """Compile a source for GPUs; raise what NVRTC says against it, nothing where there is none."""
    try:
        compiler.nvrtc()
        compiler.include_folder()
    except RuntimeError:
        return
    for architecture in ARCHITECTURES:
        if lock.supports(source, architecture):
            for variant in source.variants:
                lock.measure(source, variant, architecture)


def drawn(op: Fused, sample: Sample, seed: int = 0) -> list[Any]:
    """Return a sample's inputs as float64 tensors, those with a gradient marked; None stays."""
    tensors = []
    arrays = sample.draw(np.random.default_rng(seed))
    for name, array in zip(op.arguments, arrays, strict=True):
        wanted = array is not None and array.dtype.kind == "f" and name in op.differentiable
        tensors.append(None if array is None else Tensor(array, requires_grad=wanted))
    return tensors


def everything(run: Any, inputs: Sequence[Any], dtype: Any) -> tuple[list, list]:
    """Return the arrays of the results in a dtype, and of the gradients for fixed upstream ones."""
    given = [
        Tensor(x._data.astype(dtype), requires_grad=x.requires_grad)
        if isinstance(x, Tensor) and backend.is_float(x.dtype)
        else x
        for x in inputs
    ]
    result = run(*given)
    outs = list(result) if isinstance(result, tuple) else [result]
    wanted = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    seeds = [
        Tensor(np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype)) for out in outs
    ]
    grads = engine.grad(outs, wanted, seeds) if wanted else ()
    return [out._data for out in outs], [g._data for g in grads]


def _bound(run: Any, sample: Sample) -> Any:
    def bound(*inputs: Any) -> Any:
        return run(*inputs, **sample.statics)

    bound.__name__ = getattr(run, "name", getattr(run, "__name__", "the definition"))
    return bound
