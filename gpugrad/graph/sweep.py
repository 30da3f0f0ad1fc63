"""One reverse sweep that remembers what flowed along every edge, and frees nothing.

The engine keeps the gradients of leaves and forgets the rest on the way; a picture or an
explanation of a gradient needs the rest. Order, accumulation and the pullbacks are the engine's, so
the sums at the leaves have the bits of ``.grad`` (but for kernels that fuse pullbacks, which round
elsewhere). Hooks are not called: they may have effects.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import backend, engine
from ..registry import Node
from ..tensor import Tensor


class Sweep(NamedTuple):
    """What a reverse sweep computed.

    ``order`` are the nodes, newest first; ``gradients`` the sum that arrived at a node or leaf;
    ``parts[node, i]`` what the node passed on to its i-th parent. Arrays, or {output: array} at an
    operation with several outputs.
    """

    order: list[Node]
    gradients: dict[Any, Any]
    parts: dict[tuple[Node, int], Any]


def sweep(root: Tensor, gradient: Any, where: str) -> Sweep:
    """Go back from a tensor, starting with ``gradient`` (None means 1 for a single element).

    Raises RuntimeError if ``root`` does not require grad, has several elements and no gradient, or
    if an operation was freed by an earlier backward pass.
    """
    with engine.no_grad(), np.errstate(all="ignore"):
        start: Any = root._node or root
        gradients = {start: engine.seed_of(root, gradient, where)}
        parts: dict[tuple[Node, int], Any] = {}
        order = engine.reachable([start])
        for node in order:
            for i, part in enumerate(pull(node, gradients[node], where)):
                if part is None:
                    continue
                parts[node, i] = part
                parent = node.parents[i]
                gradients[parent] = add(gradients[parent], part) if parent in gradients else part
    return Sweep(order, gradients, parts)


def pull(node: Node, g: Any, where: str, needed: set | None = None) -> list:
    """Return what one operation passes on to each of its parents for the gradient ``g``.

    With ``needed`` only parents in that set, None for the others.
    """
    if node.saved is None:
        raise RuntimeError(
            f"{where}: what {node.op.name} saved was freed by an earlier backward pass; call it "
            "before backward, or pass retain_graph=True to backward"
        )
    engine.mutations.check(node, node.saved)
    some = next(iter(g.values())) if isinstance(g, dict) else g
    xp = backend.xp_of(some)
    pulled = node.op.pull(node, g, xp, False, needed)
    if node.shapes is not None:
        pulled = [
            p if p is None or p.shape == shape else engine.unbroadcast(xp, p, shape)
            for p, shape in zip(pulled, node.shapes, strict=True)
        ]
    return [engine.as_array(p) for p in pulled]


def add(x: Any, y: Any) -> Any:
    """Return the sum of two gradients, which for an operation with several outputs are dicts."""
    if not isinstance(y, dict):
        return engine.as_array(x + y)
    return {i: x[i] + y[i] if i in x and i in y else x.get(i, y.get(i)) for i in {*x, *y}}
