"""Module: parameters, buffers and other modules as plain attributes, and what walks over them.

A module needs no registration: its parameters are the attributes that are a Parameter, its
children those that are a Module, found when somebody asks. So ``__init__`` may set them in any
order, and an attribute set twice is simply replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from .. import backend, registry
from ..cuda import recording
from ..ops import zeros_like
from ..registry import describe
from ..tensor import Tensor
from .parameter import Parameter
from .state import LoadedKeys, load

Self = TypeVar("Self", bound="Module")
_NOTHING: Mapping[str, bool] = MappingProxyType({})


def _no_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what the module computes; to be defined in subclasses."""
    raise NotImplementedError(f"{type(self).__name__} does not define forward")


class Module:
    """Base of layers and models: set parameters and modules as attributes, define ``forward``.

    Calling the module calls ``forward``. Names are joined with dots (``"mlp.0.weight"``) as in
    PyTorch.
    """

    changes: ClassVar[int] = 0  # of attributes and parts, over all modules
    _buffers: Mapping[str, bool] = _NOTHING  # name -> whether it is part of the state dict
    forward: Callable[..., Any] = _no_forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if registry.lift is not None:
            recording.uses(self)
        return self.forward(*args, **kwargs)

    @property
    def training(self) -> bool:
        """Whether layers such as Dropout are active: see train, eval and ``evaluating``."""
        return self.__dict__.get("training", True) and not registry.state.evaluating

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["training"] = mode

    def held(self) -> dict[str, Any]:
        """Return what a recorded step depends on: attributes, parts and mode."""
        return {**vars(self), "training": self.training}

    def __setattr__(self, name: str, value: Any) -> None:
        replaced = self.__dict__.get(name)
        if (
            isinstance(replaced, Parameter)
            and isinstance(value, Tensor)
            and not isinstance(value, Parameter)
        ):
            raise TypeError(
                f"{type(self).__name__}.{name} is a Parameter; a plain tensor in its place would "
                "not be trained. Assign a Parameter or None, or copy into it with .copy_() under "
                "no_grad"
            )
        object.__setattr__(self, name, value)
        Module.changes += 1

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        Module.changes += 1

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Set an attribute to a Parameter or None: the same as an assignment."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"register_parameter: {name!r} must be a Parameter or None")
        setattr(self, name, parameter)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Set an attribute to a tensor that is moved and (if persistent) saved, but not trained."""
        if tensor is not None and (not isinstance(tensor, Tensor) or isinstance(tensor, Parameter)):
            kind = type(tensor).__name__
            raise TypeError(f"register_buffer: {name!r} must be a plain tensor or None, got {kind}")
        if name not in self._buffers and hasattr(self, name):
            raise KeyError(f"register_buffer: {type(self).__name__} already has {name!r}")
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, tensor)

    # What is inside

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for the modules directly inside this one."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Yield the modules directly inside this one."""
        for _, module in self.named_children():
            yield module

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for this module and all inside it, outer before inner.

        A module used twice comes once, under its first name, unless remove_duplicate is False.
        """
        yield from self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """Yield this module and all inside it, each once."""
        for _, module in self.named_modules():
            yield module

    def _own_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value

    def _own_buffers(self, persistent: bool = False) -> Iterator[tuple[str, Tensor]]:
        for name, is_persistent in self._buffers.items():
            tensor = self.__dict__.get(name)
            if not isinstance(tensor, Tensor) or isinstance(tensor, Parameter):
                continue
            if is_persistent or not persistent:
                yield name, tensor

    def _named(
        self,
        own: Callable[[Module], Iterator[tuple[str, Tensor]]],
        prefix: str,
        recurse: bool,
        remove_duplicate: bool,
    ) -> Iterator[tuple[str, Any]]:
        walk = self.named_modules(prefix, remove_duplicate) if recurse else [(prefix, self)]
        seen: set[int] = set()
        for path, module in walk:
            for name, tensor in own(module):
                if remove_duplicate:
                    if id(tensor) in seen:
                        continue
                    seen.add(id(tensor))
                yield (f"{path}.{name}" if path else name), tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter); one used in several places comes once, by its first name."""
        return self._named(Module._own_parameters, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters of this module and (if recurse) of all inside it, each once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, buffer), each once."""
        return self._named(Module._own_buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers of this module and (if recurse) of all inside it, each once."""
        for _, tensor in self.named_buffers(recurse=recurse):
            yield tensor

    # Saving and loading

    def _state(self, prefix: str = "") -> dict[str, Tensor]:
        """Return every name of the state dict and the tensor behind it, tied ones repeated."""
        return {
            f"{path}.{name}" if path else name: tensor
            for path, module in self.named_modules(prefix, remove_duplicate=False)
            for own in (module._own_parameters(), module._own_buffers(persistent=True))
            for name, tensor in own
        }

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Return all parameters and persistent buffers by name, on the module's own memory.

        A tied parameter is listed under each of its names. Names begin with ``prefix`` and a dot,
        with which, as in PyTorch, the prefix may end.
        """
        state = self._state(prefix.removesuffix("."))
        return {name: tensor.detach() for name, tensor in state.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadedKeys:
        """Copy tensors or arrays into the parameters and buffers of these names.

        Values are cast to the dtype and device of their target, bfloat16 from PyTorch or from
        ``numpy.savez`` too. A tied parameter needs only one of its names. Raises ValueError naming
        every shape that differs, every value too large for the dtype and (if strict) every missing
        and unexpected name; nothing has changed then.
        """
        return load(type(self).__name__, self._state(), state_dict, strict)

    # Changing all of it

    def apply(self: Self, function: Callable[[Module], object]) -> Self:
        """Call function on every module inside this one, then on this one, and return it."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Set ``training`` here and in every module inside, and return the module."""
        if not isinstance(mode, bool):
            raise TypeError(f"train: mode must be True or False, got {mode!r}")
        for module in self.modules():
            if vars(module).get("training", True) is not mode:
                module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Switch Dropout and the like off, here and in every module inside."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Set requires_grad of every parameter and return the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or with set_to_none=False make them zeros."""
        for parameter in self.parameters():
            kept = not set_to_none and parameter.grad is not None
            parameter.grad = zeros_like(parameter) if kept else None

    def to(self: Self, target: Any = None, dtype: Any = None, *, device: str | None = None) -> Self:
        """Move parameters, gradients and buffers to a device or a floating dtype, in place.

        ``target`` is a device or a dtype; a dtype may follow a device. Integer buffers keep their
        dtype. An optimiser must be made after the move.
        """
        device, dtype = backend.destination(target, device, dtype)
        if dtype is not None and not backend.is_float(backend.as_dtype(dtype)):
            raise TypeError(f"to: a module is converted to floating dtypes only, got {dtype!r}")

        def moved(tensor: Tensor) -> Tensor:
            is_float = backend.is_float(tensor.dtype)
            return tensor.to(device=device, dtype=dtype if is_float else None).detach()

        for tensor in (*self.parameters(), *self.buffers()):
            new = moved(tensor)
            grad = None if tensor.grad is None else moved(tensor.grad)
            tensor.data = new
            tensor.grad = grad
        return self

    def cpu(self: Self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self: Self) -> Self:
        """Move to the current GPU."""
        return self.to("cuda")

    # Printing

    def extra_repr(self) -> str:
        """Return what repr shows between the parentheses of this module itself."""
        return ""

    def _child_lines(self) -> Iterator[str]:
        for name, child in self.named_children():
            yield f"({name}): {child!r}"

    def __repr__(self) -> str:
        name, extra = type(self).__name__, self.extra_repr()
        children = list(self._child_lines())
        if not children:
            return f"{name}({extra})"
        lines = "\n".join([extra] * bool(extra) + children).split("\n")
        return "\n".join([f"{name}(", *(f"  {line}" for line in lines), ")"])


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Make every module evaluate in this thread, whatever its mode; other threads may train it."""
    outer, registry.state.evaluating = registry.state.evaluating, True
    try:
        yield
    finally:
        registry.state.evaluating = outer


_forwards: dict[type, Any] = {}
_call = Module.__call__


def keep_forward(*kinds: type[Module]) -> None:
    """Note what the forward of these kinds is: see ``plain``."""
    _forwards.update((kind, kind.forward) for kind in kinds)


def plain(module: Any, kind: type[Module]) -> bool:
    """Return whether a module, which is used now, computes what its kind does.

    Not where a subclass, or somebody's patch of an object or a class, has another ``forward`` or
    ``__call__``. Else the parameters say what a call returns, and it may be computed together with
    others. ``keep_forward`` names the kinds.
    """
    if getattr(type(module), "forward", None) is not _forwards[kind] or "forward" in vars(module):
        return False
    if type(module).__call__ is not _call:
        return False
    if registry.lift is not None:
        recording.uses(module)
    return True


def shape_error(module: Module, expected: str, x: Any) -> ValueError:
    """Return the error for an input that does not fit a layer: names it and both shapes."""
    return ValueError(f"{module!r}: input must have shape {expected}, got {describe(x)}")
