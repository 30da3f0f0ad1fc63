"""Clipping gradients by their common norm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import backend, cuda, openblas, registry
from ..backend import Array
from ..cuda import recording
from ..engine import mutations
from ..tensor import Tensor
from .blocks import SMALL, blocks, for_pieces, scale
from .chunks import THREADS, Row, Table, table, takes
from .scaler import NO_SCALE, LossScaler
from .spike_guard import NO_GUARD, SpikeGuard

SOURCE = cuda.Source("grad_norm.cu", large=True)

# Elements whose squares are summed in float32. OpenBLAS keeps eight sums or more side by side, so
# no square passes through more than 20 roundings of 2^-24, and the norm errs by half of that.
RUN = 128
# The mean square above which underflow does not count: it costs a square, or the product within a
# run, 2^-126 where the processor flushes to zero, so all of them together 2^-26 of the sum.
LEAST_SQUARE = 2.0**-100


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, *, error_if_nonfinite: bool = False
) -> Any:
    """Scale the gradients in place so that their common 2-norm is at most ``max_norm``.

    Returns the norm before clipping, a float: sqrt of the sum of the squares of all elements of all
    gradients, summed in float64 (and scaled by the largest element where even that would
    overflow), so gradients of 1e25 in float32 have the norm they should. Of large float32 gradients
    on the CPU runs of 128 elements are summed in float32, and these sums in float64: that errs by
    less than 7e-7 of the norm, usually by 1e-8. The factor is PyTorch's,
    min(1, max_norm / (norm + 1e-6)). Parameters without a gradient are passed over.

    When a gradient holds NaN or infinity the norm is nan or inf and the gradients stay as they
    are: skip the step if ``not math.isfinite(norm)``. With ``error_if_nonfinite`` that raises
    RuntimeError, which names the first such gradient.

    On a GPU three launches measure and scale all gradients; reading the norm then waits for them.
    ``optimizer.step(max_norm=...)`` does not wait, and does not write the gradients. A step that
    ``gg.compile`` records waits for nothing either: there the norm is a float64 tensor without
    dimensions, and ``error_if_nonfinite`` cannot be asked for (NotRecordable).
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be a number >= 0, got {max_norm!r}")
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for position, p in enumerate(given):
        if not isinstance(p, Tensor):
            raise TypeError(
                f"clip_grad_norm_: parameter {position} must be a tensor, got {type(p).__name__}"
            )
    every = [p.grad for p in dict.fromkeys(given)]
    gradients = [g._data for g in every if g is not None]
    trace = recording.current()
    if trace is not None and trace.buffer.by_numpy and gradients:
        return _recorded_by_numpy(gradients, max_norm, error_if_nonfinite)
    found = _table(gradients)
    if trace is not None and gradients:
        return _recorded(found, max_norm, error_if_nonfinite)
    if found is None:
        norm = norm_of(gradients)
    else:
        result = measure(found, max_norm)
        found.launch(SOURCE, "grad_scale", result, writes=("g",))
        norm = float(result[0])
    if not math.isfinite(norm):
        if error_if_nonfinite:
            raise RuntimeError(f"clip_grad_norm_: the norm is {norm}; {_culprit(given)}")
        return norm
    factor = factor_of(norm, max_norm)
    if factor < 1:
        if found is None:
            _scale(gradients, factor)
        for g in gradients:
            mutations.record(g, "clip_grad_norm_")
    return norm


def _recorded_by_numpy(gradients: list[Array], max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """Do what ``_recorded`` does where NumPy computes; gradients are those without elements."""
    if error_if_nonfinite:
        raise recording.not_recordable("clip_grad_norm_ with error_if_nonfinite")
    found = recording.changing(gradients, _clipped, gradients, max_norm)
    return Tensor._wrap(found, None)


def _clipped(gradients: list[Array], max_norm: float) -> Array:
    """Scale gradients on the CPU by the factor that clips them; return their norm before."""
    norm = norm_of(gradients)
    if factor_of(norm, max_norm) < 1:
        _scale(gradients, factor_of(norm, max_norm))
    return np.array(norm)


def _recorded(gradients: Table | None, max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """Return the norm as a tensor that nobody waits for; the step being recorded scales."""
    if error_if_nonfinite:
        raise recording.not_recordable("clip_grad_norm_ with error_if_nonfinite")
    if gradients is None:
        raise recording.not_recordable(
            "clip_grad_norm_ of gradients that one launch does not take (float64, on two devices, "
            "or in parts of larger arrays; see optimizer.step(max_norm=...))"
        )
    result = measure(gradients, max_norm)
    gradients.launch(SOURCE, "grad_scale", result, writes=("g",))
    return Tensor._wrap(result[:1].reshape(()), None)


def measure(
    gradients: Table,
    max_norm: float,
    scaler: LossScaler | None = None,
    guard: SpikeGuard | None = None,
) -> Array:
    """Return the norm of the gradients and the factor that clips them, float64, on their device.

    The factor is min(1, max_norm / (norm + 1e-6)), or NaN if the norm is not finite; if it is, the
    rows that count steps have taken one more. With a scaler the gradients are those of a scaled
    loss: the norm is that without the scale, the factor undoes the scale as well, and the scale is
    adapted. With a guard the factor is NaN for a spike, too. Nothing waits for the result: the
    kernels of the optimisers read it there.
    """
    blocks = len(gradients.chunks)
    partials = cuda.empty(blocks, backend.float64, gradients.tensors)
    result = cuda.empty(2, backend.float64, gradients.tensors)
    gradients.launch(SOURCE, "grad_norm_partial", partials, reads=("g",))
    SOURCE.launch(
        "grad_norm_finish",
        (1,),
        (THREADS,),
        [
            *(partials, blocks, float(max_norm), result, gradients.tensors, len(gradients.rows)),
            *(NO_SCALE if scaler is None else scaler.arguments()),
            *(NO_GUARD if guard is None else guard.arguments()),
        ],
        written=gradients.arrays("step"),
    )
    return result


def count_steps(gradients: Table, clip: Array | None) -> None:
    """Count a step of every row, unless the factor in ``clip`` is NaN."""
    SOURCE.launch(
        "grad_count_steps",
        (1,),
        (THREADS,),
        [gradients.tensors, len(gradients.rows), clip],
        written=gradients.arrays("step"),
    )


def _table(gradients: list[Array]) -> Table | None:
    """Return what the kernels need to know of the gradients, None if they do not take them all."""
    # the order of the elements does not matter
    given = [g if g.flags.c_contiguous else g.T for g in gradients if g.size]
    places = {(backend.device_of(g), _place(g)) for g in given if takes(g)}
    devices = {device for device, _ in places}
    if len(places) < len(given) or len(devices) != 1:
        return None
    return table([Row(g) for g in given])


def _place(gradient: Array) -> Any:
    """Return where a gradient lies, for a recorded one by its memory, which has no address yet."""
    if isinstance(gradient, recording.Buffer):
        return id(gradient.storage), gradient.offset
    return cuda.address(gradient)


def factor_of(norm: float, max_norm: float) -> float:
    """Return what clips gradients of this norm, as ``measure`` does; NaN if it is not finite."""
    return min(1.0, float(max_norm) / (norm + 1e-6)) if math.isfinite(norm) else math.nan


def norm_of(gradients: list[Array]) -> float:
    """Return the common 2-norm of some gradients, wherever they are.

    With OpenBLAS the squares of a large float32 gradient are summed in float32 over runs of RUN
    elements, and these sums in float64: that errs by less than 7e-7 of the norm, usually by 1e-8.
    Where squares could be lost to overflow or underflow all are summed in float64 instead.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # looked for right below
        quick, others = _apart(gradients)
        total = _sum_of_squares(others, 1.0, quick)
        if quick and not sum(g.size for g in quick) * LEAST_SQUARE < total < math.inf:
            total = _sum_of_squares(gradients, 1.0)
    if 1e-200 < total < math.inf:  # no square was lost to overflow or underflow
        return math.sqrt(total)
    largest = max((_largest(g) for g in gradients if g.size), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(_sum_of_squares(gradients, largest))


def _apart(gradients: list[Array]) -> tuple[list[Array], list[Array]]:
    """Return the gradients whose runs are summed in float32, and the others."""
    if not openblas.available():
        return [], gradients
    quick = [
        g
        for g in gradients
        if isinstance(g, np.ndarray) and g.dtype == backend.float32 and g.size > SMALL
    ]
    chosen = set(map(id, quick))
    return quick, [g for g in gradients if id(g) not in chosen]


def _sum_of_squares(gradients: list[Array], unit: float, quick: Sequence[Array] = ()) -> float:
    """Return the sum of (g / unit)^2 over all elements, and of g^2 over those of ``quick``."""
    few = [g for g in gradients if g.size <= SMALL and isinstance(g, np.ndarray)]
    many = [g for g in gradients if g.size > SMALL or not isinstance(g, np.ndarray)]
    for dtype in dict.fromkeys(g.dtype for g in few):  # a call lasts longer than the arithmetic
        many.append(np.concatenate([g.reshape(-1) for g in few if g.dtype == dtype]))
    exact = _pieces(many, 2)  # of which copies in float64 stay in the cache
    pieces = [*exact, *_pieces(quick)]
    sums: list[Any] = [0.0] * len(pieces)
    of_runs: dict[int, Array] = {}

    def add(i: int) -> None:
        x = pieces[i].reshape(-1)
        if i >= len(exact):
            whole = x.size // RUN * RUN
            runs = x[:whole].reshape(-1, RUN)
            of_runs[i] = np.vecdot(runs, runs)
            x = x[whole:]
        if x.size:
            x = x.astype(backend.float64)
            if unit != 1:
                x /= unit
            sums[i] = x.dot(x)

    for_pieces(pieces, add)
    if of_runs:
        sums.append(np.concatenate([of_runs[i] for i in sorted(of_runs)]).sum(dtype=np.float64))
    return float(sum(sums))


def _pieces(gradients: Sequence[Array], parts: int = 1) -> list[Array]:
    """Return views of all elements, in pieces that stay in the cache."""
    pieces = []
    for gradient in gradients:
        g, found = blocks(gradient, parts)
        pieces += [g[rows] for _, rows in found] if len(found) > 1 else [g] * len(found)
    return pieces


def _largest(gradient: Array) -> float:
    """Return the largest absolute value of a gradient, NaN if it holds one."""
    xp = backend.xp_of(gradient)
    wide = gradient if gradient.dtype == backend.float64 else gradient.astype(backend.float32)
    low, high = float(xp.min(wide)), float(xp.max(wide))
    return low if math.isnan(low) else max(-low, high)


def _scale(gradients: list[Array], factor: float) -> None:
    pieces = _pieces(gradients)
    for_pieces(pieces, lambda i: scale(pieces[i], factor, pieces[i]))


def _culprit(parameters: list[Tensor]) -> str:
    for position, p in enumerate(parameters):
        if p._grad is not None:
            g = p._grad._data
            bad = int((~backend.xp_of(g).isfinite(g)).sum())
            if bad:
                return (
                    f"parameter {position}, {registry.describe(p)}, has {bad} NaN or infinite "
                    "gradients"
                )
    return "every gradient is finite, but the norm is beyond float64"
