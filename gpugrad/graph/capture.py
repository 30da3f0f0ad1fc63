"""From a recorded result to a Graph of texts: which nodes, which values, which gradients."""

from __future__ import annotations

from typing import Any

from .. import backend, engine
from ..engine import Output
from ..fused.base import Fused
from ..registry import Node, Pullback
from ..tensor import Tensor
from .model import Edge, Graph, Step, Vertex
from .summary import Named, expression, named, summary
from .sweep import Sweep, add, sweep


class ValueNode(Node):
    """A node that also keeps the arrays its operation took and returned, for pictures."""

    __slots__ = ("values",)

    def __init__(self, op: Any, parents: tuple, values: tuple, shapes: tuple | None) -> None:
        super().__init__(op, parents, values, shapes)
        fused = getattr(op, "fused", None)
        named: tuple[str, ...] = fused.arguments if isinstance(fused, Fused) else ()
        if isinstance(op, Pullback):
            named = (*op.op.arguments, "out")
        self.values = dict(zip(named, values, strict=False))


class keep_values(engine.no_grad):
    """Context: operations inside are recorded together with the values they took and returned.

    A recorded operation keeps only what its gradient needs, often not its result. Pictures of
    graphs recorded in this context show every value but what a fused operation or a Function hands
    to nobody else than concat, split, checkpoint or a Function; others only those that somebody
    still holds.
    """

    make_node = ValueNode


def capture(
    root: Tensor, names: Any = None, *, gradient: Any = None, gradients: bool = True
) -> Graph:
    """Return the graph that ``root`` was computed by, as texts: no array or node is kept alive.

    ``names`` is a module, or a mapping from names to tensors and modules such as ``locals()``.
    ``gradient`` is what the reverse sweep starts with (default 1 for a single element);
    ``gradients=False`` leaves the sweep out. ``.grad``, hooks and the graph are left alone.

    Raises TypeError if ``root`` is no tensor, ValueError if it is no recorded result, RuntimeError
    if an earlier backward pass freed the graph (``gradients=False`` draws it all the same) or if
    ``root`` has several elements and no ``gradient`` is given.
    """
    if not isinstance(root, Tensor):
        raise TypeError(f"graph: the root must be a tensor, got {type(root).__name__}")
    if root._node is None:
        raise ValueError(
            "graph: the root was not computed by recorded operations: no tensor it depends on has "
            "requires_grad=True, or it was computed under no_grad"
        )
    swept = sweep(root, gradient, "graph") if gradients else None
    return _Capture(root, named(names), swept).graph()


class _Capture:
    """The vertices and edges found so far, and how nodes are numbered."""

    def __init__(self, root: Tensor, found: Named, swept: Sweep | None) -> None:
        self.names = found.names
        self.swept = swept
        self.order = engine.reachable([root._node])
        self.values: dict[Any, Any] = {**found.values, root._node: root._data}
        self.vertices: list[Vertex] = []
        self.edges: list[Edge] = []
        self.index: dict[Any, int] = {}
        self.edge_of: dict[tuple[Node, int], int] = {}
        self.constants: dict[int, tuple[int, Any]] = {}

    def graph(self) -> Graph:
        """Return the whole graph, oldest vertices first."""
        for node in self.order:
            self._learn_values(node)
        for node in reversed(self.order):
            for parent in node.parents:
                if not isinstance(parent, Node) and parent not in self.index:
                    self._add(parent, "leaf", "", self.names.get(parent, ""), parent._data)
            self._add_operation(node)
        return Graph(tuple(self.vertices), tuple(self.edges), self._steps())

    def _learn_values(self, node: Node) -> None:
        """Note the values of a node and of its parents that it holds."""
        known = _held(node)
        if "out" in known:
            self.values.setdefault(node, known["out"])
        for operand, parent in zip(operands(node), node.parents, strict=True):
            if operand in known:
                self.values.setdefault(parent, known[operand])

    def _add(self, key: Any, kind: str, op: str, name: str, value: Any, text: str = "") -> int:
        g = None if self.swept is None else self.swept.gradients.get(key)
        self.index[key] = len(self.vertices)
        self.vertices.append(
            Vertex(
                kind,
                op,
                name,
                text,
                "" if value is None else summary(value),
                "" if g is None else summary(g),
            )
        )
        return self.index[key]

    def _add_operation(self, node: Node) -> None:
        known = _held(node)
        order = node.op.op.arguments if isinstance(node.op, Pullback) else ()
        wanted = list(zip(operands(node), node.parents, strict=True))
        by_name = dict(wanted) if order else {}
        inputs: list[tuple[int | None, str, int]] = []  # position among the parents, operand, from
        for operand in order:
            if operand not in by_name and known.get(operand) is not None:
                inputs.append((None, operand, self._constant(known[operand])))
        inputs += [(i, name, self.index[parent]) for i, (name, parent) in enumerate(wanted)]
        if order:
            inputs.sort(key=lambda found: order.index(found[1]))
        op = f"[{node.op.index}]" if isinstance(node.op, Output) else node.op.name
        name = self.names.get(node, "")
        parts = [self._called(source) for _, _, source in inputs]
        if name and len(inputs) < len(order):
            parts.append("\u2026")
        text = expression(op, parts) if name else ""
        target = self._add(node, "operation", op, name, self.values.get(node), text)
        for i, operand, source in inputs:
            part = None
            if i is not None:
                self.edge_of[node, i] = len(self.edges)
                part = self.swept.parts.get((node, i)) if self.swept else None
            passed = target if isinstance(node.op, Output) else source
            flow = self.vertices[passed].value, "" if part is None else summary(part)
            self.edges.append(Edge(source, target, operand, *flow))

    def _called(self, source: int) -> str:
        vertex = self.vertices[source]
        is_number = vertex.kind == "constant" and "[" not in vertex.value
        return vertex.name or (vertex.value if is_number else "\u2026")

    def _constant(self, value: Any) -> int:
        """Return the vertex of an operand without gradient; arrays are shared by identity."""
        key = id(value) if backend.is_array(value) else None
        if key is not None and key in self.constants:
            return self.constants[key][0]
        name = "" if key is None else self.names.get(key, "")
        index = self._add(object(), "constant", "", name, value)
        if key is not None:
            self.constants[key] = index, value
        return index

    def _steps(self) -> tuple[Step, ...]:
        """Return the reverse sweep node by node, with the sums as they stood after each."""
        if self.swept is None:
            return ()
        steps = []
        sums: dict[Any, Any] = {}
        for node in self.swept.order:
            changes = []
            for i, parent in enumerate(node.parents):
                part = self.swept.parts.get((node, i))
                if part is not None:
                    sums[parent] = add(sums[parent], part) if parent in sums else part
                    changes.append((self.edge_of[node, i], summary(sums[parent])))
            steps.append(Step(self.index[node], tuple(changes)))
        return tuple(steps)


def operands(node: Node) -> list[str]:
    """Return what the operation calls the argument that each parent stands for."""
    op = node.op
    if isinstance(op, Pullback):
        return list(op.wanted)
    of = getattr(op, "fused", None)
    if isinstance(of, Fused):
        return [name for name, w in zip(of.arguments, op.wanted, strict=True) if w]
    return [str(i) if len(node.parents) > 1 else "" for i in range(len(node.parents))]


def _held(node: Node) -> dict[str, Any]:
    """Return the arguments and the result that a node still holds, by name."""
    if isinstance(node, ValueNode) and node.values:
        return node.values
    op = node.op
    if node.saved is None or not isinstance(getattr(op, "slots", None), tuple):
        return {}
    saved = dict(zip(op.slots, node.saved, strict=False))
    if isinstance(op, Pullback):
        return {name: saved[name] for name in (*op.op.arguments, "out") if name in saved}
    of = getattr(op, "fused", None)
    if isinstance(of, Fused):
        return {name: saved[name] for name in of.arguments if saved.get(name) is not None}
    return {}
