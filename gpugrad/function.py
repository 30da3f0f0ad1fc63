"""Function: an operation with a forward and a backward of your own.

The interface is PyTorch's::

    class Cube(gg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 3 * x * x

    y = Cube.apply(x)

``backward`` is written in gpugrad operations, so a gradient that is recorded itself
(``create_graph=True``) can be differentiated again. ``gg.testing.gradcheck`` checks it.
"""

from __future__ import annotations

from typing import Any

from . import backend, engine, registry
from .registry import Node, describe, state
from .tensor import Tensor


class Context:
    """What forward hands to backward: saved tensors, and any attribute set on it."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self._saved: tuple[Any, ...] = ()
        self._tensors: tuple[Any, ...] | None = None

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs, outputs or other tensors for backward."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward: takes tensors, got {describe(t)}; "
                    "keep other values as attributes of ctx"
                )
        self._saved = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The tensors given to save_for_backward; only inside backward."""
        if self._tensors is None:
            raise RuntimeError("saved_tensors: only available inside backward")
        return self._tensors


class Function:
    """Base class of user-defined operations; call them with ``apply``."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a tensor or a tuple of tensors; runs unrecorded."""
        raise TypeError("a Function needs a static method forward(ctx, *args)")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return one gradient (or None) per argument of forward, given one per result."""
        raise TypeError("a Function needs a static method backward(ctx, *grads)")

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run forward, and record it so that backward is used for its gradient."""
        if registry.lift is not None:
            registry.lift_now(args)
        needs = tuple(isinstance(a, Tensor) and a._requires_grad for a in args)
        for name, a in kwargs.items():
            if isinstance(a, Tensor) and a._requires_grad and engine.is_grad_enabled():
                raise TypeError(
                    f"{cls.__name__}.apply: {name!r} requires grad but is passed by keyword, and "
                    "backward returns gradients of positional arguments; pass it by position"
                )
        ctx = Context(needs)
        with engine.no_grad():
            result = cls.forward(ctx, *args, **kwargs)
        outs = result if isinstance(result, tuple) else (result,)
        for out in outs:
            if not isinstance(out, Tensor):
                raise TypeError(
                    f"{cls.__name__}.forward: must return tensors, got {type(out).__name__}"
                )
        make_node = state.make_node
        if make_node is None or not any(needs):
            return result
        inputs = [a if isinstance(a, Tensor) else None for a in args]
        call = _Call(cls, ctx, inputs, outs, isinstance(result, tuple))
        parents = tuple(a._node or a for a, n in zip(args, needs, strict=True) if n)
        arrays = tuple(None if t is None else t._data for t in ctx._saved)
        node = make_node(call, parents, (*arrays, args, kwargs), None)
        if state.watch is not None:
            given = {f"argument {i}": t for i, t in enumerate(inputs) if t is not None}
            state.watch.called(node, list(given), list(given.values()), outs)
        ctx._saved = ()
        if not isinstance(result, tuple):
            return _result(result, node)
        return tuple(
            _result(out, make_node(engine.Output(call.name, i), (node,), (), None))
            if backend.is_float(out.dtype)
            else out
            for i, out in enumerate(outs)
        )


def _result(out: Tensor, node: Node) -> Tensor:
    if not backend.is_float(out.dtype):
        raise TypeError(f"{node.op.name}.forward: a {out.dtype} result has no gradient")
    return Tensor._wrap(out._data, node)


class _Call:
    """One recorded call of a Function."""

    view = False

    def __init__(
        self, function: type, ctx: Context, inputs: list, outs: tuple, several: bool
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.ctx = ctx
        self.several = several
        self.shapes = tuple(None if t is None else t.shape for t in inputs)
        self.dtypes = tuple(None if t is None else t.dtype for t in inputs)
        self.results = tuple((out.shape, out.dtype) for out in outs)
        # where each saved tensor came from: ("input", i), ("output", i) or a constant
        origins = {id(t): ("input", i) for i, t in enumerate(inputs) if t is not None}
        origins |= {id(t): ("output", i) for i, t in enumerate(outs)}
        self.origins = tuple(origins.get(id(t), ("constant", 0)) for t in ctx._saved)
        self.slots = tuple(f"{kind} {i}" for kind, i in self.origins)

    def save(self, values: tuple) -> tuple:
        """Save what save_for_backward was given, and not the arguments behind it."""
        return values[:-2]

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return the gradients of the arguments, by the user's backward."""
        assert node.saved is not None
        grads = self._upstream(g, recorded)
        self.ctx._tensors = tuple(
            self._lifted(node, value, origin, recorded)
            for value, origin in zip(node.saved, self.origins, strict=True)
        )
        try:
            result = self.function.backward(self.ctx, *grads)  # type: ignore[attr-defined]
        finally:
            self.ctx._tensors = None
        given = result if isinstance(result, tuple) else (result,)
        if len(given) != len(self.shapes):
            raise ValueError(
                f"{self.name}.backward: returned {len(given)} gradients "
                f"for {len(self.shapes)} arguments of forward"
            )
        pulled = []
        for i, (p, shape) in enumerate(zip(given, self.shapes, strict=True)):
            if not self.ctx.needs_input_grad[i]:
                continue
            if p is not None and not (isinstance(p, Tensor) and p.shape == shape):
                got = describe(p)
                if not isinstance(p, Tensor):
                    got = f"{type(p).__name__} {got}; compute it by operations of gpugrad"
                raise ValueError(
                    f"{self.name}.backward: the gradient of argument {i} must be a tensor of "
                    f"shape {shape}, got {got}"
                )
            p = p if p is None else p.astype(self.dtypes[i])
            if p is not None:
                engine.show(p._data)
            pulled.append(p if p is None or recorded else p._data)
        return pulled

    def _upstream(self, g: Any, recorded: bool) -> list:
        parts = g if self.several else {0: g}
        like = next(iter(parts.values()))
        grads = []
        for i, (shape, dtype) in enumerate(self.results):
            part = parts.get(i)
            if part is None:  # this result was not used
                xp = backend.xp_of(like._data if recorded else like)
                part = xp.zeros(shape, dtype)
            if not isinstance(part, Tensor):
                part = Tensor._wrap(engine.as_array(part), None)
            engine.show(part._data)
            grads.append(part)
        return grads

    def _lifted(self, node: Node, value: Any, origin: tuple[str, int], recorded: bool) -> Any:
        if value is None:
            return None
        kind, i = origin
        if not recorded or kind == "constant" or (kind == "input" and not self.needs(i)):
            return Tensor._wrap(value, None)
        if kind == "output":
            if self.several:
                return Tensor._wrap(value, Node(engine.Output(self.name, i), (node,), (), None))
            return Tensor._wrap(value, node)
        position = sum(self.ctx.needs_input_grad[:i])
        return registry.as_recorded(value, node.parents[position])

    def needs(self, i: int) -> bool:
        """Return whether argument i wants a gradient."""
        return self.ctx.needs_input_grad[i]
