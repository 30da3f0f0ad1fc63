"""Recording: what a step function launches, as a list, from shapes alone.

While a Trace is active, arrays are Buffers: they have a shape, a dtype and a place in some storage,
but no elements. A kernel launch, a matrix product or a chain of elementwise operations with a
Buffer among its arguments is not run but appended to the trace. Where the storages lie is decided
afterwards (cuda/arena.py), and the list is run as often as wanted (cuda/replay.py)::

    with recording(Trace()) as trace:
        x = trace.input((4, 8), float32)
        ...                                # operations on x
    trace.launches
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import math
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .. import backend
from . import symbolic
from .arguments import Strided, checked, checked_sizes
from .column_sums import sums
from .elementwise import Program
from .kernel import DTYPE_CODES

ARENA, INPUT, CONSTANT, REAL, META = "arena", "input", "constant", "real", "meta"
ALIGNMENT = 256  # bytes: what CuPy's and CUDA's own allocations begin at
MOST_PENDING = 24  # operations of an expression that waits for its first reader
NAME = "gg.compile"


class NotRecordable(RuntimeError):
    """What a step does depends on more than the shapes of its arrays, or no kernel computes it."""


class Storage:
    """Some bytes of memory that Buffers look at.

    ``kind``: "arena" for what lives within a step, "input" for an argument of the step, "real" for
    an array that was there before (``array``), "constant" for what is filled once when addresses
    are known (``build``), "meta" for parameters without elements.
    """

    __slots__ = ("__weakref__", "array", "build", "kind", "nbytes", "readers")

    def __init__(self, kind: str, nbytes: int, array: Any = None, build: Any = None) -> None:
        self.kind = kind
        self.nbytes = nbytes
        self.array = array
        self.build = build
        self.readers: list[weakref.ref[Buffer]] = []  # expressions that wait and will read it


class Launch(NamedTuple):
    """One entry of the list: ``function(*args, **kwargs)`` on arrays in the place of Buffers.

    ``reads`` and ``writes`` are all Buffers it touches; what is read and written is in both.
    ``operation`` names what it belongs to, ``flops`` are those of matrix products.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    name: str
    operation: str
    flops: int

    @property
    def nbytes(self) -> int:
        """The bytes it moves if it touches every element once."""
        return sum(b.nbytes for b in (*self.reads, *self.writes))


class Leaf(NamedTuple):
    """A tensor from outside of the step, its array and the gradient it came with."""

    tensor: Any
    array: Any
    gradient: Any


class Trace:
    """The launches of a step in order, and the memory they touch.

    ``capability`` is that of the GPU it is meant for (major and minor digit). ``inputs`` are the
    Buffers of arguments, ``before`` what the host does ahead of each run of the list.
    """

    def __init__(self, capability: int = 90) -> None:
        self.capability = capability
        self.launches: list[Launch] = []
        self.inputs: list[Buffer] = []
        self.callbacks: list[Callable[[], Any]] = []
        self.operations: list[str] = []  # what is being recorded, the innermost last
        self.real: dict[int, Buffer] = {}  # by the id of the array
        self.leaves: list[Leaf] = []  # tensors that were there before
        self.cleared: set[Any] = set()  # of these, whose gradient the step forgets
        self.modules: dict[Any, bool] = {}  # those that were called, and whether in training
        self.gradients: list[Any] = []  # of the leaves, at the end of the step

    # Memory

    def input(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Return an argument of the step: filled before each run."""
        buffer = new(INPUT, shape, dtype)
        self.inputs.append(buffer)
        return buffer

    def constant(
        self, build: Callable[[Callable[[Any], int]], np.ndarray], shape: Any, dtype: Any
    ) -> Buffer:
        """Return an array that ``build(address_of)`` makes once memory has been laid out.

        ``address_of`` takes a Buffer or a real array and returns where it begins.
        """
        buffer = new(CONSTANT, shape, dtype)
        buffer.storage.build = build
        return buffer

    def lift(self, array: Any) -> Buffer:
        """Return the Buffer that stands for a real array, for one array always the same."""
        found = self.real.get(id(array))
        if found is None:
            storage = Storage(REAL, array.nbytes, array)
            shadow = _shadow(array.shape, array.dtype, array.strides)
            found = self.real[id(array)] = Buffer(storage, 0, shadow)
        return found

    def lift_tensors(self, tensors: Sequence[Any]) -> None:
        """Give tensors a Buffer for their array, until ``restore``, if one has to be recorded."""
        given = [t for t in tensors if hasattr(t, "_requires_grad")]
        if not any(isinstance(t._data, Buffer) or t._requires_grad for t in given):
            return  # a constant, computed once
        for tensor in given:
            if not isinstance(tensor._data, backend.Symbolic):
                self.leaves.append(Leaf(tensor, tensor._data, tensor._grad))
                tensor._data = self.lift(tensor._data)

    def restore(self) -> list[Any]:
        """Give the lifted tensors back what they held; return the gradients they had at the end."""
        ends = [leaf.tensor._grad for leaf in self.leaves]
        for leaf in reversed(self.leaves):
            leaf.tensor._data, leaf.tensor._grad = leaf.array, leaf.gradient
        return ends

    # Launches

    def before(self, callback: Callable[[], Any]) -> None:
        """Have the host call something ahead of each run: it may change real arrays in place."""
        self.callbacks.append(callback)

    def record(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any] | None = None,
        *,
        reads: Sequence[Any] = (),
        writes: Sequence[Any] = (),
        name: str = "",
        flops: int = 0,
    ) -> None:
        """Append ``function(*args, **kwargs)``; arrays among the arguments may lie in lists.

        ``reads`` and ``writes`` are the arrays it touches, real ones too.
        """
        read = tuple(self._settled(a) for a in reads)
        written = tuple(self._settled(a) for a in writes)
        for buffer in written:  # who still wants the old values takes them now
            readers, buffer.storage.readers = buffer.storage.readers, []
            for reference in readers:
                waiting = reference()
                if waiting is not None:
                    waiting.settle()
        operation = self.operations[-1] if self.operations else ""
        given = (tuple(args), dict(kwargs or {}))
        self.launches.append(
            Launch(function, *given, read, written, name or function.__name__, operation, flops)
        )

    def _settled(self, array: Any) -> Buffer:
        if isinstance(array, Strided):
            array = array.array
        buffer = array if isinstance(array, Buffer) else self.lift(array)
        buffer.settle()
        return buffer


_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)


def current() -> Trace | None:
    """Return the trace that this thread records to now, if any."""
    return _current.get()


def active() -> Trace:
    """Return the trace that this thread records to; raise NotRecordable where there is none."""
    trace = _current.get()
    if trace is None:
        raise NotRecordable(
            f"an array without elements is used outside of {NAME}: it was made while a step was "
            "recorded (return it from the step), or for the device 'meta'"
        )
    return trace


@contextlib.contextmanager
def recording(trace: Trace) -> Iterator[Trace]:
    """Record to a trace inside the ``with`` block; lifted tensors get their arrays back at its end.

    Not reentrant: a step that is being recorded runs other compiled steps as plain functions.
    """
    registry = importlib.import_module("gpugrad.registry")
    token = _current.set(trace)
    with registry.lifting(_lift_tensors):
        try:
            yield trace
        finally:
            trace.gradients = trace.restore()
            _current.reset(token)


def _lift_tensors(tensors: Sequence[Any]) -> None:
    """Lift tensors where this thread records; others may compute meanwhile."""
    trace = _current.get()
    if trace is not None:
        trace.lift_tensors(tensors)


def forget_gradient(tensor: Any) -> None:
    """Note that the step forgets the gradient a tensor comes with, whatever that is."""
    trace = _current.get()
    if trace is not None:
        trace.lift_tensors([tensor])
        trace.cleared.add(tensor)


def calls(module: Any) -> None:
    """Note that a step calls a module: whether it is in training then is part of the recording."""
    trace = _current.get()
    if trace is not None:
        trace.modules.setdefault(module, module.training)


@contextlib.contextmanager
def operation(name: str) -> Iterator[None]:
    """Say what the launches inside belong to, for tables of costs."""
    trace = _current.get()
    if trace is None:
        yield
        return
    trace.operations.append(name)
    try:
        yield
    finally:
        trace.operations.pop()


# Arrays


@functools.cache
def _dummy(dtype: np.dtype) -> np.ndarray:
    return np.zeros(1, dtype)


def _shadow(shape: Sequence[int], dtype: Any, strides: Sequence[int] | None = None) -> np.ndarray:
    """Return a NumPy array to ask for shapes, strides and views; its elements are no memory."""
    base = _dummy(np.dtype(dtype))
    shape = tuple(map(operator.index, (shape,) if isinstance(shape, int) else shape))
    if strides is None:
        lengths = [max(n, 1) for n in shape]
        strides = [base.itemsize * math.prod(lengths[i + 1 :]) for i in range(len(shape))]
    return np.lib.stride_tricks.as_strided(base, shape, tuple(strides), writeable=False)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def new(kind: str, shape: Sequence[int], dtype: Any) -> Buffer:
    """Return a C-contiguous Buffer of a new storage."""
    shadow = _shadow(shape, dtype)
    return Buffer(Storage(kind, shadow.nbytes), 0, shadow)


class Buffer(backend.Symbolic):
    """An array without elements: its bytes will lie ``offset`` into ``storage``.

    A result of elementwise operations has no storage yet: it is an expression that becomes part of
    its reader's kernel if that is elementwise too, and a launch of its own otherwise.
    """

    __slots__ = ("__weakref__", "_expression", "_offset", "_operations", "_shadow", "_storage")
    __array_ufunc__ = None  # NumPy's arrays and numbers leave operators to the Buffer
    device = "meta"

    def __init__(
        self, storage: Storage | None, offset: int, shadow: np.ndarray, expression: Any = None
    ) -> None:
        self._storage = storage
        self._offset = offset
        self._shadow = shadow
        self._expression: tuple[str, tuple] | None = expression
        self._operations = 0
        if expression is not None:
            args = [a for a in expression[1] if isinstance(a, Buffer)]
            self._operations = 1 + sum(a._operations for a in args)

    def settle(self) -> Buffer:
        """Append the launch that computes this expression, if it still waits; return self."""
        if self._storage is None:
            _compute(self)
        return self

    @property
    def storage(self) -> Storage:
        """The memory it looks at; an expression that waited gets some."""
        self.settle()
        assert self._storage is not None
        return self._storage

    @property
    def offset(self) -> int:
        """Where it begins in its storage, in bytes."""
        self.settle()
        return self._offset

    @property
    def namespace(self) -> Any:
        """The array library that records."""
        return xp

    shape = property(lambda self: self._shadow.shape)
    dtype = property(lambda self: self._shadow.dtype)
    strides = property(lambda self: self._shadow.strides)
    ndim = property(lambda self: self._shadow.ndim)
    size = property(lambda self: self._shadow.size)
    itemsize = property(lambda self: self._shadow.itemsize)
    nbytes = property(lambda self: self._shadow.nbytes)
    flags = property(lambda self: self._shadow.flags)
    base = None  # nothing but the trace changes it in place

    def __len__(self) -> int:
        return len(self._shadow)

    def __repr__(self) -> str:
        return f"<recorded {self.dtype}{list(self.shape)}>"

    # Views

    def _view(self, shadow: np.ndarray) -> Buffer:
        self.settle()
        return Buffer(
            self._storage, self._offset + _address(shadow) - _address(self._shadow), shadow
        )

    @property
    def T(self) -> Buffer:
        """The axes in reverse order."""
        return self._view(self._shadow.T)

    @property
    def mT(self) -> Buffer:
        """The last two axes swapped."""
        return self._view(self._shadow.swapaxes(-1, -2))

    def transpose(self, *axes: Any) -> Buffer:
        """Return the axes in another order."""
        return self._view(self._shadow.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> Buffer:
        """Return two axes in each other's place."""
        return self._view(self._shadow.swapaxes(first, second))

    def squeeze(self, axis: Any = None) -> Buffer:
        """Return it without axes of length 1."""
        return self._view(self._shadow.squeeze(axis))

    def reshape(self, *shape: Any) -> Buffer:
        """Return the elements in another shape, copied where no view will do."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        lengths = _lengths(self, tuple(map(operator.index, wanted)))
        if lengths == self.shape:
            return self
        if self.flags.c_contiguous:
            return Buffer(self.storage, self._offset, _shadow(lengths, self.dtype))
        strides = _merged(self._shadow, lengths)
        if strides is None:
            return self.copy().reshape(lengths)
        return Buffer(self.storage, self._offset, _shadow(lengths, self.dtype, strides))

    def ravel(self) -> Buffer:
        """Return the elements in one axis."""
        return self.reshape(-1)

    def __getitem__(self, index: Any) -> Buffer:
        items = index if isinstance(index, tuple) else (index,)
        for item in items:
            if not (item is None or item is Ellipsis or isinstance(item, (int, np.integer, slice))):
                raise not_recordable(f"indexing with {type(item).__name__}")
        if Ellipsis not in items:
            items = (*items, Ellipsis)  # a view of no dimension, where NumPy would read an element
        return self._view(self._shadow[items])

    def __setitem__(self, index: Any, value: Any) -> None:
        copy_to(self if index is Ellipsis else self[index], value)

    # Copies

    def astype(self, dtype: Any, copy: bool = True) -> Buffer:
        """Return the values in another dtype."""
        wanted = np.dtype(dtype)
        return self if wanted == self.dtype else _expression("astype", self, wanted)

    def copy(self, order: str = "C") -> Buffer:
        """Return the elements in C order in memory of their own."""
        if order != "C":
            raise not_recordable(f"a copy in order {order!r}")
        out = xp.empty(self.shape, self.dtype)
        copy_to(out, self)
        return out

    def fill(self, value: float) -> None:
        """Overwrite every element with a number."""
        active().record(_fill, (self, value), writes=[self], name="fill")

    # What cannot be known

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise not_recordable(
            f"reading the values of {self.dtype}{list(self.shape)} (print, float, item, numpy, if)"
        )

    item = tolist = __float__ = __int__ = __index__ = __bool__ = __array__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(np.ndarray, name):
            return functools.partial(getattr(xp, name), self)
        raise AttributeError(f"an array has no {name!r}")

    __hash__ = object.__hash__

    def __neg__(self) -> Buffer:
        return _expression("negative", self)

    def __pos__(self) -> Buffer:
        return self

    def __abs__(self) -> Buffer:
        return _expression("abs", self)

    def __invert__(self) -> Buffer:
        return _expression("invert", self)

    def __eq__(self, other: object) -> Any:
        return _expression("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return _expression("not_equal", self, other)


def _operators(symbol: str, name: str, reflected: bool) -> None:
    def forward(self: Buffer, other: Any) -> Buffer:
        return _expression(name, self, other)

    def backward(self: Buffer, other: Any) -> Buffer:
        return _expression(name, other, self)

    def in_place(self: Buffer, other: Any) -> Buffer:
        value = _expression(name, self, other)
        copy_to(self, value.astype(self.dtype))
        return self

    setattr(Buffer, f"__{symbol}__", forward)
    if reflected:
        setattr(Buffer, f"__r{symbol}__", backward)
        setattr(Buffer, f"__i{symbol}__", in_place)


for _symbol, _name in {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "mod": "remainder",
    "floordiv": "floor_divide",
}.items():
    _operators(_symbol, _name, True)
for _symbol in ("lt", "le", "gt", "ge"):
    _word = {"l": "less", "g": "greater"}[_symbol[0]]
    _operators(_symbol, _word + "_equal" * (_symbol[1] == "e"), False)


def address(buffer: Buffer) -> int:
    """Return what the address of a Buffer is sure to be a multiple of, as if it were that."""
    start = (
        0
        if buffer.storage.array is None
        else importlib.import_module("gpugrad.cuda.kernel").address(buffer.storage.array)
    )
    return int(start) + buffer.offset


def not_recordable(what: str) -> NotRecordable:
    """Return the error that says what a step did, and in which line."""
    engine = importlib.import_module("gpugrad.engine")
    trace = _current.get()
    inside = f" (in {trace.operations[-1]})" if trace is not None and trace.operations else ""
    return NotRecordable(
        f"{NAME}: {what} cannot be recorded{inside}, at {engine.user_line()}. A recorded step is a "
        "list of launches over static shapes: do it outside of the step, or with operations that "
        "have kernels"
    )


def _lengths(x: Buffer, shape: tuple[int, ...]) -> tuple[int, ...]:
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        missing = x.size // known if known else 0
        shape = tuple(missing if n == -1 else n for n in shape)
    if math.prod(shape) != x.size:
        raise ValueError(f"cannot reshape array of size {x.size} into shape {shape}")
    return shape


class _Placed:
    """What NumPy makes an array of at an address."""

    def __init__(self, like: np.ndarray, address: int, keep: Any = None) -> None:
        kind = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8"}[like.itemsize]
        self.keep = keep
        self.__array_interface__ = {
            "version": 3,
            "shape": like.shape,
            "strides": like.strides,
            "typestr": kind,
            "data": (address, False),
        }


def array_at(
    shape: Sequence[int], strides: Sequence[int], dtype: Any, address: int, keep: Any
) -> Any:
    """Return a NumPy array on memory at an address, which ``keep`` owns."""
    like = _shadow(shape, dtype, strides)
    array = np.asarray(_Placed(like, address, keep))
    return array if array.dtype == like.dtype else array.view(like.dtype)


def _merged(shadow: np.ndarray, shape: tuple[int, ...]) -> list[int] | None:
    """Return the strides of a view in another shape, None where there is no such view."""
    groups: list[list[int]] = []  # lengths and strides of axes that lie one behind the other
    for length, stride in zip(shadow.shape, shadow.strides, strict=True):
        if length == 1:
            continue
        if groups and groups[-1][1] == length * stride:
            groups[-1] = [groups[-1][0] * length, stride]
        else:
            groups.append([length, stride])
    strides: list[int] = []
    rest = list(reversed(groups))
    left, step = (rest.pop(0)) if rest else (1, shadow.itemsize)
    for length in reversed(shape):
        if length == 1:
            strides.append(step)
            continue
        if left == 1 and rest:
            left, step = rest.pop(0)
        if left % length:
            return None
        strides.append(step)
        left //= length
        step *= length
    return strides[::-1]


# Elementwise operations


def _symbol_of(value: Any, inputs: dict[Buffer, int], known: dict[Any, Any], top: bool) -> Any:
    """Return a value as an expression over numbered inputs."""
    if not isinstance(value, Buffer):
        return value
    found = known.get(id(value))
    if found is not None:
        return found
    if value._storage is not None:
        found = symbolic.argument(inputs.setdefault(value, len(inputs)), value.dtype)
    else:
        assert value._expression is not None
        op, args = value._expression
        if op == "astype":
            found = _symbol_of(args[0], inputs, known, False).astype(args[1])
        else:
            given = [_symbol_of(a, inputs, known, False) for a in args]
            found = getattr(symbolic.xp, op)(*given)
    known[id(value)] = found
    return found


def _expression(op: str, *args: Any) -> Buffer:
    """Return the result of an elementwise operation, to be computed when it is read."""
    given: list[Any] = []
    for a in args:
        if backend.is_array(a) and not isinstance(a, Buffer):
            a = active().lift(a) if a.ndim or not isinstance(a, np.ndarray) else a[()]
        given.append(a)
    arrays = [a for a in given if isinstance(a, Buffer)]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    for a in arrays:
        if a._storage is None and (a.shape != shape or a._operations > MOST_PENDING):
            a.settle()  # once is enough
    try:
        if op == "astype":
            dtype = given[1]
            symbolic.argument(0, arrays[0].dtype).astype(dtype)
        else:
            placed = [
                symbolic.argument(i, a.dtype) if isinstance(a, Buffer) else a
                for i, a in enumerate(given)
            ]
            dtype = getattr(symbolic.xp, op)(*placed).dtype
    except symbolic.Untraceable as error:
        names = ", ".join(str(getattr(a, "dtype", type(a).__name__)) for a in given)
        raise not_recordable(f"{op} of {names}: {error};") from None
    out = Buffer(None, 0, _shadow(shape, dtype), (op, tuple(given)))
    if not out.size:
        out._storage, out._expression = Storage(ARENA, 0), None
        return out
    for a in arrays:
        for source in _sources(a):
            source.readers.append(weakref.ref(out))
    return out


def _sources(value: Buffer) -> list[Storage]:
    """Return the storages an expression reads."""
    if value._storage is not None:
        return [value._storage]
    assert value._expression is not None
    return [s for a in value._expression[1] if isinstance(a, Buffer) for s in _sources(a)]


def _compute(out: Buffer) -> None:
    """Append the kernel that computes an expression, and give it memory."""
    inputs: dict[Buffer, int] = {}
    symbol = _symbol_of(out, inputs, {}, True)
    name = out._expression[0] if out._expression is not None else ""
    arrays = list(inputs)
    if symbol.op == "constant":  # such as the sign of zeros
        made = xp.full(out.shape, symbol.value, out.dtype)
        out._storage, out._offset = made._storage, made._offset
        out._expression = None
        return
    stored_as = out.dtype
    if stored_as == backend.bool_:
        raise not_recordable("a mask as a result")
    try:
        program = Program(name, [a.dtype for a in arrays], [symbol])
    except symbolic.Untraceable as error:
        raise not_recordable(f"{name}: {error};") from None
    found = program.run(arrays)
    if found is None:
        raise not_recordable(f"{name} of shapes {[a.shape for a in arrays]}")
    (made,) = found
    out._storage, out._offset, out._expression = made._storage, made._offset, None
    out._operations = 0


class Library:
    """The array library of Buffers: NumPy's names; what no kernel computes raises NotRecordable."""

    float32, float64, bool_ = backend.float32, backend.float64, backend.bool_

    def __getattr__(self, name: str) -> Any:
        if (
            name in symbolic.TEMPLATES
            or hasattr(symbolic.Library, name)
            or name
            in (
                "invert",
                "bitwise_and",
                "bitwise_or",
                "bitwise_xor",
                "logical_not",
            )
        ):
            return functools.partial(_expression, name)
        if name.startswith("__"):
            raise AttributeError(name)
        raise not_recordable(f"{name}")

    # New arrays

    @staticmethod
    def empty(shape: Any, dtype: Any = backend.float32) -> Buffer:
        """Return memory for a kernel to fill; outside of a trace that of a model without any."""
        return new(META if current() is None else ARENA, shape, dtype)

    def full(self, shape: Any, value: Any, dtype: Any = backend.float32) -> Buffer:
        """Return one number everywhere."""
        out = self.empty(shape, dtype)
        if out.size:
            out.fill(value)
        return out

    def zeros(self, shape: Any, dtype: Any = backend.float32) -> Buffer:
        """Return zeros."""
        return self.full(shape, 0, dtype)

    def ones(self, shape: Any, dtype: Any = backend.float32) -> Buffer:
        """Return ones."""
        return self.full(shape, 1, dtype)

    def empty_like(self, x: Any, dtype: Any = None) -> Buffer:
        """Return memory of the shape of x."""
        return self.empty(x.shape, dtype or x.dtype)

    def zeros_like(self, x: Any, dtype: Any = None) -> Buffer:
        """Return zeros in the shape of x."""
        return self.zeros(x.shape, dtype or x.dtype)

    def ones_like(self, x: Any, dtype: Any = None) -> Buffer:
        """Return ones in the shape of x."""
        return self.ones(x.shape, dtype or x.dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """Return x as a Buffer; a real array is lifted, a number becomes an array."""
        if not isinstance(x, Buffer):
            x = active().lift(x if backend.is_array(x) else np.asarray(x, dtype))
        return x if dtype is None else x.astype(dtype)

    def ascontiguousarray(self, x: Any, dtype: Any = None) -> Buffer:
        """Return x with its elements in C order."""
        x = self.asarray(x, dtype)
        return x.settle() if x.flags.c_contiguous else x.copy()

    # Views

    @staticmethod
    def broadcast_to(x: Buffer, shape: Sequence[int]) -> Buffer:
        """Return x repeated along new axes and those of length 1, without a copy."""
        return x._view(np.broadcast_to(x._shadow, tuple(shape)))

    @staticmethod
    def reshape(x: Buffer, shape: Any) -> Buffer:
        """Return the elements in another shape."""
        return x.reshape(shape)

    @staticmethod
    def transpose(x: Buffer, axes: Any = None) -> Buffer:
        """Return the axes in another order."""
        return x.transpose(axes)

    permute_dims = transpose

    @staticmethod
    def swapaxes(x: Buffer, first: int, second: int) -> Buffer:
        """Return two axes in each other's place."""
        return x.swapaxes(first, second)

    @staticmethod
    def moveaxis(x: Buffer, source: Any, destination: Any) -> Buffer:
        """Return axes moved to other places."""
        return x._view(np.moveaxis(x._shadow, source, destination))

    @staticmethod
    def expand_dims(x: Buffer, axis: Any) -> Buffer:
        """Return x with new axes of length 1."""
        return x._view(np.expand_dims(x._shadow, axis))

    @staticmethod
    def squeeze(x: Buffer, axis: Any = None) -> Buffer:
        """Return x without axes of length 1."""
        return x.squeeze(axis)

    @staticmethod
    def copy(x: Buffer) -> Buffer:
        """Return the elements in memory of their own."""
        return x.copy()

    def concatenate(self, arrays: Sequence[Any], axis: int = 0) -> Buffer:
        """Return arrays one behind the other."""
        given = [self.asarray(a) for a in arrays]
        axis %= given[0].ndim
        shape = list(given[0].shape)
        shape[axis] = sum(a.shape[axis] for a in given)
        out, start = self.empty(shape, given[0].dtype), 0
        for a in given:
            stop = start + a.shape[axis]
            copy_to(out[(slice(None),) * axis + (slice(start, stop),)], a)
            start = stop
        return out

    concat = concatenate

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Buffer:
        """Return arrays along a new axis."""
        return self.concatenate([self.expand_dims(self.asarray(a), axis) for a in arrays], axis)

    # Products and sums

    @staticmethod
    def matmul(x: Any, y: Any) -> Buffer:
        """Return the matrix product over the last two axes."""
        gemm = importlib.import_module("gpugrad.cuda.gemm").gemm
        return gemm(xp.asarray(x), xp.asarray(y))

    def sum(self, x: Buffer, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Buffer:
        """Return sums over axes, accumulated in float32."""
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        gone = [a % x.ndim for a in axes]
        wanted = np.dtype(dtype or x.dtype)
        if not x.size:
            out = self.zeros([1 if a in gone else n for a, n in enumerate(x.shape)], wanted)
        elif x.dtype not in DTYPE_CODES:
            raise not_recordable(f"sum of {x.dtype}")
        elif wanted in (x.dtype, backend.float32):
            out = sums(x, gone, wanted)
        else:
            out = sums(x, gone, backend.float32).astype(wanted)
        return out if keepdims else out.reshape([n for a, n in enumerate(x.shape) if a not in gone])

    def mean(
        self, x: Buffer, axis: Any = None, keepdims: bool = False, dtype: Any = None
    ) -> Buffer:
        """Return means over axes, accumulated in float32."""
        total = self.sum(x, axis, keepdims, backend.float32)
        return (total * (total.size / x.size)).astype(dtype or x.dtype)


xp = Library()


# Launches


def launch(
    source: Any,
    kernel: str,
    grid: Any,
    block: Any,
    args: Sequence[Any],
    shared_mem: int,
    reachable: Sequence[Any],
    written: Sequence[Any],
    defines: dict[str, object],
) -> None:
    """Append the launch of a kernel, its arguments checked as a launch would check them."""
    trace = active()
    for value in args:
        array = value.array if isinstance(value, Strided) else value
        if isinstance(array, Buffer):
            array.settle()
    parameters = importlib.import_module("gpugrad.cuda.source").signatures(source.text)[kernel]
    checked_sizes(kernel, grid, block, shared_mem)
    checked(kernel, parameters, args, defines)
    if not source.large:
        source.refuse_large(kernel, args)
    reads, writes = list(reachable), list(written)
    for parameter, value in zip(parameters, args, strict=True):
        array = value.array if isinstance(value, Strided) else value
        if backend.is_array(array):
            (reads if parameter.constant else writes).append(array)
    trace.record(
        source.launch,
        (kernel, grid, block, list(args)),
        {
            "shared_mem": shared_mem,
            "reachable": list(reachable),
            "written": list(written),
            **defines,
        },
        reads=reads,
        writes=writes,
        name=kernel,
    )


def product(
    run: Callable[..., Any], problem: Any, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any
) -> None:
    """Append a matrix product, which ``run(problem, ...)`` computes."""
    reads, writes = [a, b], [out]
    if problem.beta:
        reads.append(out)
    if backend.is_array(alpha):
        reads.append(alpha)
    if bias is not None:
        (writes if problem.epilogue in ("dgelu_bgrad", "bgrad") else reads).append(bias)
    if aux is not None:
        (writes if problem.epilogue == "gelu" else reads).append(aux)
    epilogue = f" {problem.epilogue}" if problem.epilogue else ""
    batch = f"{problem.batch}x" if problem.batch > 1 else ""
    active().record(
        run,
        (problem, a, b, out, bias, aux, alpha),
        reads=reads,
        writes=writes,
        name=f"gemm {batch}{problem.m}x{problem.n}x{problem.k}{epilogue}",
        flops=2 * problem.batch * problem.m * problem.n * problem.k,
    )


def copy_to(out: Buffer, value: Any) -> None:
    """Append a copy of a value, broadcast and cast, to the elements of out."""
    if not isinstance(value, Buffer):
        if not backend.is_array(value):
            if out.flags.c_contiguous:
                out.fill(value)
                return
            value = np.asarray(value, out.dtype)
        value = active().lift(value)
    source = xp.broadcast_to(value.astype(out.dtype), out.shape)
    if out.size:
        importlib.import_module("gpugrad.cuda.copy").copy_strided(source, out)


def _fill(array: Any, value: float) -> None:
    """Overwrite an array; zeros without a kernel."""
    if isinstance(array, np.ndarray) or value:
        array.fill(value)
    else:
        array.data.memset_async(0, array.nbytes)
