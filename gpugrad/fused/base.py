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
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend, cuda, engine, registry
from ..cuda import recording
from ..registry import OPS, Node, Sample, explained, state
from ..tensor import Tensor

FUSED: dict[str, Fused] = {}
_PLAIN = {np.ndarray, type(None)}


class Implementation(NamedTuple):
    """Forward and backward on raw arrays, and whether they fit the arguments at hand.

    Without a backward the spec is differentiated. Of the arguments ``unread`` names, backward wants
    to know shape and dtype only: a recorded step need not keep them until then. ``prepared`` are
    both where they are calls in two halves (prepared.py), of which a replay makes the second alone,
    and multiply matrices within ``openblas.serial`` only.
    """

    forward: Callable[..., tuple[Any, tuple]]
    backward: Callable[..., Sequence[Any]] | None
    fits: Callable[..., bool] | None = None
    unread: Sequence[str] = ()
    prepared: bool = False


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
    ``needs`` says whose values the gradient of an argument depends on, where not on those of all:
    by NumPy no others are saved.
    """

    view = False
    needs: Mapping[str, Sequence[str]] | None = None

    def __init__(
        self,
        name: str,
        spec: Callable[..., Any],
        arguments: Sequence[str],
        differentiable: Sequence[str],
        implementations: dict[str, Implementation],
        samples: Sequence[Sample],
        cost: Callable[..., Cost] | None = None,
        needs: Mapping[str, Sequence[str]] | None = None,
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
        self.needs = needs
        self.sizes: Sequence[Sample] = ()
        self.launches: collections.Counter[str] = collections.Counter()
        FUSED[name] = self

    @functools.cached_property
    def _able(self) -> tuple[bool, ...]:
        """Which arguments can have a gradient."""
        return tuple(name in self.differentiable for name in self.arguments)

    def choose(self, arrays: Sequence[Any], statics: dict[str, Any]) -> str:
        """Return the implementation for these arrays: "numpy", "cuda" or "spec".

        Arrays on the CPU go to the CUDA kernels too while the emulator is active. Kernels get no
        empty arrays. A traced function becomes a kernel itself, so there it is the spec.
        """
        if _are_plain(arrays) and not cuda.emulated():  # the common case on a CPU
            found = self.implementations.get("numpy")
            fits = found is not None and (found.fits is None or found.fits(*arrays, **statics))
            return "numpy" if fits else "spec"
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
        if not _are_plain(arrays):
            self._refuse_devices(arrays)
        chosen = self.choose(arrays, statics)
        self.launches[chosen] += 1
        if chosen == "spec":
            return self.spec(*args, **statics)
        forward = self.implementations[chosen].forward
        try:
            if registry.lift is None:
                out, residuals = forward(*arrays, **statics)
            else:
                with recording.operation(self.name):
                    if chosen == "numpy":
                        is_prepared = self.implementations[chosen].prepared
                        forward = _as_launch(self.name, forward, is_prepared)
                    out, residuals = forward(*arrays, **statics)
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            raise explained(error, self.name, self.arguments, arrays, statics) from error
        is_one = not isinstance(out, tuple)
        make_node = state.make_node
        if make_node is None and is_one:
            return Tensor._wrap(out, None)
        outs = (out,) if is_one else out
        wanted, parents = self._wanted(args) if make_node is not None else ((), ())
        if make_node is None or not parents:
            tensors = tuple([Tensor._wrap(o, None) for o in outs])
            return tensors[0] if is_one else tensors
        op = _Launch(self, chosen, wanted, statics, 0 if is_one else len(outs))
        needed = self.needed(chosen, wanted)
        named = zip(self.arguments, arrays, strict=True)
        kept = [a if name in needed else _likeness(a) for name, a in named]
        node = make_node(op, parents, (*kept, *residuals), None)
        if state.watch is not None:
            state.watch.called(node, self.arguments, arrays, outs)
        if is_one:
            return Tensor._wrap(out, node)
        return tuple(
            Tensor._wrap(o, make_node(engine.Output(self.name, i), (node,), (), None))
            for i, o in enumerate(out)
        )

    def _wanted(self, args: Sequence[Tensor | None]) -> tuple[tuple[bool, ...], tuple]:
        """Return which arguments want a gradient, and the nodes or leaves it goes to."""
        wanted, parents = [], []
        for a, able in zip(args, self._able, strict=True):
            wants = able and a is not None and a._requires_grad
            wanted.append(wants)
            if wants:
                parents.append(a._node or a)  # type: ignore[union-attr]
        return tuple(wanted), tuple(parents)

    def needed(self, chosen: str, wanted: Sequence[bool]) -> Collection[str]:
        """Return the arguments that the gradients wanted depend on; of others a likeness is saved.

        All of them where that is not known, or an implementation takes other arrays than NumPy's.
        """
        if self.needs is None or chosen != "numpy":
            return self.arguments
        return {n for a, w in zip(self.arguments, wanted, strict=True) if w for n in self.needs[a]}

    def _refuse_devices(self, arrays: Sequence[Any]) -> None:
        devices = {backend.device_of(a) for a in arrays if a is not None}
        if len(devices) > 1:
            raise ValueError(
                f"{self.name}: the arguments are on {' and '.join(sorted(devices))}; "
                "move them to one device with .to(device)"
            )


def _are_plain(arrays: Sequence[Any]) -> bool:
    """Return whether all arrays are NumPy's, the common case on a CPU."""
    return _PLAIN.issuperset(map(type, arrays))


def _as_launch(name: str, function: Callable[..., Any], prepared: bool) -> Callable[..., Any]:
    """Return a NumPy implementation that is one launch of a step while that is recorded.

    What it keeps for a gradient depends on whether one may be asked for, then as now.
    """
    mode = engine.enable_grad if engine.is_grad_enabled() else engine.no_grad

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return function(*args, **kwargs)

    run.__name__ = name
    run.key = function, mode  # type: ignore[attr-defined]
    run.prepared = prepared  # type: ignore[attr-defined]
    return functools.partial(recording.as_one, run)


def _likeness(array: Any) -> Any:
    """Return an array of zeros with the shape and dtype of another, which takes no memory."""
    return array if array is None else np.broadcast_to(np.zeros((), array.dtype), array.shape)


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
        implementation = self.fused.implementations[self.chosen]
        backward = implementation.backward
        if recorded or backward is None:
            return self._replay(node, g, arrays, recorded)
        if self.outputs:
            g = [g.get(i) for i in range(self.outputs)]
        wanted = self.wanted
        if needed is not None:
            parents = iter(node.parents)
            wanted = tuple([w and next(parents) in needed for w in wanted])
        if registry.lift is None:
            grads = backward(wanted, g, arrays, residuals, **self.statics)
        else:
            with recording.operation(f"{self.fused.name}_backward"):
                if self.chosen == "numpy":
                    backward = _as_launch(
                        f"{self.name}_backward", backward, implementation.prepared
                    )
                    named = zip(self.fused.arguments, arrays, strict=True)
                    unread = implementation.unread
                    arrays = tuple([_likeness(a) if n in unread else a for n, a in named])
                grads = backward(wanted, g, arrays, residuals, **self.statics)
        if needed is None:
            return [grad for grad, w in zip(grads, wanted, strict=True) if w]
        return [
            grad if still else None
            for grad, still, w in zip(grads, wanted, self.wanted, strict=True)
            if w
        ]

    def _replay(self, node: Node, g: Any, arrays: Sequence[Any], recorded: bool) -> list:
        """Differentiate the spec: residuals are no functions of the arguments to a second pass."""
        parents = iter(node.parents)
        needed = self.fused.needed(self.chosen, self.wanted)
        tensors: list[Any] = []
        for name, a, w in zip(self.fused.arguments, arrays, self.wanted, strict=True):
            if w:
                parent = next(parents)
                if name not in needed and not isinstance(parent, Node):
                    a = parent._data  # of the likeness, whose values no gradient depends on
                tensors.append(engine.alias(a, parent))
            else:
                tensors.append(None if a is None else Tensor._wrap(a, None))
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
    needs: Mapping[str, Sequence[str]] | None = None,
    **implementations: Implementation,
) -> Callable[[Callable[..., Any]], Fused]:
    """Register the decorated spec, with its implementations, as a fused operation."""

    def decorate(spec: Callable[..., Any]) -> Fused:
        name = spec.__name__.strip("_").removesuffix("_spec")
        able = arguments if differentiable is None else differentiable
        return Fused(name, spec, arguments, able, implementations, samples, cost, needs)

    return decorate
