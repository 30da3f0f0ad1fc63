"""Tensors from outside of a step: what they came with, and what the step does to them."""

from __future__ import annotations

from typing import Any

from .buffer import Buffer
from .shadow import dense


class Leaf:
    """A tensor that was there before the step, which uses or changes it.

    While the step is recorded the tensor holds Buffers: ``buffer`` stands for its array until the
    step assigns ``.data``, ``slot`` for the gradient it comes with, if any: memory of the recording
    into which each run copies what there is by then. ``observed`` says that the step has looked for
    that gradient, ``assigned`` that it has set another one without a look, so that it does not
    matter what there was.
    """

    def __init__(self, tensor: Any, buffer: Buffer) -> None:
        self.tensor = tensor
        self.array = tensor._data
        self.gradient = tensor._grad
        self.requires_grad: bool = tensor._requires_grad
        self.hooks = tuple(tensor._hooks or ())
        self.buffer = buffer
        self._strides = self._order = None
        if buffer.by_numpy and tensor._grad is not None:  # NumPy sums in the order of its axes
            array = tensor._grad._data
            self._strides, self._order = array.strides, dense(array)
        self.slot: Buffer | None = None
        self.observed = self.assigned = False

    def holds(self) -> bool:
        """Return whether the tensor is as it was, as far as the step looked."""
        tensor, strides = self.tensor, self._strides
        return (
            tensor._data is self.array
            and tensor._requires_grad is self.requires_grad
            and tuple(tensor._hooks or ()) == self.hooks
            and (not self.observed or (tensor._grad is None) is (self.gradient is None))
            and (
                not self.observed
                or strides is None
                or tensor._grad._data.strides == strides
                or dense(tensor._grad._data) == self._order
            )
        )

    def observe(self) -> None:
        """Note that the step looks whether there is a gradient, or at its values."""
        self.observed = self.observed or not self.assigned

    def assign(self) -> None:
        """Note that the step sets another gradient."""
        self.assigned = self.assigned or not self.observed
