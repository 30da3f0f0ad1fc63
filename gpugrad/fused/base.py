"""Fused operations: a spec, and implementations that compute the same faster.

The spec is ordinary recorded operations and is the definition: the oracle of the tests, the
fallback where no implementation fits, and the second derivative. An implementation is a pair of
functions on raw arrays::

    forward(*arrays, **statics)               -> out or tuple of outs, tuple of residuals
    backward(wanted, g, arrays, residuals, **statics) -> gradients, one per argument

``wanted`` holds one bool per argument; what is not wanted may be returned as None. ``g`` is the
gradient of the result (for several results a list, None for those without one). An argument that
was not given is None among the arrays.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import backend, cuda, engine, registry
from ..cuda import recording
from ..registry import OPS, Node, Sample, explained, state
from ..tensor import Tensor

FUSED: dict[str, Fused] = {}


class Implementation(NamedTuple):
    """Forward and backward on raw arrays, and whether they fit the arguments at hand.

    Without a backward the spec is differentiated.
    """

    forward: Callable[..., tuple[Any, tuple]]
    backward: Callable[..., Sequence[Any]] | None
    fits: Callable[..., bool] | None = None


class Cost(NamedTuple):
    """What an operation cannot do without: bytes read and written once, floating operations."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int = 0
    backward_flops: int = 0


class Fused:
    """One fused operation; ``launches`` counts how often each implementation ran.

    ``arguments`` name the array arguments in order, ``differentiable`` those that can have a
    gradient. ``implementations`` map "numpy" or "cuda" to what runs on that kind of array.
    ``cost`` takes what the operation takes, arrays or anything with their shape and dtype, and
    returns the Cost that benchmarks hold its time against, ``sizes`` are inputs to time it at.
    """

    view = False

    def __init__(
        self,
        name: str,
        spec: Callable[..., Any],
        arguments: Sequence[str],
        differentiable: Sequence[str],
        implementations: dict[str, Implementation],
        samples: Sequence[Sample],
        cost: Callable[..., Cost] | None = None,
    ) -> None:
        if name in OPS or name in FUSED:
            raise ValueError(f"an operation named {name!r} is registered already")
        self.name = name
        self.spec = self.definition = spec
        self.arguments = tuple(arguments)
        self.differentiable = tuple(differentiable)
        self.implementations = implementations
        self.samples = tuple(samples)
        self.cost = cost
        self.sizes: Sequence[Sample] = ()
        self.launches: collections.Counter[str] = collections.Counter()
        FUSED[name] = self

    def choose(self, arrays: Sequence[Any], statics: dict[str, Any]) -> str:
        """Return the implementation for these arrays: "numpy", "cuda" or "spec".

        Arrays on the CPU go to the CUDA kernels too while the emulator is active. Kernels get no
        empty arrays. A traced function becomes a kernel itself, so there it is the spec.
        """
        on_cpu = all(a is None or backend.is_numpy(a) for a in arrays)
        if not on_cpu and any(
            isinstance(a, backend.Symbolic) and a.device == "symbolic" for a in arrays
        ):
            return "spec"
        candidates = ["numpy"] if on_cpu else []
        if (not on_cpu or cuda.emulated()) and all(a is None or a.size for a in arrays):
            candidates.insert(0, "cuda")
        for candidate in candidates:
            found = self.implementations.get(candidate)
            if found is not None and (found.fits is None or found.fits(*arrays, **statics)):
                return candidate
        return "spec"

    def __call__(self, *args: Tensor | None, **statics: Any) -> Any:
        """Run the operation on tensors (None for an argument not given)."""
        if registry.lift is not None:
            registry.lift_now([a for a in args if a is not None])
        arrays = [None if a is None else a._data for a in args]
        devices = {backend.device_of(a) for a in arrays if a is not None}
        if len(devices) > 1:
            raise ValueError(
                f"{self.name}: the arguments are on {' and '.join(sorted(devices))}; "
                "move them to one device with .to(device)"
            )
        chosen = self.choose(arrays, statics)
        self.launches[chosen] += 1
        if chosen == "spec":
            return self.spec(*args, **statics)
        try:
            with recording.operation(self.name):
                forward = self.implementations[chosen].forward
                if chosen == "numpy":
                    forward = _as_launch(self.name, forward)
                out, residuals = forward(*arrays, **statics)
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            raise explained(error, self.name, self.arguments, arrays, statics) from error
        wanted = tuple(
            a is not None and a._requires_grad and name in self.differentiable
            for a, name in zip(args, self.arguments, strict=True)
        )
        outs = out if isinstance(out, tuple) else (out,)
        make_node = state.make_node
        if make_node is None or not any(wanted):
            tensors = tuple(Tensor._wrap(o, None) for o in outs)
            return tensors if isinstance(out, tuple) else tensors[0]
        parents = tuple(
            a._node or a for a, w in zip(args, wanted, strict=True) if w and a is not None
        )
        op = _Launch(self, chosen, wanted, statics, len(outs) if isinstance(out, tuple) else 0)
        node = make_node(op, parents, (*arrays, *residuals), None)
        if state.watch is not None:
            state.watch.called(node, self.arguments, arrays, outs)
        if not isinstance(out, tuple):
            return Tensor._wrap(out, node)
        return tuple(
            Tensor._wrap(o, make_node(engine.Output(self.name, i), (node,), (), None))
            for i, o in enumerate(out)
        )


def _as_launch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a NumPy implementation that is one launch of a step while that is recorded.

    What it keeps for a gradient depends on whether one may be asked for, then as now.
    """
    if registry.lift is None:
        return function
    mode = engine.enable_grad if engine.is_grad_enabled() else engine.no_grad

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return function(*args, **kwargs)

    run.__name__ = name
    run.key = function, mode  # type: ignore[attr-defined]
    return functools.partial(recording.as_one, run)


class _Launch:
    """One recorded call of a fused operation."""

    __slots__ = ("chosen", "fused", "outputs", "statics", "wanted")
    view = False

    def __init__(
        self, fused: Fused, chosen: str, wanted: tuple[bool, ...], statics: dict, outputs: int
    ) -> None:
        self.fused = fused
        self.chosen = chosen
        self.wanted = wanted
        self.statics = statics
        self.outputs = outputs

    @property
    def name(self) -> str:
        """The operation's name, for messages."""
        return self.fused.name

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of what is saved, for messages."""
        return (*self.fused.arguments, *("a residual of the kernel",) * 8)

    def save(self, values: tuple) -> tuple:
        """Save the arguments (the spec may be replayed) and the implementation's residuals."""
        return values

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return the gradient of each parent, by the implementation or, recorded, by the spec."""
        assert node.saved is not None
        count = len(self.wanted)
        arrays, residuals = node.saved[:count], node.saved[count:]
        backward = self.fused.implementations[self.chosen].backward
        if recorded or backward is None:
            return self._replay(node, g, arrays, recorded)
        if self.outputs:
            g = [g.get(i) for i in range(self.outputs)]
        parents = iter(node.parents)
        wanted = tuple(w and (needed is None or next(parents) in needed) for w in self.wanted)
        with recording.operation(f"{self.fused.name}_backward"):
            if self.chosen == "numpy":
                backward = _as_launch(f"{self.name}_backward", backward)
            grads = backward(wanted, g, arrays, residuals, **self.statics)
        return [
            grad if still else None
            for grad, still, w in zip(grads, wanted, self.wanted, strict=True)
            if w
        ]

    def _replay(self, node: Node, g: Any, arrays: Sequence[Any], recorded: bool) -> list:
        """Differentiate the spec: residuals are no functions of the arguments to a second pass."""
        parents = iter(node.parents)
        tensors = [
            engine.alias(a, next(parents)) if w else None if a is None else Tensor._wrap(a, None)
            for a, w in zip(arrays, self.wanted, strict=True)
        ]
        with engine.enable_grad():
            outs = self.fused.spec(*tensors, **self.statics)
        several = outs if self.outputs else (outs,)
        upstream = g if self.outputs else {0: g}
        seeds = [(several[i]._node, gi) for i, gi in upstream.items()]
        targets = [
            t._node for t, w in zip(tensors, self.wanted, strict=True) if t is not None and w
        ]
        found = engine.sweep(seeds, targets, recorded, recorded, local=True)
        return [found.get(target) for target in targets]


def fused(
    samples: Sequence[Sample] = (),
    *,
    arguments: Sequence[str],
    differentiable: Sequence[str] | None = None,
    cost: Callable[..., Cost] | None = None,
    **implementations: Implementation,
) -> Callable[[Callable[..., Any]], Fused]:
    """Register the decorated spec, with its implementations, as a fused operation."""

    def decorate(spec: Callable[..., Any]) -> Fused:
        name = spec.__name__.strip("_").removesuffix("_spec")
        able = arguments if differentiable is None else differentiable
        return Fused(name, spec, arguments, able, implementations, samples, cost)

    return decorate
