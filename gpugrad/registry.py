"""Operations as rows: forward, one pullback per argument, and what each pullback saves.

A primitive is written once over an array namespace ``xp``::

    @primitive(x=lambda g, out: g * out)
    def exp(xp, x):
        return xp.exp(x)

The parameter names of a pullback are the list of what is saved for backward: an argument, ``out``,
a keyword of the forward, or a shape such as ``x_shape`` (which keeps no array alive). ``xp`` is
handed over at backward time: numpy or cupy, or gpugrad's own ops when the gradient itself is
recorded, which is all there is to second derivatives.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from types import FunctionType
from typing import Any

import numpy as np

from . import backend
from .backend import Array
from .cuda import elementwise, recording, symbolic

Rule = Callable[..., Any]
OPS: dict[str, Op] = {}
lift: Callable[[Sequence[Any]], None] | None = None  # while some thread records: see `lifting`
Tensor: Any = None  # the class that holds results: tensor.py defines it and sets this
out_of_memory: Any = None  # explains an error: live.py sets this
recorded: Any = None  # gpugrad's own operations as a namespace: ops/__init__.py sets this

# what a pullback may ask about an argument without keeping its array, as x_shape, x_dtype, x_device
_METADATA: dict[str, Callable[[Any], Any]] = {
    "shape": lambda x: x.shape if hasattr(x, "shape") else (),
    "dtype": lambda x: x.dtype,
    "device": backend.device_of,
}

_SHAPE_OF_FIRST = [(0, "shape")]

next_number = itertools.count(1).__next__


@contextlib.contextmanager
def lifting(function: Callable[[Sequence[Any]], None]) -> Iterator[None]:
    """Show ``function`` the arguments of every operation inside: it may replace their arrays.

    It is called for the operations of all threads, and has to know its own; one at a time.
    """
    global lift
    lift = function
    try:
        yield
    finally:
        lift = None


def lift_now(tensors: Sequence[Any]) -> None:
    """Show tensors to whoever records, unless that has just come to its end in another thread."""
    function = lift
    if function is not None:
        function(tensors)


class State(threading.local):
    """What a thread does with the operations it runs; ``make_node`` is None under no_grad.

    ``watch`` is who looks at their arrays under detect_anomaly (anomaly.py), else None; ``shown``
    are, by id, the gradients that hooks and functions of the user's have in hand in a sweep;
    ``evaluating`` says that modules are in evaluation mode here (nn/module.py), whatever is set.
    """

    def __init__(self) -> None:
        self.make_node: Callable[..., Node] | None = Node
        self.watch: Any = None
        self.shown: dict[int, weakref.ref] | None = None
        self.evaluating = False


class Node:
    """One recorded operation: points at its parents only, so a graph never holds a cycle.

    ``parents`` are the nodes (or leaf tensors) that want a gradient, in argument order; ``saved``
    is what their pullbacks need and None once a backward pass has used it; ``shapes`` are the
    parents' shapes where the operation broadcast them. ``number`` grows with creation, so newest
    first is a reverse topological order.
    """

    __slots__ = ("__weakref__", "hooks", "number", "op", "parents", "saved", "shapes")

    def __init__(self, op: Any, parents: tuple, values: tuple, shapes: tuple | None) -> None:
        self.op = op
        self.parents = parents
        self.saved: tuple | None = op.save(values)
        self.shapes = shapes
        self.number = next_number()
        self.hooks: list | None = None

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.op.name}>"


state = State()
_ONE, _ALL, _SOME = range(3)  # how much of what a node saved a pullback asks for


class Pullback:
    """How the gradients of one operation reach the arguments that want one.

    There is one Pullback per operation and set of such arguments, so that nothing is saved and
    nothing computed for the others. ``wanted`` are their names, in the order of node.parents.
    """

    __slots__ = ("name", "op", "programs", "save", "slots", "steps", "view", "wanted")

    def __init__(self, op: Op, wanted: tuple[int, ...]) -> None:
        self.op = op
        self.name = op.title
        self.view = op.view
        self.wanted = tuple([op.arguments[i] for i in wanted])
        rules = [op.rules[name] for name in self.wanted]
        needs = [_parameters(rule) for rule in rules]
        self.slots = tuple(n for n in op.values if any(n in need for need in needs))
        self.save = _picker([op.values.index(n) for n in self.slots])
        is_elementwise = {*self.slots} <= {*op.arguments, "out"}  # maybe: tracing will tell
        self.programs = elementwise.Programs() if is_elementwise else None
        self.steps: list[tuple[Rule, int, Any, bool]] = []
        for rule, need in zip(rules, needs, strict=True):
            wants_xp = bool(need) and need[-1] == "xp"
            picked = [self.slots.index(n) for n in (need[:-1] if wants_xp else need)]
            if len(picked) == 1:
                self.steps.append((rule, _ONE, picked[0], wants_xp))
            elif picked == list(range(len(self.slots))):
                self.steps.append((rule, _ALL, None, wants_xp))
            else:
                self.steps.append((rule, _SOME, _picker(picked), wants_xp))

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return the gradient of each of node's parents, None for those not needed."""
        saved: Any = self.lift(node) if recorded else node.saved
        dtype = g.dtype
        grads: list = []
        for rule, kind, pick, wants_xp in self.steps:
            if needed is not None and node.parents[len(grads)] not in needed:
                grads.append(None)
                continue
            if kind == _ONE:
                grad = rule(g, saved[pick], xp) if wants_xp else rule(g, saved[pick])
            else:
                args = saved if kind == _ALL else pick(saved)
                grad = rule(g, *args, xp) if wants_xp else rule(g, *args)
            if grad.dtype is not dtype and grad.dtype != dtype and self.name != "astype":
                grad = grad.astype(dtype)  # bfloat16 with a Python scalar is float32 in NumPy
            grads.append(grad)
        return grads

    def pull_by_kernel(self, node: Node, g: Any, needed: set | None) -> list | None:
        """Return what pull does, by one kernel; None where the rules are no chain of elements."""
        saved = node.saved
        if self.programs is None or saved is None:
            return None
        if needed is None:
            here: tuple[bool, ...] | None = None
        else:
            here = tuple([parent in needed for parent in node.parents])
        try:
            key = (here, *map(elementwise.key_of, (g, *saved)))
        except TypeError:
            return None
        program = self.programs.get(key, lambda: self._traced(node, g, needed))
        grads = None if program is None else program.run([g, *saved])
        if grads is None or here is None:
            return grads
        found = iter(grads)
        return [next(found) if wanted else None for wanted in here]

    def _traced(self, node: Node, g: Any, needed: set | None) -> elementwise.Program | None:
        """Return the rules as one kernel of g (input 0) and the saved values, if it is a chain."""
        values = (g, *(node.saved or ()))
        symbols = [
            symbolic.argument(i, v.dtype) if backend.is_array(v) else v
            for i, v in enumerate(values)
        ]
        traced: Node = object.__new__(Node)
        traced.parents, traced.saved = node.parents, tuple(symbols[1:])
        pulled = self.pull(traced, symbols[0], symbolic.xp, False, needed)
        program = elementwise.Program(
            f"{self.op.name}_backward",
            [getattr(v, "dtype", None) for v in values],
            [p for p in pulled if p is not None],
            share=True,
        )
        return program if program.launches > 1 else None

    def lift(self, node: Node) -> tuple:
        """Return what was saved with its arrays as tensors that remember where they came from."""
        assert node.saved is not None
        lifted = []
        for name, value in zip(self.slots, node.saved, strict=True):
            if name == "out":
                lifted.append(Tensor._wrap(value, node))
            elif name in self.wanted:
                lifted.append(as_recorded(value, node.parents[self.wanted.index(name)]))
            elif name in self.op.arguments and backend.is_array(value):
                lifted.append(Tensor._wrap(value, None))
            else:
                lifted.append(value)
        return tuple(lifted)


def without_graph(array: Array) -> Any:
    """Return the tensor of a result that no gradient flows through."""
    if lift is not None:
        recording.created(array)
    return Tensor._wrap(array, None)


def as_recorded(value: Array, parent: Any) -> Any:
    """Return a tensor holding value whose gradient flows to parent, a node or a leaf tensor."""
    if isinstance(parent, Node):
        return Tensor._wrap(value, parent)
    if parent._data is not value:
        raise RuntimeError(
            "the .data of a leaf tensor was replaced after the forward pass; a recorded gradient "
            "(create_graph=True) needs the original. Compute the loss again first"
        )
    return parent


@functools.cache
def _parameters(rule: Rule) -> tuple[str, ...]:
    if isinstance(rule, FunctionType) and not hasattr(rule, "__wrapped__"):
        code = rule.__code__
        if not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
            return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return tuple(inspect.signature(rule).parameters)[1:]


def _picker(indices: Sequence[int]) -> Callable[[tuple], tuple]:
    if len(indices) > 1:
        return itemgetter(*indices)
    return itemgetter(slice(indices[0], indices[0] + 1) if indices else slice(0, 0))


class Op:
    """One row of the registry.

    ``rules`` maps an argument to its pullback (an argument without one gets no gradient);
    ``samples`` are the inputs the generated tests use; ``view`` tells that the result may share
    memory with its input; ``broadcasts`` that the engine has to sum gradients back to the
    arguments' shapes.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Array],
        rules: dict[str, Rule],
        arguments: Sequence[str],
        statics: dict[str, Any],
        samples: Sequence[Sample] = (),
        view: bool = False,
        broadcasts: bool = False,
        floats_only: bool = False,
        method: bool = True,
    ) -> None:
        if name in OPS:
            raise ValueError(f"an operation named {name!r} is registered already")
        self.name = name
        self.title = name.removesuffix("_view")  # what messages call it: getitem, for both rows
        self.forward = forward
        self.rules = rules
        self.arguments = tuple(arguments)
        self.statics = statics
        self.samples = tuple(samples)
        self.view = view
        self.broadcasts = broadcasts
        self.floats_only = floats_only
        self.method = method
        self.metadata = [
            (i, kind)
            for i, a in enumerate((*arguments, "out"))
            for kind in _METADATA
            if self._is_used(f"{a}_{kind}")
        ]
        named = (*arguments, "out")
        self.values = (*named, *statics, *(f"{named[i]}_{kind}" for i, kind in self.metadata))
        self.able = tuple(i for i, a in enumerate(self.arguments) if a in rules)
        self._pullbacks: dict[tuple[int, ...], Pullback] = {}
        for argument, rule in rules.items():
            unknown = set(_parameters(rule)) - {*self.values, "xp"}
            if argument not in self.arguments or unknown:
                raise TypeError(
                    f"{name}: the pullback of {argument!r} asks for {sorted(unknown)}; "
                    f"it may ask for {', '.join(self.values)} and xp (last)"
                )
        self.function: Callable[..., Any] = forward
        OPS[name] = self

    def _is_used(self, parameter: str) -> bool:
        return any(parameter in _parameters(rule) for rule in self.rules.values())

    def pullback(self, wanted: tuple[int, ...]) -> Pullback:
        """Return the pullback that serves the arguments at these positions."""
        found = self._pullbacks.get(wanted)
        if found is None:
            found = self._pullbacks[wanted] = Pullback(self, wanted)
        return found

    def with_metadata(self, values: tuple) -> tuple:
        """Return the values of a call followed by the shapes and dtypes its pullbacks ask for."""
        return values + tuple([_METADATA[kind](values[i]) for i, kind in self.metadata])

    def __call__(self, args: Sequence[Any], statics: dict[str, Any]) -> Any:
        """Run the operation on tensors and Python scalars of agreeing device and dtype."""
        if len(args) == 1:
            return self.of_one(args[0], statics)
        if lift is not None:
            lift_now(args)
        arrays = tuple([a._data if isinstance(a, Tensor) else a for a in args])
        xp: Any = np
        for a in arrays:
            if a.__class__ is not np.ndarray and backend.is_array(a):
                xp = backend.xp_of(a)
        try:
            out = self.forward(xp, *arrays, **statics)
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            raise explained(error, self.title, self.arguments, arrays, statics) from error
        if out.__class__ is not np.ndarray and isinstance(out, np.generic):
            out = np.asarray(out)
        make_node = state.make_node
        if make_node is None:
            return without_graph(out)
        wanted = tuple(
            [i for i in self.able if isinstance(args[i], Tensor) and args[i]._requires_grad]
        )
        if not wanted:
            return without_graph(out)
        values = (*arrays, out, *statics.values())
        if self.metadata:
            values = self.with_metadata(values)
        shapes = tuple([arrays[i].shape for i in wanted]) if self.broadcasts else None
        parents = tuple([args[i]._node or args[i] for i in wanted])
        pullback = self._pullbacks.get(wanted) or self.pullback(wanted)
        return Tensor._wrap(out, make_node(pullback, parents, values, shapes))

    def of_one(self, x: Any, statics: dict[str, Any]) -> Any:
        """Run the operation on one tensor, the case that has to be fast."""
        if lift is not None:
            lift_now((x,))
        data = x._data
        xp = np if data.__class__ is np.ndarray else backend.xp_of(data)
        try:
            out = self.forward(xp, data, **statics)
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            raise explained(error, self.title, self.arguments, (data,), statics) from error
        if out.__class__ is not np.ndarray and isinstance(out, np.generic):
            out = np.asarray(out)
        make_node = state.make_node
        if make_node is None or not x._requires_grad or not self.able:
            return without_graph(out)
        values = (data, out, *statics.values())
        if self.metadata == _SHAPE_OF_FIRST:
            values = (*values, data.shape)
        elif self.metadata:
            values = self.with_metadata(values)
        shapes = (data.shape,) if self.broadcasts else None
        pullback = self._pullbacks.get(self.able) or self.pullback(self.able)
        return Tensor._wrap(out, make_node(pullback, (x._node or x,), values, shapes))


class Sample:
    """One input of an operation for the generated tests.

    Each argument is a shape (drawn uniformly from ``domain`` of that argument or of all) or a
    ready array; keywords are the operation's own. ``distinct`` spaces the values out, for
    operations that compare them.
    """

    def __init__(
        self,
        *arguments: Any,
        domain: Sequence[Any] = (-2.0, 2.0),
        distinct: bool = False,
        **statics: Any,
    ) -> None:
        self.arguments = arguments
        one = isinstance(domain[0], (int, float))
        self.domains: Sequence[Any] = [domain] * len(arguments) if one else domain
        self.distinct = distinct
        self.statics = statics

    def __repr__(self) -> str:
        parts = [
            "x".join(map(str, a)) or "scalar"
            if isinstance(a, tuple)
            else "none"
            if a is None
            else "array"
            for a in self.arguments
        ]
        parts += [f"{k}={''.join(repr(v).split())}" for k, v in self.statics.items()]
        return ",".join(parts)

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Return float64 arrays (ready arrays unchanged)."""
        drawn = []
        for i, argument in enumerate(self.arguments):
            if not isinstance(argument, tuple):
                drawn.append(argument)  # a ready array, or None
                continue
            low, high = self.domains[i]
            size = int(np.prod(argument))
            if self.distinct:
                values = np.linspace(low, high, size + 2)[1:-1]
                rng.shuffle(values)
            else:
                values = rng.uniform(low, high, size)
            drawn.append(values.reshape(argument))
        return drawn


def primitive(
    samples: Sequence[Sample] = (),
    *,
    name: str | None = None,
    arguments: int | None = None,
    view: bool = False,
    broadcasts: bool = False,
    floats_only: bool = False,
    method: bool = True,
    **rules: Rule,
) -> Callable[[Callable[..., Array]], Callable[..., Any]]:
    """Register a forward over ``xp`` and its pullbacks as an operation.

    Parameters of the forward without a default are array arguments (``arguments`` overrides how
    many); the others are static. The decorated name becomes the public function on tensors. The
    name of each pullback's argument is the keyword it is given by.
    """

    def decorate(forward: Callable[..., Array]) -> Callable[..., Any]:
        signature = inspect.signature(forward)
        parameters = list(signature.parameters.values())[1:]
        count = arguments
        if count is None:
            count = sum(p.default is p.empty for p in parameters)
        op_name = name or forward.__name__.rstrip("_")
        names = [p.name for p in parameters[:count]]
        statics = {p.name: p.default for p in parameters[count:]}
        op = Op(
            op_name, forward, rules, names, statics, samples, view, broadcasts, floats_only, method
        )

        @functools.wraps(forward)
        def function(*args: Any, **kwargs: Any) -> Any:
            given = {**statics, **kwargs} if kwargs else statics
            if len(args) != count or len(given) != len(statics):
                args, given = _bind(op, args, kwargs)
            if given.get("axis").__class__ is list:  # NumPy takes several axes as a tuple only
                given = {**given, "axis": tuple(given["axis"])}
            return op(prepare(op, args), given)

        del function.__wrapped__
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        op.function = function
        return function

    return decorate


# PyTorch's and NumPy's names of arguments, where they mean the same.
_SYNONYMS = {
    "ddof": "correction",
    "diagonal": "k",
    "dim": "axis",
    "dims": "axis",
    "input": "x",
    "keepdim": "keepdims",
    "other": "y",
    "shifts": "shift",
}


def _bind(op: Op, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the array arguments and all static ones, defaults filled in."""
    names = (*op.arguments, *op.statics)
    if len(args) > len(names):
        raise TypeError(f"{op.name}: takes at most {len(names)} arguments, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        key = key if key in names else _SYNONYMS.get(key, key)
        if key not in names and key in ("dtype", "out") and value is None:
            continue  # numpy.mean(x) gives them
        if key not in names:
            raise TypeError(f"{op.name}: unknown argument {key!r}; it takes {', '.join(names)}")
        if key in given:
            raise TypeError(f"{op.name}: argument {key!r} is given twice")
        given[key] = value
    missing = [a for a in op.arguments if a not in given]
    if missing:
        raise TypeError(f"{op.name}: missing argument {missing[0]!r}; it takes {', '.join(names)}")
    return tuple(given[a] for a in op.arguments), {
        key: given.get(key, default) for key, default in op.statics.items()
    }


def prepare(op: Op, args: Sequence[Any]) -> Sequence[Any]:
    """Return the arguments as tensors (or Python scalars) that agree in device and dtype.

    Casts are recorded, so gradients come back in each argument's own dtype.
    """
    if len(args) == 1:
        x = args[0]
        if isinstance(x, Tensor) and not op.floats_only:
            return args
        if not isinstance(x, Tensor):
            x = Tensor._wrap(_as_array(op, 0, x, None), None)
        if op.floats_only and not backend.is_float(x._data.dtype):
            x = x.astype(backend.float32)
        return (x,)
    if lift is not None:
        args = [Tensor._wrap(a, None) if backend.is_array(a) else a for a in args]
        lift_now(args)
    if _agree(op, args):
        return args
    device = _common_device(op, args)
    weak = (np.float64, np.integer) if device == "symbolic" else np.float64  # no integer symbols
    args = [a.item() if isinstance(a, weak) else a for a in args]  # as weak as a float
    tensors = [
        a
        if isinstance(a, Tensor) or type(a) in (bool, int, float) or a is None
        else Tensor._wrap(_as_array(op, i, a, device), None)
        for i, a in enumerate(args)
    ]
    if not op.broadcasts:
        tensors = [
            t
            if isinstance(t, Tensor) or t is None
            else Tensor._wrap(_as_array(op, i, t, device), None)
            for i, t in enumerate(tensors)
        ]
    common = _common_dtype(op, tensors)
    if common is None:
        return tensors
    if common.kind in "iu" and op.name in _COMPARISONS:
        common = _comparable(common, tensors)
    xp: Any = backend.namespace(device)
    for i, t in enumerate(tensors):
        if op.arguments[i] not in op.rules and op.rules:
            if not isinstance(t, Tensor) and t is not None:
                tensors[i] = Tensor._wrap(xp.asarray(t), None)
        elif isinstance(t, Tensor):
            if t._data.dtype != common:
                tensors[i] = t.astype(common)
        elif t is not None:
            tensors[i] = Tensor._wrap(xp.asarray(t, dtype=common), None)
    return tensors


_COMPARISONS = {
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_xor"),
}


def _comparable(dtype: np.dtype, args: Sequence[Any]) -> np.dtype:
    """Return int64 where it holds all numbers to be compared and an integer dtype does not."""
    first, last = backend.whole_numbers(dtype)
    beyond = [n for n in args if type(n) is int and not first <= n <= last]
    if not beyond or dtype == backend.uint64 or any(not -(2**63) <= n < 2**63 for n in beyond):
        return dtype
    return backend.int64


def _agree(op: Op, args: Sequence[Any]) -> bool:
    """Return whether all arguments are numpy tensors of one dtype, the common case."""
    x = args[0]
    if not isinstance(x, Tensor) or (op.floats_only and x._data.dtype.kind != "f"):
        return False
    dtype = x._data.dtype
    for a in args:
        if a is not None and (
            not isinstance(a, Tensor)
            or a._data.dtype is not dtype
            or a._data.__class__ is not np.ndarray
        ):
            return False
    return True


def _as_array(op: Op, position: int, value: Any, device: str | None) -> Array:
    try:
        return backend.as_array(value, device=None if backend.is_array(value) else device)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op.name}: argument {op.arguments[position]!r}: {error}") from error


def _common_device(op: Op, args: Sequence[Any]) -> str | None:
    devices: dict[str, str] = {}
    for name, a in zip(op.arguments, args, strict=True):
        if isinstance(a, Tensor):
            a = a._data
        if backend.is_array(a):
            devices.setdefault(backend.device_of(a), name)
    if len(devices) > 1:
        (first, x), (second, y) = list(devices.items())[:2]
        raise ValueError(
            f"{op.name}: {x!r} is on {first} but {y!r} is on {second}; move one with .to(device)"
        )
    return next(iter(devices), None)


def _common_dtype(op: Op, args: Sequence[Any]) -> np.dtype | None:
    """Return the dtype all differentiable arguments are cast to; None if they have it already."""
    dtypes = [
        a._data.dtype
        for name, a in zip(op.arguments, args, strict=True)
        if isinstance(a, Tensor) and (name in op.rules or not op.rules)
    ]
    scalars = [
        type(a)
        for name, a in zip(op.arguments, args, strict=True)
        if a is not None and not isinstance(a, Tensor) and (name in op.rules or not op.rules)
    ]
    common = functools.reduce(backend.promote, dtypes) if dtypes else backend.bool_
    if float in scalars and not backend.is_float(common):
        common = backend.float32
    elif int in scalars and common == backend.bool_:
        common = backend.int64
    if op.floats_only and not backend.is_float(common):
        common = backend.float32
    same = not scalars and all(d == common for d in dtypes)
    return None if same else common


def explained(
    error: Exception, name: str, names: Sequence[str], values: Sequence[Any], statics: dict
) -> Exception:
    """Return an error of the same kind that names the operation and what it was given."""
    parts = [f"{n}: {describe(v)}" for n, v in zip(names, values, strict=True)]
    parts += [f"{key}={value!r}" for key, value in statics.items() if value is not None]
    if isinstance(error, MemoryError):
        return out_of_memory(error, f"{name} ({', '.join(parts)})")
    kind = next(k for k in (IndexError, TypeError, ValueError) if isinstance(error, k))
    return kind(f"{name}: {error} ({', '.join(parts)})")


def describe(value: Any) -> str:
    """Return dtype and shape of an array or tensor, or the value itself."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)
