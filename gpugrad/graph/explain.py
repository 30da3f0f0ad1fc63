"""Explain a gradient: the paths from the result to a leaf, each with its product.

The chain rule on a graph: the gradient of a leaf is the sum over all paths from the root to it of
the product of the local derivatives along the path (Bauer 1974). For arrays the product is one of
vector-Jacobian products. The number of paths can be exponential in the number of operations, so
paths are grouped: a group is the end of a path and stands for all ways from the root to where that
end begins, whose sum the reverse sweep has computed already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import backend, engine
from ..engine import Output
from ..registry import Node
from ..tensor import Tensor
from .summary import named, number, summary
from .sweep import Sweep, pull, sweep


@dataclass(frozen=True)
class Path:
    """One path from the root to a leaf, or a group of paths with a common end.

    ``count`` is how many paths it stands for; ``names`` are the operations from the root (or from
    where the common end begins) to the leaf; ``factors`` the local derivatives between them, None
    where one is not a number; ``start`` the gradient that arrives at the first of the names;
    ``product`` what the path adds to the gradient of the leaf.
    """

    names: tuple[str, ...]
    factors: tuple[float | None, ...]
    start: Tensor
    product: Tensor
    count: int

    def __str__(self) -> str:
        way = " → ".join(self.names)
        if self.count > 1:
            way = f"{self.count:,} paths to {way}"
        value = summary(self.product._data)
        if None in self.factors:
            return f"{way}:  {value}"
        start = "" if self.count == 1 and self.start.item() == 1 else self.start.item()
        terms = [number(f) for f in (start, *self.factors) if f != ""]
        product = " · ".join(f"({t})" if t.startswith("-") else t for t in terms)
        return f"{way}:  {product} = {value}"


@dataclass(frozen=True)
class Explanation:
    """Paths whose products sum to ``gradient`` (to rounding), and how many there are in all."""

    title: str
    gradient: Tensor
    paths: tuple[Path, ...]
    count: int

    def __str__(self) -> str:
        noun = "path" if self.count == 1 else "paths"
        head = f"{self.title} = {summary(self.gradient._data)}: {self.count:,} {noun}"
        if len(self.paths) < self.count:
            head += f" in {len(self.paths)} groups"
        return "\n".join([head, *(f"  {path}" for path in self.paths)])


Edge = tuple[Node, int]  # an operation and the position of a parent


class _Group(NamedTuple):
    """The end of paths: the edges from its first operation down to the leaf."""

    edges: tuple[Edge, ...]
    products: tuple[Any, ...]  # what flows below each of the edges

    @property
    def head(self) -> Node:
        return self.edges[0][0]


def explain(
    root: Tensor, leaf: Tensor, names: Any = None, *, gradient: Any = None, limit: int = 16
) -> Explanation:
    """Return the paths along which the gradient of ``root`` reaches ``leaf``.

    ``leaf`` may be an intermediate result. If there are more paths than ``limit``, those that end
    alike are taken together, the largest contributions shown in most detail: at most ``limit``
    groups unless the last step alone has more ways. ``names`` and ``gradient`` are as for
    `capture`; the graph is left alone.

    Raises TypeError for what is no tensor, ValueError if ``leaf`` has no part in ``root``,
    RuntimeError where `capture` does.
    """
    for what, t in (("root", root), ("leaf", leaf)):
        if not isinstance(t, Tensor):
            raise TypeError(f"explain: the {what} must be a tensor, got {type(t).__name__}")
    if limit < 1:
        raise ValueError(f"explain: limit must be at least 1, got {limit}")
    end = leaf._node or leaf
    swept = sweep(root, gradient, "explain")
    if end not in swept.gradients:
        raise ValueError(
            f"explain: the root does not depend on the leaf {tuple(leaf.shape)}; it must require "
            "grad and be part of the computation"
        )
    if end is (root._node or root):
        raise ValueError("explain: root and leaf are the same tensor, with gradient 1")
    with engine.no_grad(), np.errstate(all="ignore"):
        return _Explainer(root, end, named(names).names, swept, limit).explanation()


class _Explainer:
    """Splits groups of paths until there are enough of them.

    Each output of an operation with several is an operation of its own here: not every argument
    need lead to every output.
    """

    def __init__(
        self, root: Tensor, end: Any, names: dict[Any, str], swept: Sweep, limit: int
    ) -> None:
        self.root = root._node
        self.end = end
        self.names = names
        self.gradients = swept.gradients
        self.limit = limit
        self.parts: dict[Edge, Any] = {}
        self.users: dict[Any, list[Edge]] = {}
        self.counts: dict[Any, int] = {self.root: 1}  # of paths from the root
        for node in swept.order:
            if isinstance(self.gradients[node], dict):
                continue
            for i, parent in enumerate(_operation(node).parents):
                part = swept.parts.get((node, i))
                if isinstance(node.op, Output):
                    part = _pull(node, self.gradients[node], i)
                if part is not None:
                    self.parts[node, i] = part
                    self.users.setdefault(parent, []).append((node, i))
                    self.counts[parent] = self.counts.get(parent, 0) + self.counts[node]

    def explanation(self) -> Explanation:
        """Return the groups, the largest contribution first."""
        groups = [_Group((edge,), (self.parts[edge],)) for edge in self.users[self.end]]
        while True:
            divisible = [
                (_norm(group.products[-1]), -i)
                for i, group in enumerate(groups)
                if group.head is not self.root
                and len(groups) + len(self.users[group.head]) - 1 <= self.limit
            ]
            if not divisible:
                break
            i = -max(divisible)[1]
            groups[i : i + 1] = self._split(groups[i])
        paths = [self._path(group) for group in groups]
        paths.sort(key=lambda path: -_norm(path.product._data))
        title = f"d{self.names.get(self.root, 'root')}/d{self.names.get(self.end, 'leaf')}"
        total = Tensor._wrap(self.gradients[self.end], None)
        return Explanation(title, total, tuple(paths), self.counts[self.end])

    def _split(self, group: _Group) -> list[_Group]:
        """Return a group for every way into its first operation."""
        groups = []
        for edge in self.users[group.head]:
            products = [self.parts[edge]]
            for node, i in group.edges:
                products.append(_pull(node, products[-1], i))
            groups.append(_Group((edge, *group.edges), tuple(products)))
        return groups

    def _path(self, group: _Group) -> Path:
        called = [self._called(node) for node, _ in group.edges]
        return Path(
            (*called, self.names.get(self.end, "leaf")),
            tuple(self._factor(edge) for edge in group.edges),
            Tensor._wrap(self.gradients[group.head], None),
            Tensor._wrap(group.products[-1], None),
            self.counts[group.head],
        )

    def _factor(self, edge: Edge) -> float | None:
        """Return the local derivative, if it is one number."""
        node, i = edge
        g = self.gradients[node]
        if g.size != 1 or self.parts[edge].size != 1:
            return None
        return float(_pull(node, backend.xp_of(g).ones_like(g), i).item())

    def _called(self, node: Node) -> str:
        """Return the name of a result, or that of its operation."""
        output = f"[{node.op.index}]" if isinstance(node.op, Output) else ""
        return self.names.get(node, _operation(node).op.name + output)


def _operation(node: Node) -> Node:
    """Return the node whose parents a result was computed from."""
    return node.parents[0] if isinstance(node.op, Output) else node


def _pull(node: Node, g: Any, i: int) -> Any:
    """Return what the gradient of one result passes on to the i-th parent, None if nothing."""
    operation = _operation(node)
    upstream = g if operation is node else {node.op.index: g}
    return pull(operation, upstream, "explain", {operation.parents[i]})[i]


def _norm(g: Any) -> float:
    values = backend.to_numpy(g).astype(np.float64)
    norm = float(np.sqrt((values * values).sum()))
    return math.inf if math.isnan(norm) else norm
