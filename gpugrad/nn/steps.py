"""Taking a tensor apart along an axis, in time and memory linear in its length backward too."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..engine import Output
from ..ops import asarray
from ..ops._axes import along
from ..registry import Node, state
from ..tensor import Tensor


class _Steps:
    """The operation behind steps: its gradient stacks those of all slices at once.

    Indexing each slice would make every one's gradient as large as the whole tensor.
    """

    name = "steps"
    slots = ("axis", "count")
    view = True

    def save(self, values: tuple) -> tuple:
        """Save the axis and its length."""
        return values

    def pull(self, node: Node, g: Any, xp: Any, recorded: bool, needed: set | None) -> list:
        """Return the slices' gradients stacked, zeros for a slice nobody used."""
        assert node.saved is not None
        axis, count = node.saved
        one = next(iter(g.values()))
        xp = xp if recorded else backend.xp_of(one)
        zeros = xp.zeros_like(one) if len(g) < count else None
        return [xp.stack([g.get(i, zeros) for i in range(count)], axis=axis)]


_steps = _Steps()


def steps(x: Any, axis: int = 0) -> list[Tensor]:
    """Return the slices of x (two or more axes) along an axis, without it, as views."""
    x = asarray(x)
    count = x.shape[axis]
    slices = [x._data[along(axis, i)] for i in range(count)]
    make_node = state.make_node
    if make_node is None or not x._requires_grad:
        return [Tensor._wrap(s, None) for s in slices]
    node = make_node(_steps, (x._node or x,), (axis, count), None)
    return [
        Tensor._wrap(s, make_node(Output("steps", i), (node,), (), None))
        for i, s in enumerate(slices)
    ]
