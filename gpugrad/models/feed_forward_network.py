"""The general feed-forward network: any directed acyclic multigraph of units with shared weights.

    network = FeedForwardNetwork(
        inputs=["r1", "r2"],
        units={"s": ("softmax", 2), "y4": ("sigmoid", 1), "y5": ("identity", 1)},
        edges=[
            ("r1", "s[0]", "t1"), ("r2", "s[1]", "t2"),
            ("r1", "y4", "t1"), ("r2", "y4", "t3"),
            ("r1", "y5", "t2"), ("s[0]", "y5", "t2"), ("y4", "y5", "t3"),
        ],
    )
    network(gg.tensor([-1.0, 1.0]))["y5"]

A unit with k outputs applies its activation to k sums; the sum of an output runs over the edges
into it, each an output of another unit times a weight. A weight may stand on any number of edges,
and two units may be joined by several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from ..graph import Edge, Graph, Vertex
from ..graph.summary import summary
from ..nn import Module, Parameter
from ..nn import functional as F
from ..ops import asarray, random, stack, tensor
from ..registry import describe
from ..tensor import Tensor

ONE = "1"  # the source of a bias
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": F.sigmoid,
    "softmax": lambda z: F.softmax(z, axis=-1),
    "tanh": F.tanh,
}


class Port(NamedTuple):
    """One output of a unit, or an input: ``s[1]`` in a specification."""

    unit: str
    output: int


class FeedForwardNetwork(Module):
    """A network given by its units and weighted edges.

    ``inputs`` are names; ``units`` map a name to an activation and a number of outputs, the
    activation being one of ACTIVATIONS or a function of the sums, (...) for one output and
    (..., outputs) for more; ``edges`` are (source, target, weight) with ``"name"`` or
    ``"name[output]"`` for both ends and ``"1"`` as the source of a bias. ``weights`` are initial
    values by name; the others are drawn from a normal distribution of standard deviation ``std``.

    Every weight is a parameter ``weights.NAME`` without dimensions. Raises ValueError for names
    that are unknown, used twice or cannot be attributes, for outputs that do not exist or that no
    edge reaches, and for a cycle, naming its units.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        units: Mapping[str, tuple[str | Callable[[Tensor], Tensor], int]],
        edges: Sequence[tuple[str, str, str]],
        weights: Mapping[str, float] | None = None,
        std: float = 0.5,
        dtype: Any = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.units = dict(units)
        self.sizes = {ONE: 1}
        for name in self.inputs:
            self._add(name, 1)
        for name, (activation, outputs) in self.units.items():
            if isinstance(activation, str) and activation not in ACTIVATIONS:
                raise ValueError(
                    f"FeedForwardNetwork: unit {name!r} has the unknown activation {activation!r}; "
                    f"take a function or one of {', '.join(ACTIVATIONS)}"
                )
            self._add(name, outputs)
        for edge in edges:
            if isinstance(edge, str) or len(edge) != 3:
                raise ValueError(
                    f"FeedForwardNetwork: an edge is (source, target, weight), got {edge!r}"
                )
        self.edges = tuple((self._port(s), self._port(t), w) for s, t, w in edges)
        self.order = self._topological()
        self._check_targets()
        self.weights = Module()
        given = dict(weights or {})
        for name in dict.fromkeys(w for _, _, w in self.edges):
            if not name.isidentifier() or hasattr(self.weights, name):
                raise ValueError(
                    f"FeedForwardNetwork: a weight cannot have the name {name!r}; it has to be an "
                    "identifier that no Module has as an attribute"
                )
            value = tensor(given.pop(name), dtype) if name in given else None
            drawn = random.normal(0.0, std, (), dtype=dtype) if value is None else value
            setattr(self.weights, name, Parameter(drawn))
        if given:
            raise ValueError(
                f"FeedForwardNetwork: no edge carries the weight {min(given)!r}; those on edges "
                f"are {', '.join(name for name, _ in self.weights.named_parameters())}"
            )

    def _add(self, name: str, outputs: int) -> None:
        if name in self.sizes:
            raise ValueError(f"FeedForwardNetwork: the name {name!r} is used twice")
        if outputs < 1:
            raise ValueError(f"FeedForwardNetwork: unit {name!r} has {outputs} outputs")
        self.sizes[name] = outputs

    def _port(self, text: str) -> Port:
        match = re.fullmatch(r"(.+?)(?:\[(\d+)\])?", text)
        name, index = (match[1], int(match[2] or 0)) if match else (text, 0)
        if name not in self.sizes:
            raise ValueError(
                f"FeedForwardNetwork: an edge names {name!r}; there are {', '.join(self.sizes)}"
            )
        if index >= self.sizes[name]:
            raise ValueError(
                f"FeedForwardNetwork: an edge names {text!r}, but {name!r} has "
                f"{self.sizes[name]} outputs, counted from 0"
            )
        return Port(name, index)

    def _topological(self) -> tuple[str, ...]:
        """Return the units, every one after those it depends on."""
        before: dict[str, list[str]] = {name: [] for name in self.units}
        for source, target, _ in self.edges:
            if target.unit not in before:
                raise ValueError(f"FeedForwardNetwork: an edge leads into the input {target.unit}")
            before[target.unit].append(source.unit)
        try:
            order = tuple(TopologicalSorter(before).static_order())
        except CycleError as error:
            cycle = " -> ".join(error.args[1])
            raise ValueError(f"FeedForwardNetwork: the edges make a cycle: {cycle}") from error
        return tuple(name for name in order if name in before)

    def _check_targets(self) -> None:
        reached = {target for _, target, _ in self.edges}
        for name in self.units:
            for index in range(self.sizes[name]):
                if Port(name, index) not in reached:
                    raise ValueError(f"FeedForwardNetwork: no edge leads to {name}[{index}]")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs of every unit for inputs (..., inputs): (...) or (..., outputs)."""
        x = asarray(x)
        if x.ndim < 1 or x.shape[-1] != len(self.inputs):
            raise ValueError(
                f"FeedForwardNetwork: the input must have shape (..., {len(self.inputs)}) for "
                f"{', '.join(self.inputs)}, got {describe(x)}"
            )
        values: dict[Port, Any] = {Port(ONE, 0): 1.0}
        values |= {Port(name, 0): x[..., i] for i, name in enumerate(self.inputs)}
        results: dict[str, Tensor] = {}
        for name in self.order:
            sums = [self._sum(Port(name, i), values, x) for i in range(self.sizes[name])]
            activation = self.units[name][0]
            function = ACTIVATIONS[activation] if isinstance(activation, str) else activation
            out = results[name] = function(stack(sums, -1) if len(sums) > 1 else sums[0])
            for i in range(len(sums)):
                values[Port(name, i)] = out[..., i] if len(sums) > 1 else out
        return results

    def _sum(self, port: Port, values: dict[Port, Any], x: Tensor) -> Tensor:
        terms = [
            getattr(self.weights, w) * values[source]
            for source, target, w in self.edges
            if target == port
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total if total.shape == x.shape[:-1] else total + x[..., 0] * 0.0  # biases alone

    def graph(self) -> Graph:
        """Return the multigraph to look at: on each edge its weight, below it the gradient."""
        used = {source.unit for source, _, _ in self.edges}
        names = [name for name in (ONE, *self.inputs) if name in used] + list(self.order)
        number = {name: i for i, name in enumerate(names)}
        vertices = [
            Vertex("operation", self._activation_name(name), name)
            if name in self.units
            else Vertex("constant" if name == ONE else "leaf", name=name)
            for name in names
        ]
        edges = []
        for source, target, w in self.edges:
            weight = getattr(self.weights, w)
            ends = [
                f"[{port.output}]" if self.sizes[port.unit] > 1 else "" for port in (source, target)
            ]
            arrow = f"{ends[0]}\u2192{ends[1]} " if any(ends) else ""
            gradient = "" if weight.grad is None else summary(weight.grad.data)
            edges.append(
                Edge(
                    number[source.unit],
                    number[target.unit],
                    w,
                    f"{arrow}{w} = {summary(weight.data)}",
                    gradient,
                )
            )
        return Graph(tuple(vertices), tuple(edges))

    def _activation_name(self, name: str) -> str:
        activation = self.units[name][0]
        called = activation if isinstance(activation, str) else activation.__name__
        return called if self.sizes[name] == 1 else f"{called}, {self.sizes[name]} outputs"

    def extra_repr(self) -> str:
        return f"inputs={len(self.inputs)}, units={len(self.units)}, edges={len(self.edges)}"
