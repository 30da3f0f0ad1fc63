"""What is appended to a trace: kernels, matrix products, copies and fills."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import backend
from .. import transfer
from ..arguments import Strided, checked, checked_sizes
from ..copy import copy_strided
from .buffer import ARENA, META, Buffer, new
from .context import current, not_recordable
from .trace import active


def launch(
    source: Any,
    kernel: str,
    grid: Any,
    block: Any,
    args: Sequence[Any],
    shared_mem: int,
    reachable: Sequence[Any],
    written: Sequence[Any],
    defines: dict[str, object],
) -> None:
    """Append the launch of a kernel, its arguments checked as a launch would check them."""
    arrays = [value.array if isinstance(value, Strided) else value for value in args]
    trace = active(*arrays, *reachable, *written)
    if trace.buffer.by_numpy:
        raise not_recordable(f"kernel {kernel!r} in a step that NumPy computes")
    for array in arrays:
        if isinstance(array, Buffer):
            array.settle()
    parameters = importlib.import_module("gpugrad.cuda.source").signatures(source.text)[kernel]
    checked_sizes(kernel, grid, block, shared_mem)
    checked(kernel, parameters, args, defines)
    if not source.large:
        source.refuse_large(kernel, args)
    reads, writes = list(reachable), list(written)
    for parameter, array in zip(parameters, arrays, strict=True):
        if backend.is_array(array):
            (reads if parameter.constant else writes).append(array)
    trace.record(
        source.launch,
        (kernel, grid, block, list(args)),
        {
            "shared_mem": shared_mem,
            "reachable": list(reachable),
            "written": list(written),
            **defines,
        },
        reads=reads,
        writes=writes,
        name=kernel,
    )


def product(
    run: Callable[..., Any], problem: Any, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any
) -> None:
    """Append a matrix product, which ``run(problem, ...)`` computes."""
    reads, writes = [a, b], [out]
    if problem.beta:
        reads.append(out)
    if backend.is_array(alpha):
        reads.append(alpha)
    if bias is not None:
        (writes if problem.epilogue in ("dgelu_bgrad", "bgrad") else reads).append(bias)
    if aux is not None:
        (writes if problem.epilogue == "gelu" else reads).append(aux)
    epilogue = f" {problem.epilogue}" if problem.epilogue else ""
    batch = f"{problem.batch}x" if problem.batch > 1 else ""
    active(a, b, out).record(
        run,
        (problem, a, b, out, bias, aux, alpha),
        reads=reads,
        writes=writes,
        name=f"gemm {batch}{problem.m}x{problem.n}x{problem.k}{epilogue}",
        flops=2 * problem.batch * problem.m * problem.n * problem.k,
    )


def copy_to(out: Buffer, value: Any) -> None:
    """Append a copy of a value, broadcast and cast, to the elements of out."""
    if out.by_numpy:
        out[...] = value
        return
    if current() is None and out.storage.kind == META:
        return  # the initial values of a model without memory
    if not isinstance(value, Buffer):
        if not backend.is_array(value):
            if out.flags.c_contiguous:
                fill(out, value)
                return
            value = np.asarray(value, out.dtype)
        value = active(out).lift(value)
    source = value.namespace.broadcast_to(value.astype(out.dtype), out.shape)
    if out.size:
        # as NumPy does, where a kernel would read what it has written
        copy_strided(source.copy() if source.overlaps(out) else source, out)


def apply(op: str, *args: Any) -> Buffer:
    """Append an operation that the device's own array library computes: on integers, booleans."""
    dtype = args[1] if op == "astype" else _dtype_of(op, args)
    shape = np.broadcast_shapes(*(a.shape for a in args if isinstance(a, Buffer)))
    out = new(ARENA, shape, dtype)
    if out.size:
        buffers = [a for a in args if isinstance(a, Buffer)]
        active(*buffers).record(_applied, (op, out, *args), reads=buffers, writes=[out], name=op)
    return out


def _dtype_of(op: str, args: Sequence[Any]) -> Any:
    ones = [np.ones((), a.dtype) if isinstance(a, Buffer) else a for a in args]
    with np.errstate(all="ignore"):
        return getattr(np, op)(*ones).dtype


def _applied(op: str, out: Any, *args: Any) -> None:
    xp = backend.xp_of(out)
    with np.errstate(all="ignore"):
        if op == "astype":
            out[...] = args[0]
        elif op == "where":
            xp.copyto(out, args[2])
            xp.copyto(out, args[1], where=args[0])
        else:
            getattr(xp, op)(*args, out=out)


def fill(out: Buffer, value: float) -> None:
    """Append a fill with one number."""
    active(out).record(transfer.fill, (out, value), writes=[out], name="fill")
