"""``fuse``: a function of elementwise operations as one operation, with kernels made from it.

    @gg.fuse
    def gated(x, gate, scale=1.0):
        return x * gg.sigmoid(gate) * scale

On a GPU, and in the emulator, a call is one kernel, and so is its gradient: the function is called
once with symbols in place of arrays (cuda/symbolic.py), the engine's own sweep over that graph
gives the expressions of the gradients, and cuda/elementwise.py compiles both. Everywhere else, and
where the function is more than a formula of elements, it simply runs. It is also the definition:
under ``create_graph`` its operations are what is differentiated again.
"""

from __future__ import annotations

import collections
import functools
import math
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .. import backend, cuda, engine
from ..cuda import symbolic
from ..cuda.elementwise import KEPT, Program
from ..cuda.emulation import expected
from ..ops import random
from ..registry import Node, Sample, state
from ..tensor import Tensor
from ._watched import Followed, key_of, key_of_argument
from .base import Fused, Implementation


class Fusion(Followed):
    """A function that runs as one operation where kernels run; ``launches`` counts how it ran."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__).strip("_")
        self.launches: collections.Counter[str] = collections.Counter()
        self._traced: dict[Hashable, Traced | None] = {}

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function, as kernels if the tensors among the arguments can go there."""
        values = (*args, *kwargs.values()) if kwargs else args
        tensors = [a for a in values if isinstance(a, Tensor)]
        if tensors and (expected() or not backend.is_numpy(tensors[0]._data)):
            traced = self._found(values, tensors, len(args), tuple(kwargs))
            if traced is not None:
                return traced(*tensors)
        self.launches["spec"] += 1
        return self.function(*args, **kwargs)

    def _found(
        self, values: tuple, tensors: list[Tensor], positional: int, keywords: tuple[str, ...]
    ) -> Traced | None:
        """Return the operation for these arguments; None where the function has to run itself."""
        devices = {backend.device_of(t._data) for t in tensors}
        if len(devices) > 1 or "symbolic" in devices:  # inside of another fused function
            return None
        try:
            key = self.key(values, positional, keywords)
        except (TypeError, ValueError):  # an object that may change, a closure not filled yet
            return None
        if key not in self._traced:
            if len(self._traced) >= KEPT:
                self._traced.clear()
            try:
                self._traced[key] = Traced(self, key, values, positional, keywords)
            except Exception:  # no formula of elements, or an error that running it will show
                self._traced[key] = None
        return self._traced[key]

    def key(self, values: tuple, positional: int, keywords: tuple[str, ...]) -> Hashable:
        """Return all that a trace depends on; TypeError or ValueError if that cannot be known."""
        return positional, keywords, key_of(self.function), *map(key_of_argument, values)


class Traced(Fused):
    """The function for tensors of certain dtypes, all other arguments fixed."""

    def __init__(
        self,
        fusion: Fusion,
        key: Hashable,
        values: tuple,
        positional: int,
        keywords: tuple[str, ...],
    ) -> None:
        holes = [i for i, v in enumerate(values) if isinstance(v, Tensor)]
        fixed = [None if isinstance(v, Tensor) else v for v in values]

        def filled(tensors: Sequence[Any]) -> list[Any]:
            given = list(fixed)
            for i, t in zip(holes, tensors, strict=True):
                given[i] = t
            return given

        def definition(*tensors: Any) -> Any:
            given = filled(tensors)
            named = dict(zip(keywords, given[positional:], strict=True))
            return fusion.function(*given[:positional], **named)

        def spec(*tensors: Tensor) -> Any:
            if (
                fusion.key(tuple(filled(tensors)), positional, keywords) != key
            ):  # only in a backward
                raise RuntimeError(f"{fusion.name}: what it computes changed after the forward")
            return definition(*tensors)

        self.name = fusion.name
        self.spec = spec
        self.definition = definition  # also for tensors of other dtypes
        self.arguments = tuple(f"tensor {k}" for k in range(len(holes)))
        self.samples: tuple[Sample, ...] = ()
        self.cost = None
        self.launches = fusion.launches
        self.dtypes = [values[i]._data.dtype for i in holes]
        self._trace()
        self.implementations = {"cuda": Implementation(self._forward, self._backward, self._fits)}

    def _trace(self) -> None:
        """Call the function with symbols; raise whatever that raises, or Untraceable."""
        symbols = [symbolic.argument(i, dtype) for i, dtype in enumerate(self.dtypes)]
        self._leaves = [Tensor._wrap(symbol, None) for symbol in symbols]
        for leaf in self._leaves:
            leaf._requires_grad = backend.is_float(leaf._data.dtype)
        here = random.reserve(0)
        outer, state.make_node = state.make_node, Node
        with random.drawing_from(here) as draws:
            try:
                with symbolic.assuming() as self._equal_shapes:
                    result = self.spec(*self._leaves)
            finally:
                state.make_node = outer
                if draws.next != here:
                    raise symbolic.Untraceable("random numbers are drawn")
        self.several = isinstance(result, tuple)
        self._outs: tuple[Tensor, ...] = result if isinstance(result, tuple) else (result,)
        changed = any(t._data is not s for t, s in zip(self._leaves, symbols, strict=True))
        if changed or not self._outs:
            raise symbolic.Untraceable("an argument was changed in place")
        self._program = Program(f"{self.name}_forward", self.dtypes, [o._data for o in self._outs])
        self._gradients: dict[tuple[bool, ...], list[Any]] = {}
        self._programs: dict[Hashable, Program] = {}
        found = self._gradient_symbols((True,) * len(self._outs))
        self.differentiable = tuple(
            name for name, g in zip(self.arguments, found, strict=True) if g is not None
        )
        self._backward_program((True,) * len(self._outs), tuple(g is not None for g in found))

    def _gradient_symbols(self, given: tuple[bool, ...]) -> list[Any]:
        """Return the gradient of every argument for upstream gradients of the results given.

        Those are the inputs behind the function's own.
        """
        if given not in self._gradients:
            upstream = [
                symbolic.argument(len(self.dtypes) + i, out._data.dtype)
                for i, out in enumerate(self._outs)
            ]
            seeds = [
                (out._node or out, g)
                for out, g, here in zip(self._outs, upstream, given, strict=True)
                if here and out._requires_grad
            ]
            leaves = [leaf for leaf in self._leaves if leaf._requires_grad]
            found = engine.sweep(seeds, leaves, retain_graph=True, create_graph=False)
            self._gradients[given] = [found.get(leaf) for leaf in self._leaves]
        return self._gradients[given]

    def _backward_program(self, given: tuple[bool, ...], wanted: tuple[bool, ...]) -> Program:
        program = self._programs.get((given, wanted))
        if program is None:
            symbols = self._gradient_symbols(given)
            program = self._programs[given, wanted] = Program(
                f"{self.name}_backward",
                [*self.dtypes, *(out._data.dtype for out in self._outs)],
                [
                    g.astype(dtype)
                    for g, dtype, w in zip(symbols, self.dtypes, wanted, strict=True)
                    if w and g is not None
                ],
                share=True,
            )
        return program

    def _fits(self, *arrays: Any) -> bool:
        shapes = [a.shape for a in arrays]
        if shapes.count(shapes[0]) == len(shapes):
            return True
        try:
            shape = _broadcast(shapes, range(len(shapes)))
            same = all(
                _broadcast(shapes, a) == _broadcast(shapes, b) for a, b in self._equal_shapes
            )
            whole = all(_broadcast(shapes, inputs) == shape for inputs in self._program.shapes)
        except ValueError:
            return False  # the function itself says what is wrong
        return same and whole and math.prod(shape) > 0

    def _forward(self, *arrays: Any) -> tuple[Any, tuple]:
        found = self._program.run(arrays)
        assert found is not None, "an operation that fits must run"
        return (tuple(found) if self.several else found[0]), ()

    def _backward(
        self, wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple
    ) -> Sequence[Any]:
        upstream = list(g) if self.several else [g]
        given = tuple(x is not None for x in upstream)
        if backend.is_numpy(arrays[0]) and not cuda.emulated():
            return self._by_definition(wanted, upstream, arrays)
        symbols = self._gradient_symbols(given)
        here = tuple(w and s is not None for w, s in zip(wanted, symbols, strict=True))
        if not any(here):
            return [None] * len(wanted)
        found = self._backward_program(given, here).run([*arrays, *upstream])
        if found is None:
            return self._by_definition(wanted, upstream, arrays)
        computed = iter(found)
        xp = backend.xp_of(arrays[0])
        return [
            engine.unbroadcast(xp, next(computed), a.shape) if h else None
            for h, a in zip(here, arrays, strict=True)
        ]

    def _by_definition(
        self, wanted: tuple[bool, ...], upstream: Sequence[Any], arrays: Sequence[Any]
    ) -> list[Any]:
        """Return the gradients from the function's own operations."""
        tensors = [Tensor._wrap(a, None) for a in arrays]
        for t, w in zip(tensors, wanted, strict=True):
            t._requires_grad = w
        with engine.enable_grad():
            result = self.spec(*tensors)
        outs = result if self.several else (result,)
        seeds = [
            (out._node or out, g)
            for out, g in zip(outs, upstream, strict=True)
            if g is not None and out._requires_grad
        ]
        leaves = [t for t in tensors if t._requires_grad]
        found = engine.sweep(seeds, leaves, retain_graph=False, create_graph=False)
        return [found.get(t) for t in tensors]


def _broadcast(shapes: Sequence[tuple[int, ...]], inputs: Any) -> tuple[int, ...]:
    return np.broadcast_shapes(*(shapes[i] for i in inputs))


def fuse(function: Callable[..., Any]) -> Fusion:
    """Return a function of elementwise operations that runs as one operation.

    ``function`` takes tensors, numbers, and whatever else it likes, and returns a tensor or a tuple
    of them. On a GPU (and in the emulator) a call with float32, bfloat16 or float16 tensors
    launches one kernel, its gradient another; float16 and bfloat16 are not mixed, bool tensors are
    masks. Arithmetic is in float32, and what lies between input and output is not rounded.
    Tensors broadcast, and a Python number that changes compiles nothing. In all other cases
    (NumPy, float64, reductions, indexing, a decision on a tensor's values or shape, tensors taken
    from outside, random numbers) ``function`` runs as it is written, and raises what it raises.

    A kernel depends on what ``function`` reaches by name in its module, its closure and defaults,
    through the functions it calls too: numbers, strings, dtypes and tuples of them are looked at
    again in every call. Where it reaches anything else that could change unseen (other objects and
    their attributes, classes, lists) or asks a tensor for its device or gradient, it runs as it is
    written. It is called once for each combination of dtypes and numbers, so it must do nothing but
    compute. A backward pass that runs ``function`` again raises RuntimeError if a number changed.
    ``launches`` counts calls by kernel ("cuda") and by ``function`` ("spec").
    """
    return Fusion(function)
