"""Function transforms: functions in, functions or derivatives out, as in JAX and torch.func.

Arguments that are differentiated may be tensors, arrays or Python numbers, or nested tuples,
lists and dicts of them; results keep that structure. They can be differentiated again where a
history leads on: that of an argument, of the variables of an outer transform, or of what has been
computed from tensors that require grad and is used by the function. Leaves that it uses, a module's
parameters, are constants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import backend, engine, registry
from .ops import random
from .registry import Node, describe, next_number, state
from .tensor import Tensor


def refuse_uncallable(where: str, f: Any) -> None:
    """Raise TypeError unless f can be called."""
    if not callable(f):
        raise TypeError(f"{where}: f must be a function, got {describe(f)}")


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in _leaves(tree[key])]
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in _leaves(item)]
    return [tree]


def _rebuilt(tree: Any, leaves: Any) -> Any:
    """Return tree with its leaves replaced, in order, by those of an iterator."""
    if isinstance(tree, dict):
        return {key: _rebuilt(value, leaves) for key, value in tree.items()}
    if isinstance(tree, tuple):
        items = [_rebuilt(item, leaves) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [_rebuilt(item, leaves) for item in tree]
    return next(leaves)


class _Variable(Tensor):
    """A leaf that a transform made, with a number as nodes have one."""

    __slots__ = ("number",)
    number: int


def _variable(leaf: Any, where: str, linked: bool) -> Tensor:
    """Return a tensor to differentiate with respect to, linked to its history if there is one."""
    tensor = leaf if isinstance(leaf, Tensor) else Tensor(leaf)
    if not backend.is_float(tensor.dtype):
        raise TypeError(
            f"{where}: cannot differentiate with respect to {describe(tensor)}; "
            "use a floating dtype"
        )
    if tensor._requires_grad and linked:
        return engine.alias(tensor._data, tensor._node or tensor)
    fresh = _Variable(tensor.detach(), requires_grad=True)
    fresh.number = next_number()
    return fresh


def _scalar(value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor) or value.size != 1:
        raise ValueError(
            f"{where}: the function must return a tensor of one element, got {describe(value)}"
        )
    return value


def _results(result: Any, where: str) -> list[Tensor]:
    """Return the tensors of a function's result; raise TypeError for other things."""
    outs = _leaves(result)
    for out in outs:
        if not isinstance(out, Tensor):
            raise TypeError(f"{where}: the function must return tensors, got {describe(out)}")
    return outs


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that returns (f(*args), gradient with respect to args[argnums]).

    ``f`` returns one element, or with ``has_aux`` a pair whose second part is passed through.
    The gradient has the structure of the argument, or is a tuple for several ``argnums``.
    """
    refuse_uncallable("value_and_grad", f)
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        linked = engine.is_grad_enabled()
        for n in numbers:
            if not -len(args) <= n < len(args):
                raise ValueError(f"value_and_grad: there is no positional argument {n}")
        start = next_number()
        with engine.enable_grad():
            variables: list[Tensor] = []
            called = list(args)
            for n in numbers:
                made = [_variable(leaf, "value_and_grad", linked) for leaf in _leaves(args[n])]
                variables += made
                called[n] = _rebuilt(args[n], iter(made))
            result = f(*called, **kwargs)
            value = _scalar(result[0] if has_aux else result, "value_and_grad")
            outer = linked and _goes_on([value], variables, start)
            grads = iter(_gradients([value], variables, None, outer))
        trees = tuple(_rebuilt(args[n], grads) for n in numbers)
        answer = trees[0] if isinstance(argnums, int) else trees
        if not outer:
            value = value.detach()
            result = (value, *result[1:]) if has_aux else value
        return result, answer

    return wrapped


def _goes_on(outs: Sequence[Tensor], variables: Sequence[Tensor], start: int) -> bool:
    """Return whether gradients flow on to what variables come from, to variables of an outer
    transform or to what was computed outside.

    ``start`` is a number from before the function was called.
    """
    inside = {v._node or v for v in variables}
    roots = [o._node or o for o in outs if o._requires_grad]
    return any(v._node is not None for v in variables) or any(
        isinstance(x, (Node, _Variable)) for x in _outside(roots, inside, start)
    )


def _shown(result: Any, outs: Sequence[Tensor], outer: bool) -> Any:
    """Return the result as the caller may see it: detached unless its gradient goes on."""
    return result if outer else _rebuilt(result, iter(o.detach() for o in outs))


def _gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Any] | None,
    create_graph: bool,
    retain_graph: bool | None = None,
) -> tuple[Any, ...]:
    """Return gradients as engine.grad does, zeros where an output depends on no input."""
    given = [None] * len(outputs) if grad_outputs is None else list(grad_outputs)
    pairs = [(o, g) for o, g in zip(outputs, given, strict=True) if o._requires_grad]
    if not pairs:
        return tuple(registry.recorded.zeros_like(x) for x in inputs)
    outs, gs = [o for o, _ in pairs], [g for _, g in pairs]
    return engine.grad(outs, inputs, gs, create_graph, retain_graph)


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
    """Return f(*primals) and the function from its gradient to those of the primals (a tuple).

    The returned function may be called any number of times. For several results it takes one
    gradient per result, in the structure f returned.
    """
    refuse_uncallable("vjp", f)
    linked, start = engine.is_grad_enabled(), next_number()
    with engine.enable_grad():
        variables = [[_variable(leaf, "vjp", linked) for leaf in _leaves(p)] for p in primals]
        called = [_rebuilt(p, iter(v)) for p, v in zip(primals, variables, strict=True)]
        result = f(*called)
    outs = _results(result, "vjp")
    flat = [v for group in variables for v in group]

    outer = linked and _goes_on(outs, flat, start)

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        given = _leaves(cotangent)
        if len(given) != len(outs):
            raise ValueError(f"vjp: {len(outs)} results but {len(given)} gradients")
        recorded = outer or any(isinstance(g, Tensor) and g._requires_grad for g in given)
        grads = iter(_gradients(outs, flat, given, recorded, retain_graph=True))
        return tuple(_rebuilt(p, grads) for p in primals)

    return _shown(result, outs, outer), pullback


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Return f(*primals) and its derivative in the direction of the tangents.

    Computed as the gradient of a gradient: the vector-Jacobian product is linear in its vector,
    and its own transpose is the Jacobian-vector product.
    """
    refuse_uncallable("jvp", f)
    primals, tangents = _checked(primals, tangents, "jvp")
    linked, start = engine.is_grad_enabled(), next_number()
    with engine.enable_grad():
        variables = [_variable(leaf, "jvp", linked) for leaf in _leaves(primals)]
        result = f(*_rebuilt(primals, iter(variables)))
        outs = _results(result, "jvp")
        dummies = [_variable(registry.recorded.zeros_like(o), "jvp", False) for o in outs]
        grads = _gradients(outs, variables, dummies, create_graph=True)
        pairs = [
            (g, registry.recorded.asarray(t))
            for g, t in zip(grads, _leaves(tangents), strict=True)
            if g._requires_grad
        ]
        outer = linked and _goes_on(outs, variables, start)
        moved = _gradients([g for g, _ in pairs], dummies, [t for _, t in pairs], outer)
    return _shown(result, outs, outer), _rebuilt(result, iter(moved))


def hvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Return the Hessian of a scalar function times the tangents.

    ``primals`` and ``tangents`` are a tensor each or sequences with one per argument of f; the
    result has the same form.
    """
    refuse_uncallable("hvp", f)
    single = isinstance(primals, Tensor) or backend.is_array(primals)
    arguments, directions = _checked(
        (primals,) if single else primals, (tangents,) if single else tangents, "hvp"
    )
    linked, start = engine.is_grad_enabled(), next_number()
    with engine.enable_grad():
        variables = [_variable(leaf, "hvp", linked) for leaf in _leaves(arguments)]
        value = _scalar(f(*_rebuilt(arguments, iter(variables))), "hvp")
        grads = _gradients([value], variables, None, create_graph=True)
        given = [registry.recorded.asarray(t) for t in _leaves(directions)]
        outer = linked and _goes_on([value], variables, start)
        products = _gradients(grads, variables, given, outer)
    rebuilt = _rebuilt(arguments, iter(products))
    return rebuilt[0] if single else rebuilt


def _checked(primals: Any, tangents: Any, where: str) -> tuple[tuple, tuple]:
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise TypeError(f"{where}: primals and tangents must be tuples or lists")
    xs, ts = _leaves(primals), _leaves(tangents)
    if len(xs) != len(ts):
        raise ValueError(f"{where}: {len(xs)} primals but {len(ts)} tangents")
    for i, (x, t) in enumerate(zip(xs, ts, strict=True)):
        shapes = [registry.recorded.asarray(v).shape for v in (x, t)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{where}: tangent {i} has shape {shapes[1]} but primal {i} has shape {shapes[0]}"
            )
    return tuple(primals), tuple(tangents)


class _Recompute:
    """The operation behind checkpoint: its pullback runs the function again."""

    name = "checkpoint"
    view = False

    def __init__(
        self,
        f: Callable,
        args: Sequence,
        draw: random.Draw,
        positions: tuple,
        outer: list,
        slots: tuple,
    ) -> None:
        self.f = f
        self.args = args
        self.draw = draw
        self.positions = positions
        self.outer = outer
        self.slots = slots

    def save(self, values: tuple) -> tuple:
        """Save the arguments that want a gradient, and behind them what else is read again."""
        return values

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Run the function again, recorded this time, and differentiate it."""
        assert node.saved is not None
        with engine.enable_grad():
            called = list(self.args)
            for i, value, parent in zip(self.positions, node.saved, node.parents, strict=False):
                called[i] = engine.alias(value, parent)
            with random.drawing_from(self.draw):
                result = self.f(*called)
            outs = _leaves(result)
            seeds = [
                (outs[i]._node, gi if recorded else engine.as_array(gi))
                for i, gi in g.items()
                if outs[i]._node is not None
            ]
        aliases = [called[i]._node for i in self.positions]
        targets = [*aliases, *self.outer]
        mode = engine.enable_grad() if recorded else engine.no_grad()
        with mode:
            found = engine.sweep(seeds, targets, recorded, recorded, local=True)
        return [found.get(target) for target in targets]


def checkpoint(f: Callable[..., Any], *args: Any) -> Any:
    """Return f(*args) without keeping what its backward needs: it is computed again there.

    Memory for time: use it around a block of a deep model. Gradients also reach tensors that f
    takes from outside (a module's parameters). f must compute the same result when called twice;
    random numbers are replayed, and an argument or a parameter that has changed in between is
    refused, but not another array from outside. Results of f must be tensors (or a tuple or list
    of them).
    """
    refuse_uncallable("checkpoint", f)
    if state.make_node is None:
        return f(*args)
    if registry.lift is not None:
        registry.lift_now(args)
    start = next_number()
    draw = random.reserve(0)
    positions = tuple(i for i, a in enumerate(args) if isinstance(a, Tensor) and a._requires_grad)
    called = list(args)
    for i in positions:
        called[i] = engine.alias(args[i]._data, args[i]._node or args[i])
    result = f(*called)
    outs = _results(result, "checkpoint")
    aliases = {called[i]._node for i in positions}
    outer = _outside([o._node for o in outs if o._node is not None], aliases, start)
    kept = [None if i in positions else a for i, a in enumerate(args)]
    parents = tuple(args[i]._node or args[i] for i in positions) + tuple(outer)
    if not parents:
        return result
    # what f reads again, to be found changed
    read = {f"argument {i}": args[i] for i in positions}
    read |= {f"argument {i}": a for i, a in enumerate(kept) if isinstance(a, Tensor)}
    read |= {f"outside {i}": a for i, a in enumerate(outer) if isinstance(a, Tensor)}
    op = _Recompute(f, kept, draw, positions, outer, tuple(read))
    node = state.make_node(op, parents, tuple(a._data for a in read.values()), None)
    wrapped = (
        o
        if o._node is None
        else Tensor._wrap(o._data, Node(engine.Output("checkpoint", i), (node,), (), None))
        for i, o in enumerate(outs)
    )
    return _rebuilt(result, wrapped)


def _outside(roots: Iterable[Any], inside: Iterable[Any], start: int) -> list[Any]:
    """Return the leaves and older nodes that a function took from outside, in a fixed order.

    ``roots`` and ``inside`` are nodes or leaves.
    """
    seen: set[Any] = set(inside)
    found: list[Any] = []
    stack: list[Any] = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if getattr(node, "number", 0) < start:  # a leaf that no transform made has none
            found.append(node)
        elif isinstance(node, Node):
            stack.extend(node.parents)
    return found
