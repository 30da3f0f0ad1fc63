"""The reverse sweep, and what decides whether operations are recorded.

The engine owns everything general, so that pullbacks stay pure maths: the order (reachable nodes,
newest first), accumulation where a value was used twice, summing a gradient back to the shape of a
broadcast argument, dropping saved arrays as the sweep passes, hooks, recording the gradient itself
(``create_graph``), and showing it all to anomaly mode. It never mutates a gradient that was handed
over, and iterates, so depth is limited by memory only.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from . import backend, cuda, malloc, registry
from .backend import Array
from .cuda import recording
from .cuda.column_sums import sums
from .cuda.emulation import expected
from .registry import Node, state


class no_grad:
    """Context and decorator: operations inside are not recorded (in this thread)."""

    make_node: Callable[..., Node] | None = None

    def __init__(self) -> None:
        self._outer: list[Callable[..., Node] | None] = []

    def __enter__(self) -> None:
        self._outer.append(state.make_node)
        state.make_node = self.make_node

    def __exit__(self, *error: object) -> None:
        state.make_node = self._outer.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._again():  # one per call: threads may be inside at the same time
                return function(*args, **kwargs)

        return wrapped

    def _again(self) -> no_grad:
        return type(self)()


class enable_grad(no_grad):
    """Context and decorator: operations inside are recorded again, also within ``no_grad``."""

    def __enter__(self) -> None:
        self._outer.append(state.make_node)
        if state.make_node is None:
            state.make_node = Node if state.watch is None else state.watch.node


def is_grad_enabled() -> bool:
    """Return whether operations of this thread are being recorded."""
    return state.make_node is not None


class Mutations:
    """Which arrays were changed in place, and when.

    An in-place change takes a number from the same counter as nodes do, so a node older than a
    change of an array it saved would compute a wrong gradient. Nodes pay one comparison.
    """

    def __init__(self) -> None:
        self.last = 0
        self._by_memory: dict[int, tuple[weakref.ref, int, str]] = {}
        self._by_step: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def record(self, array: Array, by: str) -> None:
        """Note that array has just been changed in place."""
        base = backend.memory_base(array)
        key = id(base)
        self.last = registry.next_number()
        reference = self._by_memory[key][0] if key in self._by_memory else None
        if reference is None or reference() is not base:
            reference = weakref.ref(base, functools.partial(self._forget, key))
        self._by_memory[key] = (reference, self.last, by)

    def record_step(self, step: Any) -> None:
        """Note that a replayed step has just changed the arrays whose ids ``step.written`` holds.

        The step keeps these arrays alive.
        """
        self.last = self._by_step[step] = registry.next_number()

    def _forget(self, key: int, reference: weakref.ref) -> None:
        if key in self._by_memory and self._by_memory[key][0] is reference:
            del self._by_memory[key]

    def check(self, node: Node, saved: Iterable[Any]) -> None:
        """Raise RuntimeError if something node saved was changed after it was saved."""
        for position, value in enumerate(saved):
            if not backend.is_array(value):
                continue
            key = id(backend.memory_base(value))
            _, number, by = self._by_memory.get(key, (None, 0, ""))
            for step, run in self._by_step.items():
                if key in step.written:
                    number, by = max((number, by), (run, "a compiled step"))
            if number > node.number:
                slots = getattr(node.op, "slots", None)
                name = repr(slots[position]) if slots else f"number {position}"
                raise RuntimeError(
                    f"backward: {node.op.name} saved {name} ({registry.describe(value)}) for its "
                    f"gradient, but {by} changed that array in place afterwards; use an "
                    "out-of-place operation, or change it after backward"
                )


mutations = Mutations()


_add_reduce: Any = np.add.reduce


@functools.lru_cache(maxsize=4096)
def _broadcast_axes(ndim: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    extra = ndim - len(shape)
    return (*range(extra), *(i + extra for i, n in enumerate(shape) if n == 1))


def unbroadcast(xp: Any, g: Any, shape: tuple[int, ...]) -> Any:
    """Return g summed over the axes along which an array of this shape was broadcast."""
    axes = _broadcast_axes(len(g.shape), shape)
    if axes and (xp is not np or expected()) and _summed_by_kernel(xp, g):
        g = sums(g, axes, g.dtype)
    elif xp is np and axes and g.dtype.itemsize > 2 and g.size <= backend.MANY:
        g = _add_reduce(g, axes, None, None, True)  # the common case, without a detour
    elif axes:
        g = backend.total(xp, g, axes, keepdims=True)
    return g if g.shape == shape else g.reshape(shape)


def _summed_by_kernel(xp: Any, g: Any) -> bool:
    """Return whether a kernel adds up this gradient, in an order that depends on shapes alone."""
    if xp is registry.recorded or not backend.is_array(g) or backend.device_of(g) == "symbolic":
        return False
    return bool(g.size) and (xp is not np or cuda.emulated()) and cuda.fits(g)


def reachable(roots: Iterable[Any], stop: Iterable[Any] = ()) -> list[Node]:
    """Return the nodes from which roots were computed, newest first, not looking past stop."""
    seen: set[Any] = set(stop)
    order: list[Node] = []
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Node):
            order.append(node)
            stack.extend(node.parents)
    order.sort(key=attrgetter("number"), reverse=True)
    return order


def _leading_to(targets: set, order: list[Node]) -> set:
    """Return the targets and the nodes a gradient has to pass to reach them."""
    needed = set(targets)
    for node in reversed(order):
        if any(parent in needed for parent in node.parents):
            needed.add(node)
    return needed


def sweep(
    seeds: Sequence[tuple[Any, Any]],
    targets: Sequence[Any] | None,
    retain_graph: bool,
    create_graph: bool,
    local: bool = False,
) -> dict[Any, Any]:
    """Run the pullbacks from the seeds down and return the gradients of leaves or of targets.

    ``seeds`` are (node or leaf, gradient) pairs, gradients being arrays, or tensors when
    ``create_graph``. With ``targets`` only the paths to them are followed, and with ``local``
    not past them (no target may then depend on another).
    """
    gradients: dict[Any, Any] = {}
    for node, g in seeds:
        previous = gradients.get(node)
        gradients[node] = g if previous is None else previous + g
    order = reachable(gradients, targets if local and targets is not None else ())
    wanted = None if targets is None else set(targets)
    needed = None if wanted is None else _leading_to(wanted, order)
    finished: dict[Any, Any] = {}
    pop, ndarray, emulated = gradients.pop, np.ndarray, expected()  # names of the hot loop
    watch = state.watch
    for node in order:
        g = pop(node, None)
        if g is None:
            continue
        if node.hooks:
            g = _through_hooks(node.hooks, g, create_graph)
        if wanted is not None and needed is not None:
            if node not in needed:
                continue
            if node in wanted:
                finished[node] = g
                if not any(parent in needed for parent in node.parents):
                    continue
        saved = node.saved
        if saved is None:
            names = ", ".join(getattr(node.op, "slots", ())) or "nothing"
            raise RuntimeError(
                f"backward: what {node.op.name} (node {node.number}, result "
                f"{'of several' if g.__class__ is dict else registry.describe(g)}) saved was freed "
                f"by an earlier backward pass (it saved {names}); pass retain_graph=True to the "
                "first one to go back twice"
            )
        if node.number < mutations.last:
            mutations.check(node, saved)
        if create_graph:
            xp: Any = registry.recorded
        else:
            one = next(iter(g.values())) if g.__class__ is dict else g
            xp = np if one.__class__ is ndarray else backend.xp_of(one)
        if watch is not None:
            watch.pulls(node, g, saved)
        if (emulated or xp is not np) and (found := _pulled_by_kernel(node, g, xp, needed)):
            pulled = found
        else:
            pulled = node.op.pull(node, g, xp, create_graph, needed)
        if not retain_graph:
            node.saved = saved = None
        if node.shapes is not None:
            for i, shape in enumerate(node.shapes):
                p = pulled[i]
                if p is not None and p.shape != shape:
                    pulled[i] = unbroadcast(xp, p, shape)
        if watch is not None:
            watch.pulled(pulled)
        for i, parent in enumerate(node.parents):
            p = pulled[i]
            if p is None:
                continue
            previous = gradients.get(parent)
            if previous is None:
                gradients[parent] = p
            elif p.__class__ is dict:  # of a node with several outputs, made by Output.pull
                for output, part in p.items():
                    previous[output] = previous[output] + part if output in previous else part
            else:
                gradients[parent] = previous + p
    for leaf, g in gradients.items():
        if (isinstance(leaf, Node) and not local) or (wanted is not None and leaf not in wanted):
            continue
        hooks = None if isinstance(leaf, Node) else leaf._hooks
        finished[leaf] = _through_hooks(hooks, g, create_graph) if hooks else g
    return finished


def _pulled_by_kernel(node: Node, g: Any, xp: Any, needed: set | None) -> list | None:
    """Return the gradients of a node's parents if one kernel computes them all, else None."""
    if xp is registry.recorded or isinstance(g, (dict, backend.Symbolic)):
        return None
    if not isinstance(node.op, registry.Pullback) or (xp is np and not cuda.emulated()):
        return None
    return node.op.pull_by_kernel(node, g, needed)


def as_array(g: Any) -> Array:
    """Return g, which NumPy makes a scalar of where an array has no dimension, as an array."""
    return np.asarray(g) if isinstance(g, np.generic) else g


def _through_hooks(hooks: Sequence[Callable], g: Any, recorded: bool) -> Any:
    for hook in list(hooks):
        tensor = g if recorded else registry.Tensor._wrap(as_array(g), None)
        show(tensor._data)
        changed = hook(tensor)
        if changed is None:
            continue
        if not isinstance(changed, registry.Tensor) or changed.shape != g.shape:
            raise ValueError(
                f"hook {hook!r}: must return None or a tensor of shape {g.shape}, "
                f"got {registry.describe(changed)}"
            )
        changed = changed.astype(g.dtype)
        show(changed._data)
        g = changed if recorded else changed._data
    return g


def show(array: Array) -> None:
    """Note that somebody else has a gradient in hand, whose memory thus is no leaf's own."""
    if state.shown is not None and not isinstance(array, backend.Symbolic):
        for memory in (array, backend.memory_base(array)):
            state.shown[id(memory)] = weakref.ref(memory)


class Output:
    """The operation that picks one output of a node with several; its gradient is {index: g}."""

    slots = ()

    def __init__(self, name: str, index: int, view: bool = False) -> None:
        self.name = f"{name} output {index}"
        self.index = index
        self.view = view

    def save(self, values: tuple) -> tuple:
        """Save nothing."""
        return ()

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return the gradient keyed by the output it belongs to."""
        return [{self.index: g}]


class _Alias:
    """The operation that gives a saved array an identity of its own inside a replay."""

    name = "alias"
    slots = ()
    view = False

    def save(self, values: tuple) -> tuple:
        """Save nothing."""
        return ()

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Pass the gradient on."""
        return [g]


_alias = _Alias()


def alias(array: Array, parent: Any) -> Any:
    """Return a tensor on an array saved from parent, distinct from every other one."""
    registry.as_recorded(array, parent)  # raises if a leaf holds another array by now
    return registry.Tensor._wrap(array, Node(_alias, (parent,), (), None))


def seed_of(output: Any, gradient: Any, where: str) -> Any:
    """Return the gradient array an output starts with: ones for one element, else as given."""
    data = output._data
    if not output._requires_grad:
        raise RuntimeError(
            f"{where}: the output does not require grad: no tensor it was computed from has "
            "requires_grad=True, or it was computed under no_grad, or by a step of gg.compile: its "
            "results have no graph, the backward pass has to be part of it"
        )
    xp = backend.xp_of(data)
    if gradient is None:
        if data.size != 1:
            raise RuntimeError(
                f"{where}: only an output of one element starts with gradient 1; for shape "
                f"{data.shape} pass the gradient, a tensor of the same shape, or sum it first"
            )
        return xp.ones(data.shape, data.dtype)
    array = gradient._data if isinstance(gradient, registry.Tensor) else gradient
    array = backend.as_array(array, device=backend.device_of(data))
    if array.shape != data.shape:
        raise ValueError(
            f"{where}: the gradient has shape {array.shape} but the output has shape {data.shape}"
        )
    if not backend.is_float(array.dtype):
        raise TypeError(f"{where}: the gradient must be floating, got {array.dtype}")
    return array if array.dtype == data.dtype else array.astype(data.dtype)


def _tensors(where: str, name: str, given: Any) -> list[Any]:
    """Return the tensors of an argument: one, or a sequence of them."""
    tensor = registry.Tensor
    if isinstance(given, tensor):
        return [given]
    found = list(given) if _has_many(given) else [given]
    for i, x in enumerate(found):
        if not isinstance(x, tensor):
            raise TypeError(
                f"{where}: {name} must be a tensor or a sequence of tensors; element {i} is "
                f"{registry.describe(x)}"
            )
    return found


def _upstream(where: str, name: str, given: Any, count: int) -> list[Any]:
    """Return the gradient of each of ``count`` outputs, None for those not given."""
    if given is None:
        return [None] * count
    if not _has_many(given) or isinstance(given, registry.Tensor):
        raise TypeError(f"{where}: {name} must be a sequence, got {registry.describe(given)}")
    found = list(given)
    if len(found) != count:
        raise ValueError(f"{where}: {count} outputs but {len(found)} {name}")
    return found


def _has_many(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes, np.ndarray))


def _seeds(
    outputs: Sequence[Any], gradients: Sequence[Any], create_graph: bool, where: str
) -> list:
    seeds = []
    if state.watch is not None:
        state.watch.outputs(outputs)
    for output, gradient in zip(outputs, gradients, strict=True):
        seed = seed_of(output, gradient, where)
        if create_graph:
            if isinstance(gradient, registry.Tensor):
                seed = gradient.astype(output.dtype)  # recorded, as its own history is
            else:
                seed = registry.Tensor._wrap(seed, None)
        seeds.append((output._node or output, seed))
    return seeds


@contextlib.contextmanager
def _sweeping(create_graph: bool) -> Iterator[None]:
    malloc.keep_freed()
    outer = state.shown
    if registry.lift is not None:
        recording.goes_back()
    with enable_grad() if create_graph else no_grad(), np.errstate(all="ignore"):
        state.shown = {} if outer is None else outer
        try:
            if state.watch is None:
                yield
            else:
                with state.watch.sweeping():
                    yield
        except MemoryError as error:
            raise registry.out_of_memory(error, "backward") from error
        finally:
            state.shown = outer


def backward(
    tensors: Any, gradients: Any = None, retain_graph: bool = False, create_graph: bool = False
) -> None:
    """Add the gradient of the sum of ``tensors`` to ``.grad`` of every leaf they depend on.

    ``gradients`` are the upstream gradients, one per tensor and of its shape; None means 1 for a
    tensor of one element. Either every leaf receives its gradient or (on an error) none does.
    """
    outputs = _tensors("backward", "tensors", tensors)
    given = [gradients] if isinstance(tensors, registry.Tensor) else gradients
    given = _upstream("backward", "gradients", given, len(outputs))
    if registry.lift is not None:
        registry.lift_now(outputs)
    with _sweeping(create_graph):
        seeds = _seeds(outputs, given, create_graph, "backward")
        found = sweep(seeds, None, retain_graph or create_graph, create_graph)
        handed = _Handed(g._data if create_graph else g for _, g in seeds)
        updates = [
            (leaf, _leaf_gradient(leaf, g, create_graph, handed)) for leaf, g in found.items()
        ]
    for leaf, g in updates:
        leaf._grad = g


class _Handed:
    """The arrays that were handed out as gradients: nobody else may get their memory."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        self._arrays: dict[int, Array] = {}
        for array in arrays:
            self.add(array)

    def add(self, array: Array) -> None:
        """Note that an array is somebody's."""
        self._arrays[id(array)] = array

    def shares(self, array: Array) -> bool:
        """Return whether an array's memory is, or may be, somebody's."""
        seen = None if state.shown is None else state.shown.get(id(array))
        if id(array) in self._arrays or (seen is not None and seen() is array):
            return True
        if not isinstance(array, backend.Symbolic):
            return array.base is not None
        recorded: Any = array
        if recorded.base is not None and not recorded.flags.c_contiguous:
            return True  # a plain run has a copy of it, in C order
        return any(
            isinstance(other, backend.Symbolic) and recorded.overlaps(other)
            for other in self._arrays.values()
        )


def _leaf_gradient(leaf: Any, g: Any, recorded: bool, handed: _Handed) -> Any:
    """Return leaf's new .grad: g added to the old one, in memory nobody else holds."""
    old = leaf.grad
    if recorded:
        if old is not None:
            return old + g
        if handed.shares(g._data):
            g = registry.recorded.copy(g)
        handed.add(g._data)
        return g
    g = as_array(g if old is None else old._data + g)
    if isinstance(g, backend.Symbolic):
        g.settle()  # or all that a sum is made of would stay in memory until somebody reads it
    if old is not None:
        return registry.Tensor._wrap(g, None)
    if g.dtype != leaf._data.dtype:
        g = g.astype(leaf._data.dtype)
    elif handed.shares(g):
        g = g.copy()
    handed.add(g)
    return registry.Tensor._wrap(g, None)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Any, ...]:
    """Return the gradients of the sum of ``outputs`` with respect to ``inputs``, as a tuple.

    ``outputs`` and ``inputs`` are a tensor or a sequence of tensors (inputs may be intermediate
    results); ``.grad`` is not touched. An input that no output depends on gets zeros. With
    ``create_graph`` the gradients are recorded and can be differentiated again.
    """
    tensor = registry.Tensor
    outs = _tensors("grad", "outputs", outputs)
    ins = list(inputs) if _has_many(inputs) and not isinstance(inputs, tensor) else [inputs]
    given = [grad_outputs] if isinstance(grad_outputs, tensor) else grad_outputs
    given = _upstream("grad", "grad_outputs", given, len(outs))
    if registry.lift is not None:
        registry.lift_now((*outs, *ins))
    for position, x in enumerate(ins):
        if not isinstance(x, tensor) or not x._requires_grad:
            raise ValueError(
                f"grad: input {position} ({registry.describe(x)}) must be a tensor that requires "
                "grad; set requires_grad=True before the forward pass"
            )
    retain = create_graph if retain_graph is None else retain_graph
    with _sweeping(create_graph):
        seeds = _seeds(outs, given, create_graph, "grad")
        targets = [x._node or x for x in ins]
        found = sweep(seeds, targets, retain, create_graph)
        results = []
        handed = _Handed(seed for _, seed in seeds)
        for x, target in zip(ins, targets, strict=True):
            g = found.get(target)
            if g is None:
                g = backend.xp_of(x._data).zeros_like(x._data)
            elif create_graph:
                results.append(g)
                continue
            else:
                g = as_array(g)
                if handed.shares(g):
                    g = g.copy()
                handed.add(g)
            results.append(tensor._wrap(g, None))
    return tuple(results)
