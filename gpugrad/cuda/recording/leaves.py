"""Tensors from outside of a step: what they came with, and what the step does to them."""

from __future__ import annotations

from typing import Any

from .buffer import Buffer


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
        self._layout = self._layout_of(tensor._grad)
        self.slot: Buffer | None = None
        self.observed = self.assigned = False

    def holds(self) -> bool:
        """Return whether the tensor is as it was, as far as the step looked."""
        tensor = self.tensor
        return (
            tensor._data is self.array
            and tensor._requires_grad is self.requires_grad
            and tuple(tensor._hooks or ()) == self.hooks
            and (not self.observed or self._layout_of(tensor._grad) == self._layout)
        )

    def observe(self) -> None:
        """Note that the step looks whether there is a gradient, or at its values."""
        self.observed = self.observed or not self.assigned

    def assign(self) -> None:
        """Note that the step sets another gradient."""
        self.assigned = self.assigned or not self.observed

    def _layout_of(self, gradient: Any) -> Any:
        """Return the strides of a gradient, which matter to NumPy alone; None for no gradient."""
        if gradient is None:
            return None
        return gradient._data.strides if self.buffer.by_numpy else ()
