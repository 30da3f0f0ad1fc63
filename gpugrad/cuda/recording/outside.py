"""Arrays and tensors that were there before a step, and those that it makes of real arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import backend
from ..kernel import address as address_of
from .buffer import GRADIENT, INPUT, REAL, Buffer, Storage, new
from .context import described, held, not_recordable
from .leaves import Leaf
from .lifted import Held, lifted_class
from .memory import Regions, storage_of
from .shadow import dense, shadow_of


class Outside:
    """The Buffers that stand for real arrays while a step is recorded.

    Tensors from outside hold them until ``restore``. An array that the step makes itself is a
    constant: what is computed of such integers alone is computed once, and where the step changes
    one, it is made anew at each run.
    """

    buffer: type[Buffer] = Buffer  # the class of what is recorded

    def __init__(self) -> None:
        self.begun = 0  # nodes with a smaller number are from outside
        self._lifted: dict[int, Buffer] = {}  # real arrays, by their id
        self._memory: dict[int, Storage] = {}  # by the id of the array that owns it
        self._anew: dict[int, Storage] = {}  # what is made anew of it, where the step makes it
        self._regions = Regions()
        self._outside: set[Storage] = set()  # real memory of tensors that were there before
        self._wrapped: set[Storage] = set()  # real memory that the step makes tensors of
        self.leaves: dict[Any, Leaf] = {}  # tensors that were there before, as they were
        self.held: Held = {}  # what these hold for the thread that records
        self.made: set[Any] = set()  # tensors that the step makes of real arrays
        self.created: dict[int, Any] = {}  # real arrays that the step makes, by their id
        self.changed: set[int] = set()  # ids of those of them that it changes

    def lift(self, array: Any) -> Buffer:
        """Return the Buffer that stands for a real array, for one array always the same."""
        found = self._lifted.get(id(array))
        if found is None:
            base = backend.memory_base(array)  # views of one memory are views of one storage
            memory = self._memory.get(id(base))
            if memory is None:
                memory = self._memory[id(base)] = storage_of(base)
                if id(base) in self.created:
                    self._anew[id(base)] = self._made_anew(memory)
                else:
                    self._regions.add(memory)
            offset = address_of(array) - memory.start
            shadow = shadow_of(array.shape, array.dtype, array.strides)
            found = self.buffer(self._anew.get(id(base), memory), offset, shadow)
            found.original = array  # held, or its id might become another's
            self._lifted[id(array)] = found
        return found

    def uses_array(self, array: Any) -> bool:
        """Return whether a launch may read or write a real array."""
        return id(backend.memory_base(array)) in self._memory

    def _made_anew(self, constant: Storage) -> Storage:
        """Return temporary memory that gets the values of a constant at each run."""
        whole = self.buffer(constant, 0, shadow_of((constant.nbytes,), np.uint8))
        return whole.copy().storage

    def lift_tensors(self, tensors: Sequence[Any]) -> None:
        """Give tensors a Buffer for their array, until ``restore``, if one has to be recorded."""
        given = [t for t in tensors if hasattr(t, "_requires_grad")]
        if not all(map(self._is_constant, given)):
            for tensor in given:
                self.lift_tensor(tensor)

    def _is_constant(self, tensor: Any) -> bool:
        """Return whether the step makes these integers or booleans, and has not changed them.

        What is computed of such alone is computed once.
        """
        array = tensor._data
        if isinstance(array, backend.Symbolic) or backend.is_float(array.dtype):
            return False
        base = id(backend.memory_base(array))
        return base in self.created and base not in self.changed

    def lift_tensor(self, tensor: Any) -> None:
        """Give a tensor a Buffer for its array, and one for its gradient, until ``restore``."""
        array = tensor._data
        if isinstance(array, backend.Symbolic):
            return
        node = tensor._node
        if node is not None and node.number < self.begun:
            raise not_recordable(f"a graph from outside of the step (that of {described(tensor)})")
        buffer = self.lift(array)
        if tensor in self.made or node is not None:
            self._wrapped.add(buffer.storage)
        elif id(backend.memory_base(array)) not in self.created:
            self._outside.add(buffer.storage)
            leaf = Leaf(tensor, buffer)
            self.held[id(tensor)] = {"_data": buffer, "_grad": self._slot(leaf)}
            self.leaves[tensor] = leaf
            tensor.__class__ = lifted_class(tensor.__class__, held)
            return
        tensor._data = buffer

    def _slot(self, leaf: Leaf) -> Any:
        """Return the tensor that stands for the gradient a leaf comes with, None for none."""
        gradient = leaf.gradient
        if gradient is None or isinstance(gradient._data, backend.Symbolic):
            return gradient
        if gradient._node is not None:
            raise not_recordable(f"a gradient with a graph (that of {described(leaf.tensor)})")
        strides = dense(gradient._data)
        leaf.slot = new(GRADIENT, gradient.shape, gradient.dtype, self.buffer, strides)
        return type(gradient)._wrap(leaf.slot, None)

    def restore(self) -> None:
        """Let the lifted tensors hold what they came with."""
        for leaf in self.leaves.values():
            leaf.tensor.__class__ = leaf.tensor.__class__.__base__
            leaf.tensor._requires_grad = leaf.requires_grad
        self.held.clear()

    def own(self, tensor: Any) -> None:
        """Let a tensor be changed: a constant that the step makes is made anew at each run."""
        if not isinstance(tensor._data, backend.Symbolic):
            base = id(backend.memory_base(tensor._data))
            if base in self.created:
                self.changed.add(base)
        self.lift_tensor(tensor)

    @property
    def place(self) -> str | None:
        """Where the tensors from outside are, those on the CPU that nothing changes aside."""
        places = {backend.device_of(leaf.array) for leaf in self.leaves.values()}
        if len(places) > 1:
            places.discard("cpu")  # constants, which will be copied
        return min(places, default=None)

    def refuse_to_change(self, buffer: Buffer) -> None:
        """Raise NotRecordable where a change would be lost, or pile up from run to run."""
        storage = buffer.storage
        if storage.kind == INPUT:
            raise not_recordable(
                f"changing an argument in place ({described(buffer)}; x = x + 1 makes another),"
            )
        array = storage.array if buffer.original is None else buffer.original
        if storage.kind == REAL and not getattr(array.flags, "writeable", True):
            raise not_recordable(f"changing {described(buffer)}, a read-only array,")
        if storage in self._wrapped and storage not in self._outside and storage.kind == REAL:
            raise not_recordable(
                f"changing {described(buffer)}, a tensor on an array which may be the step's own "
                "or not (gg.tensor makes a copy, which is),"
            )
