"""Tensor: an array, and the node that remembers how it was computed.

Operators and most methods (``x.exp()``, ``x.sum(axis=0)``) are attached from the registry by
``gpugrad.ops``; what is written out here is what has to do with the tensor itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend, engine, registry
from .backend import Array, DTypeLike
from .cuda import recording
from .registry import Node, describe, explained, state

_new = object.__new__


class Tensor:
    """A numpy or cupy array that gradients can flow through.

    ``Tensor(data)`` shares memory with an array it is given; ``gg.tensor(data)`` copies. Only
    floating dtypes can require grad. Raises TypeError for dtypes a tensor cannot hold.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_hooks", "_node", "_requires_grad")

    def __init__(
        self,
        data: Any,
        dtype: DTypeLike = None,
        device: str | None = None,
        requires_grad: bool = False,
    ) -> None:
        if isinstance(data, Tensor):
            data = data.data
        self._data: Array = backend.as_array(data, dtype, device)
        self._node: Node | None = None
        self._grad: Tensor | None = None
        self._hooks: list[Callable] | None = None
        self._requires_grad = False
        if registry.lift is not None:
            recording.wraps(self, data)
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def _wrap(data: Array, node: Node | None) -> Tensor:
        """Return the tensor of an operation's result, without any check."""
        tensor = _new(Tensor)
        tensor._data = data
        tensor._node = node
        tensor._requires_grad = node is not None
        tensor._grad = tensor._hooks = None
        return tensor

    if TYPE_CHECKING:  # operators and methods attached by gpugrad.ops

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...

    # What the array is

    @property
    def data(self) -> Array:
        """The raw numpy or cupy array. Changes made through it are not seen by the engine."""
        return self._data if registry.lift is None else recording.data_of(self)

    @data.setter
    def data(self, value: Any) -> None:
        if self._node is not None:
            raise RuntimeError(".data of a computed tensor cannot be replaced; use .detach() first")
        value = backend.as_array(value._data if isinstance(value, Tensor) else value)
        if self._requires_grad and not backend.is_float(value.dtype):
            raise TypeError(f".data of a tensor that requires grad must be floating: {value.dtype}")
        if registry.lift is None or not recording.assigned(self, value):
            self._data = value

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        """The element type, one of gg.float32, gg.bfloat16, gg.int64, ..."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return self._data.nbytes

    @property
    def device(self) -> str:
        """Where the array lives: "cpu" or "cuda:N"."""
        return backend.device_of(self._data)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        text = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        if self.dtype not in (backend.float32, backend.int64, backend.bool_):
            text += f", dtype={self.dtype}"
        if self.device != "cpu":
            text += f", device='{self.device}'"
        if self._node is not None:
            text += f", op={self._node.op.name}"
        elif self._requires_grad:
            text += ", requires_grad=True"
        return f"tensor({text})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 and spec else repr(self), spec)

    __hash__ = object.__hash__  # == compares elements, but a tensor is a key by identity

    # The graph

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to or through this tensor. Can be set on leaves."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None:
            if value:
                return
            raise RuntimeError("requires_grad of a computed tensor is True; use .detach()")
        if value and not backend.is_float(self._data.dtype):
            raise TypeError(
                f"requires_grad: a tensor of dtype {self.dtype} has no gradient "
                f"({describe(self)}); only floating dtypes do: convert with .astype(gg.float32)"
            )
        if registry.lift is not None:
            recording.touches(self)
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set requires_grad and return the tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether the tensor was made by the user rather than by a recorded operation."""
        return self._node is None

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient, a tensor of the same shape and dtype, or None."""
        return self._grad if registry.lift is None else recording.gradient_of(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f".grad must be a tensor or None, got {type(value).__name__}")
            if value.shape != self.shape or value.dtype != self.dtype:
                raise ValueError(
                    f".grad: {describe(value)} does not match the tensor, {describe(self)}"
                )
        if registry.lift is not None:
            recording.assigns_gradient(self)
        self._grad = value

    def backward(
        self,
        gradient: Any = None,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Add this tensor's gradient to ``.grad`` of every leaf it was computed from.

        ``gradient`` has the tensor's shape; without it the tensor must hold one element. The
        graph is freed unless ``retain_graph``; ``create_graph`` records the gradient itself.
        """
        engine.backward([self], [gradient], retain_graph, create_graph)

    def retain_grad(self) -> None:
        """Keep the gradient of this computed tensor in ``.grad`` too.

        It is that by the value after the last change in place.
        """
        if not self._requires_grad:
            raise RuntimeError("retain_grad: the tensor does not require grad")
        if self._node is None:
            return
        if not self._retaining():
            self.register_hook(_Retain(self))

    def _retaining(self) -> list[Hook]:
        """Return the handle of the hook of retain_grad, none if that was not called."""
        hooks = self._node.hooks or [] if self._node is not None else []
        return [Hook(hooks, h) for h in hooks if isinstance(h, _Retain) and h.tensor() is self]

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Hook:
        """Call ``hook(gradient)`` in backward; a tensor it returns replaces the gradient.

        Returns a handle whose ``remove()`` takes the hook away.
        """
        if not self._requires_grad:
            raise RuntimeError("register_hook: the tensor does not require grad")
        if not callable(hook):
            raise TypeError(f"register_hook: hook must be callable, got {hook!r}")
        if registry.lift is not None:
            recording.touches(self)
        holder: Any = self._node
        if holder is not None:
            hooks = holder.hooks = holder.hooks or []
        else:
            hooks = self._hooks = self._hooks or []
        hooks.append(hook)
        return Hook(hooks, hook)

    def detach(self) -> Tensor:
        """Return a tensor on the same memory that gradients do not flow through."""
        if registry.lift is not None:
            registry.lift_now((self,))
        return Tensor._wrap(self._data, None)

    # Leaving for other types

    def numpy(self) -> np.ndarray:
        """Return the data as numpy: the same memory on the CPU, a copy from a GPU.

        As in PyTorch, memory that is changed through the array before backward changes gradients,
        unnoticed.
        """
        if registry.lift is not None:
            recording.reads(self)
        return backend.to_numpy(self._data)

    def item(self) -> Any:
        """Return the only element as a Python number."""
        if registry.lift is not None:
            recording.reads(self)
        if self._data.size != 1:
            raise ValueError(f"item: the tensor has {self._data.size} elements, not one")
        return self._data.item()

    def tolist(self) -> Any:
        """Return nested lists of Python numbers."""
        if registry.lift is not None:
            recording.reads(self)
        return self._data.tolist()

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all()"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu" or self.ndim:
            raise TypeError(
                f"only integer tensors without dimensions are indices: {describe(self)}"
            )
        return int(self.item())

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        if self._requires_grad and state.make_node is not None:
            raise RuntimeError("a tensor that requires grad becomes an array by .detach().numpy()")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = getattr(registry.recorded, ufunc.__name__, None)
        if method != "__call__" or kwargs or function is None:
            return NotImplemented
        return function(*inputs)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return registry.recorded

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self._requires_grad:
            raise BufferError("a tensor that requires grad is exported by .detach()")
        return self._data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device == "cpu":
            raise AttributeError("a tensor on the CPU has no __cuda_array_interface__")
        return self._data.__cuda_array_interface__

    def __copy__(self) -> Tensor:
        return Tensor._like(self, self._data)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise RuntimeError("only leaf tensors can be deep-copied; use .detach() or .copy()")
        memo[id(self)] = copied = Tensor._like(self, self._data.copy())
        if self._grad is not None:
            copied._grad = Tensor._wrap(self._grad._data.copy(), None)
        return copied

    @staticmethod
    def _like(tensor: Tensor, data: Array) -> Tensor:
        copied = _new(type(tensor))
        copied._data, copied._node = data, tensor._node
        copied._requires_grad = tensor._requires_grad
        copied._grad = copied._hooks = None
        return copied

    # Devices and dtypes

    def to(self, target: Any = None, dtype: Any = None, *, device: str | None = None) -> Tensor:
        """Return the tensor on a device or in a dtype (itself if nothing changes); recorded.

        ``target`` is a device, a dtype, or a tensor whose device and dtype are meant; a dtype may
        follow a device. TypeError where one of them is given twice.
        """
        if isinstance(target, Tensor):
            if device is not None or dtype is not None:
                raise TypeError("to: a tensor stands for device and dtype; give it alone")
            device, dtype = target.device, target.dtype
        else:
            device, dtype = backend.destination(target, device, dtype)
        moved = self if device is None else registry.OPS["to_device"].function(self, device=device)
        return moved if dtype is None else moved.astype(dtype)

    def astype(self, dtype: DTypeLike, *, copy: bool = False) -> Tensor:
        """Return the tensor in another dtype; the gradient comes back in this tensor's dtype."""
        wanted = backend.as_dtype(dtype)
        if wanted == self._data.dtype and not copy:
            return self
        if not backend.is_float(wanted):
            if registry.lift is not None:
                registry.lift_now((self,))
            return registry.without_graph(self._data.astype(wanted))
        return registry.OPS["astype"].function(self, dtype=wanted)

    def cpu(self) -> Tensor:
        """Return the tensor on the CPU."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """Return the tensor on the current GPU."""
        return self.to("cuda")

    # Changing in place

    def _in_place(self, name: str, other: Any) -> Tensor:
        op = registry.OPS[name]
        grown = self._requires_grad or (isinstance(other, Tensor) and other._requires_grad)
        if state.make_node is not None and grown:
            return self._rebind(op.function(self, other), f"in-place {name}")
        if registry.lift is not None:
            recording.changes(self, other)
        value: Any = other._data if isinstance(other, Tensor) else other
        xp = backend.xp_of(self._data)
        try:
            if self.dtype == backend.bfloat16:  # ml_dtypes has no weak scalars
                is_recorded = isinstance(value, backend.Symbolic)
                if is_recorded:
                    value = value.astype(self.dtype, copy=False)
                else:
                    value = xp.asarray(value, dtype=self.dtype)
            elif xp is not np and isinstance(value, (list, tuple)):  # which CuPy does not take
                value = backend.as_array(value, device=self.device)
            getattr(xp, name)(self._data, value, out=self._data, casting="same_kind")
        except (ValueError, TypeError) as error:
            self._refuse_elsewhere(f"in-place {name}", "y", other)
            raise explained(error, f"in-place {name}", "xy", (self, value), {}) from error
        engine.mutations.record(self._data, f"in-place {name}")
        return self

    def _is_elsewhere(self, other: Any) -> bool:
        """Return whether this is on the CPU and an array or a tensor on a GPU, or the reverse."""
        arrays = self._data, other._data if isinstance(other, Tensor) else other
        if registry.lift is not None or any(isinstance(a, backend.Symbolic) for a in arrays):
            return False
        if not all(map(backend.is_array, arrays)):
            return False
        return isinstance(arrays[0], np.ndarray) is not isinstance(arrays[1], np.ndarray)

    def _refuse_elsewhere(self, what: str, name: str, other: Any) -> None:
        """Raise ValueError for an array or a tensor that is not on the device of this one."""
        if self._is_elsewhere(other):
            place = backend.device_of(other._data if isinstance(other, Tensor) else other)
            raise ValueError(
                f"{what}: 'x' is on {self.device} but {name!r} is on {place}; "
                "move one with .to(device)"
            )

    def _rebind(self, result: Tensor, what: str) -> Tensor:
        """Become ``result``: how a tensor changes in place while operations are recorded.

        The old array stays as it was for the nodes that saved it; a view of it would not see the
        change, so views are refused.
        """
        if registry.lift is not None:
            recording.rebinds(self, what)
        if self._node is None and self._requires_grad:
            raise RuntimeError(
                f"{what}: a leaf that requires grad cannot change while operations are recorded; "
                "wrap the update in `with gg.no_grad():`"
            )
        is_view = getattr(getattr(self._node, "op", None), "view", False)
        if is_view or (self._node is None and self._data.base is not None):
            raise RuntimeError(
                f"{what}: the tensor is a view of another, which would not be recorded; write the "
                "out-of-place operation (x = x + y), or change the viewed tensor itself"
            )
        if result.shape != self.shape or result.dtype != self.dtype:
            raise ValueError(
                f"{what}: the result, {describe(result)}, does not fit in {describe(self)}"
            )
        retaining = self._retaining()
        for handle in retaining:
            handle.remove()
        self._data, self._node = result._data, result._node
        self._requires_grad = result._requires_grad
        if retaining:
            self.retain_grad()
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        grown = self._requires_grad or (isinstance(value, Tensor) and value._requires_grad)
        if state.make_node is not None and grown:
            self._rebind(registry.recorded.put(self, index, value), "setitem")
            return
        if registry.lift is not None:
            recording.changes(self, value)
        raw = registry.recorded.raw_index(index)
        raw_value = value._data if isinstance(value, Tensor) else value
        if isinstance(value, Tensor) and raw_value.__class__ is not self._data.__class__:
            self._refuse_elsewhere("setitem", "value", value)
        try:
            if self._data.__class__ is np.ndarray:
                self._data[raw] = raw_value
            else:
                registry.recorded.raw_put(self._data, raw, raw_value)
        except (ValueError, TypeError, IndexError) as error:
            raise explained(error, "setitem", ("x", "value"), (self, raw_value), {}) from error
        engine.mutations.record(self._data, "setitem")

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the elements with those of source (broadcast, cast) and return the tensor.

        A source on another device is copied to this one.
        """
        if (
            isinstance(source, Tensor)
            and source._data.__class__ is not self._data.__class__
            and self._is_elsewhere(source)
        ):
            source = source.to(self.device)
        self[...] = source
        return self

    def fill_(self, value: float) -> Tensor:
        """Overwrite every element with a number and return the tensor."""
        self[...] = value
        return self

    def zero_(self) -> Tensor:
        """Overwrite every element with zero and return the tensor."""
        return self.fill_(0)


class Hook:
    """The handle of a registered hook."""

    def __init__(self, hooks: list[Callable], hook: Callable) -> None:
        self._hooks = hooks
        self._hook = hook

    def remove(self) -> None:
        """Take the hook away; does nothing the second time."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)
        self._hooks = []  # which may hold the same function once more


class _Retain:
    """The hook behind retain_grad; a weak reference, so that no node keeps its result alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)

    def __call__(self, g: Tensor) -> None:
        tensor = self.tensor()
        if tensor is not None:
            kept = registry.recorded.copy(g)
            tensor._grad = kept if tensor._grad is None else tensor._grad + kept


registry.Tensor = Tensor
