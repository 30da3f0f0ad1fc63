"""A user's Function, run again: its backward against central differences of its forward.

In float64 where the forward takes it and returns it, else in the dtype it was given: with a step
of the third root of the machine epsilon, the best for central differences of that dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import backend, engine
from ..ops import random
from ..tensor import Tensor

DRAW = random.Draw(0, 0)  # of all runs: a forward that draws its numbers here is a function


class Slope(NamedTuple):
    """The derivative along a direction of one argument, and how far the two may be apart."""

    argument: int
    by_backward: float
    by_differences: float
    allowed: float


def slopes(
    function: Any, args: Sequence[Any], kwargs: dict[str, Any], g: Any, rng: np.random.Generator
) -> list[Slope]:
    """Return a slope for each argument that wants a gradient; none where it cannot be found.

    ``g`` maps the index of a result to its upstream gradient. There are none where forward refuses
    to run again, or two runs of it give two results.
    """
    upstream = {i: backend.to_numpy(engine.as_array(part)) for i, part in g.items()}
    given = next(a.dtype for a in args if isinstance(a, Tensor) and a.requires_grad)
    in_float64 = _Rerun(function, args, kwargs, upstream, backend.float64)
    as_given = _Rerun(function, args, kwargs, upstream, given)
    found = _unless_refused(in_float64, rng)
    return _unless_refused(as_given, rng) or [] if found is None else found


def _unless_refused(rerun: _Rerun, rng: np.random.Generator) -> list[Slope] | None:
    try:
        return rerun.slopes(rng)
    except Exception:  # of any kind: it is the user's forward that does not take this dtype
        return None


class _Rerun:
    """One call of a Function, in another dtype."""

    def __init__(
        self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], upstream: Any, dtype: Any
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.upstream, self.dtype = upstream, dtype
        self.eps = float(ml_dtypes.finfo(dtype).eps)
        self.wanted = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]

    def slopes(self, rng: np.random.Generator) -> list[Slope]:
        tensors, outs = self._run({}, recorded=True)
        at = self._terms(outs)
        if not np.array_equal(at, self._terms(self._run({})[1]), equal_nan=True):
            return []
        seeds = [Tensor(g.astype(self.dtype), device=outs[i].device) for i, g in self._pairs(outs)]
        ends = [outs[i] for i, _ in self._pairs(outs)]
        grads = engine.grad(ends, [tensors[i] for i in self.wanted], seeds)
        return [
            self._slope(i, _wide(self.args[i]), _wide(grad), at, rng)
            for i, grad in zip(self.wanted, grads, strict=True)
            if grad.size
        ]

    def _slope(
        self, i: int, x: np.ndarray, g: np.ndarray, at: np.ndarray, rng: np.random.Generator
    ) -> Slope:
        step = self.eps ** (1 / 3)
        moving = np.isfinite(x) & np.isfinite(g)
        size = np.where(moving, np.abs(x), 0.0)
        size += (1e-3 * np.median(size[moving]) if moving.any() else 0) or 1.0
        signs = np.where(g == 0, rng.choice([-1.0, 1.0], g.shape), np.sign(g))
        direction = moving * size * signs * rng.uniform(0.5, 1.5, size.shape)
        far_up, up, down, far_down = (
            float(self._terms(self._run({i: x + k * step * direction})[1]).sum())
            for k in (2, 1, -1, -2)
        )
        middle = float(at.sum())
        rough = max(abs(up - 2 * middle + down), abs(far_up - 2 * up + 2 * down - far_down))
        slope = float(np.sum(g * direction, where=moving))
        rounding = 4 * self.eps * float(np.abs(at).sum())
        allowed = max(1e-4, 2 * step) * abs(slope) + (rounding + 2 * rough) / step
        return Slope(i, slope, (up - down) / (2 * step), allowed)

    def _run(
        self, moved: dict[int, np.ndarray], recorded: bool = False
    ) -> tuple[list[Any], Sequence[Tensor]]:
        """Run it on copies, those moved in the place of the arguments."""
        tensors = list(self.args)
        for i, a in enumerate(self.args):
            if isinstance(a, Tensor):
                values = moved.get(i, backend.to_numpy(a._data))
                dtype = self.dtype if backend.is_float(a.dtype) else a.dtype
                wants = recorded and i in self.wanted
                array = np.array(values, dtype)
                tensors[i] = Tensor(array, device=a.device, requires_grad=wants)
        mode = engine.enable_grad() if recorded else engine.no_grad()
        with mode, random.drawing_from(DRAW), np.errstate(all="ignore"):
            result = self.function.apply(*tensors, **self.kwargs)
        outs = result if isinstance(result, tuple) else (result,)
        if any(outs[i].dtype != self.dtype for i in self.upstream):
            raise TypeError(f"{self.function.__name__}: its results are not {self.dtype}")
        return tensors, outs

    def _pairs(self, outs: Sequence[Tensor]) -> list[tuple[int, np.ndarray]]:
        return [(i, g) for i, g in self.upstream.items() if outs[i].requires_grad]

    def _terms(self, outs: Sequence[Tensor]) -> np.ndarray:
        """Return the elements of the results times those of their upstream gradients."""
        parts = [(_wide(outs[i]) * g.astype(np.float64)).ravel() for i, g in self.upstream.items()]
        terms = np.concatenate(parts)
        return terms[np.isfinite(terms)]


def _wide(x: Tensor) -> np.ndarray:
    return backend.to_numpy(x._data).astype(np.float64)
