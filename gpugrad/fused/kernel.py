"""``kernel``: CUDA kernels of your own as operations, beside the NumPy code that defines them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import backend, cuda
from ..ops import asarray
from ..registry import Sample
from ..tensor import Tensor
from .base import FUSED, Cost, Fused, Implementation


class Kernel(Fused):
    """An operation of your own; ``source`` is its .cu file. Call it with tensors or arrays."""

    source: cuda.Source
    optional = 0  # how many of the arguments, the last ones, have a default in the definition

    def __call__(self, *args: Any, **statics: Any) -> Any:
        """Run the operation; None stands for an argument that is not given."""
        given = len(self.arguments) - len(args)
        if not 0 <= given <= self.optional:
            raise TypeError(
                f"{self.name} takes {len(self.arguments)} tensors ({', '.join(self.arguments)}), "
                f"not {len(args)}"
            )
        tensors = [None if a is None else a if isinstance(a, Tensor) else asarray(a) for a in args]
        return super().__call__(*tensors, *[None] * given, **statics)


def _found(name: str, path: str | os.PathLike[str], spec: Callable[..., Any]) -> str:
    """Return where the .cu file is; FileNotFoundError says where it was looked for."""
    defined_in = os.path.realpath(inspect.getsourcefile(spec) or "")
    is_file = os.path.isfile(defined_in)  # not in a notebook
    found = os.path.join(os.path.dirname(defined_in) if is_file else os.getcwd(), path)
    if not os.path.isfile(found):
        raise FileNotFoundError(
            f"{name}: there is no {found}; a relative path is taken from the folder of the "
            "definition's file, in a notebook from the current folder"
        )
    return found


def kernel(
    path: str | os.PathLike[str],
    *,
    samples: Sequence[Sample],
    forward: Callable[..., Any],
    backward: Callable[..., Sequence[Any]] | None = None,
    differentiable: Sequence[str] | None = None,
    variants: Sequence[Mapping[str, object]] = ({},),
    fits: Callable[..., bool] | None = None,
    cost: Callable[..., Cost] | None = None,
    sizes: Sequence[Sample] = (),
) -> Callable[[Callable[..., Any]], Kernel]:
    """Register a .cu file as an operation; the decorated function, in plain operations, defines it.

    The definition is the oracle of the checks, what runs where the kernel does not (NumPy without
    the emulator, float64), and the second derivative. Its positional parameters are the tensors,
    its keyword-only ones numbers and switches. ``path`` is relative to the definition's file (in a
    notebook, to the current folder); it may include the headers of the shipped kernels, above all
    "ptx.cuh" (cp.async, mma, mbarrier, TensorMap), where none so named lies beside it.

    ``forward(source, *arrays, **statics)`` launches kernels with ``source.launch`` and returns the
    result, or a pair of result and tuple of arrays to keep for backward. ``backward(source, g,
    arrays, kept, **statics)`` returns one gradient (or None) per tensor; without it the definition
    is differentiated. Arrays come C-contiguous, tensors not given as None. Only the
    ``differentiable`` tensors, by default all, have a gradient.

    ``variants`` are the macros to compile with (``cuda.variants(GPUGRAD_DTYPE=(0, 1))``); floating
    tensors of one of those element types, float32 if none is named, take the kernel unless
    ``fits(*arrays, **statics)`` says no. ``samples`` are inputs, as ``gg.Sample((3, 4),
    factor=2.0)``, for ``gg.testing.check_kernel``, which finds wrong gradients, races, reads out of
    bounds and what NVRTC refuses. ``cost(*arrays, **statics)`` returns the ``gg.Cost`` that
    ``gpugrad bench --module MODULE`` compares with, at ``sizes`` (by default the samples).
    ``python -m gpugrad.cuda.lock MODULE`` keeps the kernels' registers under control.
    """

    def decorate(spec: Callable[..., Any]) -> Kernel:
        name = spec.__name__.strip("_")
        previous = FUSED.get(name)
        if isinstance(previous, Kernel) and previous.spec.__module__ == spec.__module__:
            del FUSED[name]  # the cell of a notebook that is run again
        source = cuda.Source(_found(name, path, spec), variants)
        codes = {variant.get("GPUGRAD_DTYPE", 0) for variant in variants}
        parameters = [
            p
            for p in inspect.signature(spec).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        arguments = [p.name for p in parameters]
        if not arguments:
            raise TypeError(f"{name}: the definition takes at least one tensor, by position")

        def suits(*arrays: Any, **statics: Any) -> bool:
            if not cuda.fits(*arrays):
                return False
            dtype = next(a.dtype for a in arrays if a is not None and cuda.fits(a))
            return cuda.dtype_code(dtype) in codes and (fits is None or fits(*arrays, **statics))

        def run_forward(*arrays: Any, **statics: Any) -> tuple[Any, tuple]:
            found = forward(source, *map(cuda.contiguous, arrays), **statics)
            is_pair = (
                isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], (tuple, list))
            )
            out, kept = found if is_pair else (found, ())
            if not all(map(backend.is_array, out if isinstance(out, tuple) else (out,))):
                raise TypeError(
                    f"{name}: forward must return an array (or a tuple of them), or a pair of that "
                    f"and a tuple of arrays to keep; it returned {type(found).__name__}"
                )
            return out, kept

        def run_backward(
            wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], kept: tuple, **statics: Any
        ) -> Sequence[Any]:
            assert backward is not None
            given = [cuda.contiguous(a) for a in arrays]
            upstream = (
                [cuda.contiguous(x) for x in g] if isinstance(g, list) else cuda.contiguous(g)
            )
            found = backward(source, upstream, given, kept, **statics)
            if not isinstance(found, (tuple, list)) or len(found) != len(arguments):
                raise TypeError(
                    f"{name}: backward must return {len(arguments)} gradients "
                    f"({', '.join(arguments)}), one per tensor, None where there is none"
                )
            return found

        implementation = Implementation(
            run_forward, None if backward is None else run_backward, suits
        )
        able = arguments if differentiable is None else differentiable
        made = Kernel(name, spec, arguments, able, {"cuda": implementation}, samples, cost)
        made.source, made.sizes = source, tuple(sizes)
        made.optional = sum(p.default is not p.empty for p in parameters)
        return made

    return decorate
