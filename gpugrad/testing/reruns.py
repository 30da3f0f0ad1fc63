"""A recorded operation, run again: by its definition in any precision, and by its implementations.

What crosscheck compares. A primitive is its own definition, a fused operation has its spec.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import backend, cuda, engine
from .._where import Place, here
from ..cuda.emulation import disabled
from ..fused.base import Fused
from ..registry import Node, Op, Pullback
from ..tensor import Tensor

STEP = 1e-6  # of central differences, relative to each element
MOVES = 4  # of the arguments: the largest effect counts, as one may be small by luck


class PlacedNode(Node):
    """A node that keeps what its operation took and returned, and where it was called."""

    __slots__ = ("place", "values")

    def __init__(self, op: Any, parents: tuple, values: tuple, shapes: tuple | None) -> None:
        super().__init__(op, parents, values, shapes)
        self.values = values
        self.place = here()


class placing(engine.no_grad):
    """Context: operations inside are recorded with their values and places."""

    make_node = PlacedNode


class Run(NamedTuple):
    """What one way to compute gives: results, and gradients of what wants one (None: has none)."""

    name: str
    outs: Sequence[Any]
    grads: Sequence[Any] | None


@dataclasses.dataclass
class Call:
    """One call of a primitive or fused operation, with the upstream gradient of each result.

    ``arrays`` are its arguments, Python numbers and None among them; ``wanted`` the positions of
    those that got the gradients ``grads``; ``out`` is what a primitive returned; ``chosen`` which
    implementation of a fused operation ran.
    """

    op: Op | Fused
    arrays: Sequence[Any]
    statics: dict[str, Any]
    wanted: tuple[int, ...]
    upstream: dict[int, Any]
    grads: list[Any]
    place: Place
    out: Any = None
    chosen: str = ""

    @staticmethod
    def of(node: PlacedNode, g: Any, grads: list[Any]) -> Call | None:
        """Return the call behind a node; None if it is the user's Function, or a checkpoint."""
        launch = node.op
        upstream = dict(g) if isinstance(g, dict) else {0: engine.as_array(g)}
        if isinstance(launch, Pullback):
            op, n = launch.op, len(launch.op.arguments)
            statics = dict(zip(op.statics, node.values[n + 1 :], strict=False))
            wanted = tuple(op.arguments.index(name) for name in launch.wanted)
            arrays, out = node.values[:n], node.values[n]
            return Call(op, arrays, statics, wanted, upstream, grads, node.place, out)
        fused = getattr(launch, "fused", None)
        if not isinstance(fused, Fused):
            return None
        wanted = tuple(i for i, w in enumerate(launch.wanted) if w)
        arrays = node.values[: len(fused.arguments)]
        call = Call(fused, arrays, launch.statics, wanted, upstream, grads, node.place)
        call.chosen = launch.chosen
        return call

    def exact(self) -> Run:
        """Run the definition in float64."""
        return self._defined(lambda v: v.astype(backend.float64))

    def nearby(self, rng: np.random.Generator) -> list[Run]:
        """Run the definition in the dtypes at hand, some times with arguments one unit away.

        A fused operation rounds to two bytes once, where its spec may do so at every step, so the
        arguments of two bytes are in float32 here, but for a run as they are.
        """

        def moved(v: Any) -> Any:
            dtype = backend.promote(v.dtype, backend.float32) if fused else v.dtype
            unit = float(ml_dtypes.finfo(dtype).eps)
            away = v.astype(np.float64) * (1 + unit * rng.choice([-1.0, 1.0], v.shape))
            return np.asarray(away).astype(dtype)

        fused = isinstance(self.op, Fused)
        as_is = [self._defined(lambda v: v)] * fused
        return as_is + [self._defined(moved) for _ in range(MOVES)]

    def _defined(self, change: Callable[[Any], Any]) -> Run:
        seeds = self._upstream_on("cpu")
        upstream = dict(zip(seeds, _changed(seeds.values(), change), strict=True))
        with disabled():
            return self._run("definition", _changed(self._on("cpu"), change), upstream)

    def runs(self) -> Iterator[Run]:
        """Yield what the model computed, and what every other implementation at hand does."""
        ran = "cupy" if self._on_gpu() else "emulated" if cuda.emulated() else "numpy"
        if isinstance(self.op, Fused):
            ran = "numpy" if self.chosen == "numpy" else ran
            again = self._implemented(ran, self.chosen, self.arrays, self.upstream)
            assert again is not None, "what ran once runs again"
            yield again._replace(grads=self.grads)
        else:
            yield Run(ran, [self.out], self.grads)
        others = ["numpy", *["emulated"] * cuda.emulated(), *["cupy"] * backend.cuda_is_available()]
        for name in others:
            found = None if name == ran else self._elsewhere(name)
            if found is not None:
                yield found

    def slopes(self, exact: Run, rng: np.random.Generator) -> tuple[float, float, float]:
        """Return the derivative along a direction, by the definition's gradient and by differences.

        In float64. The third is how far they may be apart: rounding, and what the differences to
        both sides disagree by, which is large where there is a kink or a step.
        """
        assert exact.grads is not None
        arrays = _changed(self._on("cpu"), lambda v: v.astype(backend.float64))
        directions: dict[int, np.ndarray] = {}
        for i, g in zip(self.wanted, exact.grads, strict=True):
            moving = np.isfinite(arrays[i]) & np.isfinite(g) & (g != 0)  # not what stands for -inf
            size = np.abs(arrays[i], where=moving, out=np.zeros_like(arrays[i]))
            size += (1e-3 * np.median(size[moving]) if moving.any() else 0) or 1.0
            directions[i] = moving * size * np.sign(g) * rng.uniform(0.5, 1.5, size.shape)
        slope = sum(
            float(np.sum(g * directions[i], where=directions[i] != 0))
            for i, g in zip(self.wanted, exact.grads, strict=True)
        )
        terms = []
        for step in (STEP, 0.0, -STEP):
            moved = list(arrays)
            for i, direction in directions.items():
                moved[i] = np.asarray(arrays[i] + step * direction)
            with disabled(), engine.no_grad(), np.errstate(all="ignore"):
                outs = self._call([Tensor(x) if backend.is_array(x) else x for x in moved])
                terms.append(self._weighted(outs))
        up, at, down = (float(t.sum()) for t in terms)
        kink = abs((up - at) - (at - down)) / STEP
        rounding = 4 * float(np.finfo(np.float64).eps) * float(np.abs(terms[1]).sum()) / STEP
        return slope, (up - down) / (2 * STEP), 1e-4 * abs(slope) + rounding + kink

    # How it runs

    def _call(self, tensors: Sequence[Any]) -> Sequence[Tensor]:
        statics = self._statics_beside([t._data for t in tensors if isinstance(t, Tensor)])
        if isinstance(self.op, Fused):
            result = self.op.definition(*tensors, **statics)
        else:
            result = self.op(tensors, statics)
        return result if isinstance(result, tuple) else (result,)

    def _run(self, name: str, arrays: Sequence[Any], upstream: dict[int, Any]) -> Run:
        """Run the operation as a user would, and go back."""
        tensors = [
            Tensor(a, requires_grad=i in self.wanted) if backend.is_array(a) else a
            for i, a in enumerate(arrays)
        ]
        with engine.enable_grad(), np.errstate(all="ignore"):
            outs = self._call(tensors)
            seeded = [i for i in upstream if outs[i].requires_grad]
            inputs = [tensors[i] for i in self.wanted]
            grads = engine.grad([outs[i] for i in seeded], inputs, [upstream[i] for i in seeded])
        return Run(name, [out._data for out in outs], [g._data for g in grads])

    def _elsewhere(self, name: str) -> Run | None:
        device = "cuda" if name == "cupy" else "cpu"
        arrays, upstream = self._on(device), self._upstream_on(device)
        with disabled() if name == "numpy" else contextlib.nullcontext():
            if isinstance(self.op, Fused):
                kind = "numpy" if name == "numpy" else "cuda"
                return self._implemented(name, kind, arrays, upstream)
            return self._run(name, arrays, upstream)

    def _implemented(
        self, name: str, kind: str, arrays: Sequence[Any], upstream: dict[int, Any]
    ) -> Run | None:
        """Return what an implementation of a fused operation computes; None if it does not fit."""
        assert isinstance(self.op, Fused)
        found = self.op.implementations.get(kind)
        if found is None or (kind == "cuda" and any(a is not None and not a.size for a in arrays)):
            return None
        statics = self._statics_beside(arrays)
        if found.fits is not None and not found.fits(*arrays, **statics):
            return None
        with engine.enable_grad(), np.errstate(all="ignore"):  # or no slopes are kept
            out, residuals = found.forward(*arrays, **statics)
            outs = out if isinstance(out, tuple) else (out,)
            if found.backward is None:
                return Run(name, outs, None)
            given: Any = [upstream.get(i) for i in range(len(outs))]
            wanted = tuple(i in self.wanted for i in range(len(arrays)))
            g = given if isinstance(out, tuple) else given[0]
            grads = found.backward(wanted, g, arrays, residuals, **statics)
        return Run(name, outs, [grads[i] for i in self.wanted])

    def _weighted(self, outs: Sequence[Tensor]) -> np.ndarray:
        """Return the elements of the results times those of their upstream gradients."""
        parts = [
            (outs[i]._data * g.astype(np.float64)).ravel()
            for i, g in self._upstream_on("cpu").items()
        ]
        terms = np.concatenate(parts).astype(np.float64)
        return terms[np.isfinite(terms)]

    def _on_gpu(self) -> bool:
        return any(backend.is_array(a) and backend.device_of(a) != "cpu" for a in self.arrays)

    def _on(self, device: str) -> list[Any]:
        return [backend.to_device(a, device) if backend.is_array(a) else a for a in self.arrays]

    def _statics_beside(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """Return the other arguments with the arrays in them, such as indices, where these are."""
        device = next((backend.device_of(a) for a in arrays if backend.is_array(a)), "cpu")
        return {name: _moved(value, device) for name, value in self.statics.items()}

    def _upstream_on(self, device: str) -> dict[int, Any]:
        return {i: backend.to_device(g, device) for i, g in self.upstream.items()}


def _moved(value: Any, device: str) -> Any:
    """Return an array on a device; tuples with the arrays in them there, all else as it is."""
    if backend.is_array(value):
        return backend.to_device(value, device)
    if type(value) is tuple:
        return tuple([_moved(v, device) for v in value])
    return value


def _changed(values: Iterable[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Return the values, floating arrays changed."""
    return [change(v) if backend.is_array(v) and backend.is_float(v.dtype) else v for v in values]
