"""Explain a gradient: the paths from the result to a leaf, each with its product.

The chain rule on a graph: the gradient of a leaf is the sum over all paths from the root to it of
the product of the local derivatives along the path (Bauer 1974). For arrays the product is one of
vector-Jacobian products. The number of paths can be exponential in the number of operations, so
paths are grouped: a group is the end of a path and stands for all ways from the root to where that
end begins, whose sum the reverse sweep has computed already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import backend, engine
from ..engine import Output
from ..registry import Node
from ..tensor import Tensor
from .summary import names_of, number, summary
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


class _Group(NamedTuple):
    """The end of paths: edges (node, position) from its first node down to the leaf."""

    edges: tuple[tuple[Node, int], ...]
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
        return _Explainer(root, end, names_of(names), swept, limit).explanation()


class _Explainer:
    """Splits groups of paths until there are enough of them."""

    def __init__(
        self, root: Tensor, end: Any, names: dict[Any, str], swept: Sweep, limit: int
    ) -> None:
        self.root = root._node
        self.end = end
        self.names = names
        self.swept = swept
        self.limit = limit
        self.users: dict[Any, list[tuple[Node, int]]] = {}
        for node, i in swept.parts:
            self.users.setdefault(node.parents[i], []).append((node, i))
        self.counts: dict[Any, int] = {self.root: 1}  # of paths from the root
        for node in swept.order:
            for i, parent in enumerate(node.parents):
                if (node, i) in swept.parts:
                    self.counts[parent] = self.counts.get(parent, 0) + self.counts[node]

    def explanation(self) -> Explanation:
        """Return the groups, the largest contribution first."""
        groups = [_Group((edge,), (self.swept.parts[edge],)) for edge in self.users[self.end]]
        while True:
            open_groups = [
                (_norm(group.products[-1]), -i)
                for i, group in enumerate(groups)
                if group.head is not self.root
                and len(groups) + len(self.users[group.head]) - 1 <= self.limit
            ]
            if not open_groups:
                break
            i = -max(open_groups)[1]
            groups[i : i + 1] = self._split(groups[i])
        paths = [self._path(group) for group in groups]
        paths.sort(key=lambda path: -_norm(path.product._data))
        title = f"d{self._name(self.root, 'root')}/d{self._name(self.end, 'leaf')}"
        total = Tensor._wrap(_one(self.swept.gradients[self.end]), None)
        return Explanation(title, total, tuple(paths), self.counts[self.end])

    def _split(self, group: _Group) -> list[_Group]:
        """Return a group for every way into its first node."""
        return [
            _Group((edge, *group.edges), self._down(edge, group.edges))
            for edge in self.users[group.head]
        ]

    def _down(self, edge: tuple[Node, int], edges: tuple[tuple[Node, int], ...]) -> tuple:
        """Return what a part of the sweep, started below one edge, passes along the others."""
        products = [self.swept.parts[edge]]
        for node, i in edges:
            pulled = pull(node, products[-1], "explain", {node.parents[i]})
            products.append(pulled[i])
        return tuple(products)

    def _path(self, group: _Group) -> Path:
        nodes = [node for node, _ in group.edges]
        names = (*(self._called(node) for node in nodes), self._name(self.end, "leaf"))
        start = _one(self.swept.gradients[group.head])
        return Path(
            names,
            tuple(self._factor(node, i) for node, i in group.edges),
            Tensor._wrap(start, None),
            Tensor._wrap(_one(group.products[-1]), None),
            self.counts[group.head],
        )

    def _factor(self, node: Node, i: int) -> float | None:
        """Return the local derivative, if it is one number."""
        g, part = self.swept.gradients[node], self.swept.parts[node, i]
        if isinstance(g, dict) or isinstance(part, dict) or g.size != 1 or part.size != 1:
            return None
        one = backend.xp_of(g).ones_like(g)
        return float(pull(node, one, "explain", {node.parents[i]})[i].item())

    def _called(self, node: Node) -> str:
        """Return the name of a result, or its operation with the operand if that is ambiguous."""
        if node in self.names:
            return self.names[node]
        return f"[{node.op.index}]" if isinstance(node.op, Output) else node.op.name

    def _name(self, key: Any, otherwise: str) -> str:
        return self.names.get(key, otherwise)


def _one(g: Any) -> Any:
    """Return the only array of a gradient; those of several outputs have no common shape."""
    return next(iter(g.values())) if isinstance(g, dict) else g


def _norm(g: Any) -> float:
    values = g.values() if isinstance(g, dict) else [g]
    arrays = [backend.to_numpy(v).astype(np.float64) for v in values]
    norm = float(np.sqrt(sum(float((a * a).sum()) for a in arrays)))
    return norm if norm == norm else np.inf
