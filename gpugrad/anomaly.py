"""Anomaly mode: which operation made the first NaN or infinity, where, and out of what."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import _where, backend, cuda, registry
from .cuda import extremes
from .cuda.extremes import Extremes
from .engine import as_array, no_grad
from .registry import Node, Pullback, describe, state

ROWS = 1024  # arrays that are looked at on a device before the host asks what was found
UNKNOWN = _where.Place("", 0)


class AnomalyNode(Node):
    """A node that remembers the line and the modules that made it."""

    __slots__ = ("place",)

    place: _where.Place


class _Maker(NamedTuple):
    """An operation's name and where it was called; keeps no graph alive, as its node would."""

    name: str
    place: _where.Place

    @staticmethod
    def of(node: Node) -> _Maker:
        """Return what to remember of a node."""
        return _Maker(node.op.name, node.place if isinstance(node, AnomalyNode) else UNKNOWN)


@dataclass
class _Seen:
    """One call of an operation, or one step of the reverse sweep, and the arrays it saw.

    ``inputs`` and ``results`` are (name, dtype and shape, shape, extremes), extremes being those
    or, on a device, the row they will be found in. ``makers`` has the operation that made an input,
    or None for a leaf that requires a gradient. ``within`` are the nodes that are being pulled
    back, innermost first. ``excused``: infinities are no anomaly.
    """

    title: str
    place: _where.Place
    within: list[_Maker]
    makers: dict[str, _Maker | None]
    excused: bool
    inputs: list[tuple] = field(default_factory=list)
    results: list[tuple] = field(default_factory=list)


class Watch:
    """What the operations of a thread are watched by: checks arrays on the CPU at once.

    Of arrays that kernels work on, the extremes are left in rows of an array on their device; the
    host reads these after a backward pass, at the end of the block, and when the rows run out.
    """

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self._pulled: list[tuple[Node, Any, Any]] = []  # what the sweep is at: node, g, saved
        self._seen: list[_Seen] = []
        self._rows: Any = None
        self._used = 0

    def node(self, op: Any, parents: tuple, values: tuple, shapes: tuple | None) -> Node:
        """Return a node, as ``state.make_node`` does, having looked at what the operation made."""
        node = AnomalyNode(op, parents, values, shapes)
        node.place = _where.here()
        if isinstance(op, Pullback) and not op.view:
            names = op.op.arguments
            inputs = dict(zip(names, values, strict=False))
            numbers = [v for v in values if isinstance(v, float)]  # where(mask, x, -inf)
            self._check(node, inputs, {"out": values[len(names)]}, numbers)
        return node

    def called(
        self, node: Node, names: Sequence[str], arrays: Sequence[Any], outs: Sequence[Any]
    ) -> None:
        """Look at what an operation that a node stands for took and made."""
        results = {f"out {i}" if len(outs) > 1 else "out": out for i, out in enumerate(outs)}
        self._check(node, dict(zip(names, arrays, strict=False)), results)

    def _check(
        self, node: Node, inputs: dict[str, Any], results: dict[str, Any], numbers: Any = ()
    ) -> None:
        excused = any(abs(number) == np.inf for number in numbers)
        self._look(f"forward of {node.op.name}", node, excused, inputs, results)

    def outputs(self, tensors: Sequence[Any]) -> None:
        """Look at results that a backward pass starts from: these may not be infinite at all."""
        for tensor in tensors:
            node = tensor._node
            if node is not None:
                self._look(f"forward of {node.op.name}", node, False, {}, {"out": tensor._data})

    @contextlib.contextmanager
    def sweeping(self) -> Iterator[None]:
        """Look, after a backward pass, at what was found on a device."""
        depth = len(self._pulled)
        try:
            yield
        finally:
            del self._pulled[depth:]
        if not depth:
            self.look()

    def pulls(self, node: Node, g: Any, saved: Sequence[Any]) -> None:
        """Note what the sweep is about to pull back."""
        self._pulled.append((node, g, saved))

    def pulled(self, gradients: Sequence[Any]) -> None:
        """Look at the gradients that the last node's parents get."""
        node, g, saved = self._pulled.pop()
        if not self.gradients:
            return
        op = node.op
        incoming = g if isinstance(g, dict) else {None: g}
        inputs = {"g" if i is None else f"g[{i}]": part for i, part in incoming.items()}
        inputs |= dict(zip(getattr(op, "slots", ()), saved, strict=False))
        names = _arguments(op)
        results = {
            f"gradient of {names[i] if i < len(names) else f'argument {i}'}": p
            for i, p in enumerate(gradients)
        }
        self._look(f"backward of {op.name}", node, False, inputs, results)

    def _look(
        self, title: str, node: Node, excused: bool, inputs: dict[str, Any], results: dict[str, Any]
    ) -> None:
        results = _floating(results)
        if not results:
            return
        at_once = all(isinstance(a, np.ndarray) for a in results.values()) and not cuda.emulated()
        if at_once and all(np.isfinite(a).all() for a in results.values()):
            return
        inputs = _floating(inputs)
        within = [_Maker.of(pulled) for pulled, _, _ in reversed(self._pulled)]
        makers = {
            name: _Maker.of(parent) if isinstance(parent, Node) else None
            for name, parent in zip(_arguments(node.op), node.parents, strict=False)
        }
        seen = _Seen(title, _Maker.of(node).place, within, makers, excused)
        if not at_once and self._used + len(inputs) + len(results) > ROWS:
            self.look()
        find: Callable[[Any], Any] = extremes.of_numpy if at_once else self._queue
        for named, into in ((inputs, seen.inputs), (results, seen.results)):
            into += [(name, describe(a), a.shape, find(a)) for name, a in named.items()]
        if at_once:
            _judge(seen)
        else:
            self._seen.append(seen)

    def _queue(self, array: Any) -> int:
        """Have a kernel look at an array; return the row it writes to."""
        if self._rows is None or backend.device_of(self._rows) != backend.device_of(array):
            self.look()
            zeros = np.zeros((ROWS, extremes.ROW), np.uint64)
            self._rows = backend.to_device(zeros, backend.device_of(array))
        row, self._used = self._used, self._used + 1
        extremes.queue(array, self._rows[row])
        return row

    def look(self) -> None:
        """Wait for the device, and raise FloatingPointError if an anomaly was found on it."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        rows = backend.to_numpy(self._rows)[: self._used].copy()
        self._rows[: self._used] = 0
        self._used = 0
        for one in seen:
            for arrays in (one.inputs, one.results):
                arrays[:] = [(*known, extremes.read(rows[row])) for *known, row in arrays]
            _judge(one)


def _floating(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return what can hold a NaN: floating arrays, tensors as theirs."""
    found = {
        name: a._data if isinstance(a, registry.Tensor) else as_array(a)
        for name, a in arrays.items()
    }
    return {
        name: a
        for name, a in found.items()
        if backend.is_array(a) and not isinstance(a, backend.Symbolic) and backend.is_float(a.dtype)
    }


def _arguments(op: Any) -> Sequence[str]:
    """Return what messages call the arguments that get a gradient."""
    if isinstance(op, Pullback):
        return op.wanted
    if hasattr(op, "fused"):
        return [name for name, wanted in zip(op.fused.arguments, op.wanted, strict=True) if wanted]
    if hasattr(op, "ctx"):
        return [f"argument {i}" for i, wanted in enumerate(op.ctx.needs_input_grad) if wanted]
    return ()


def _judge(seen: _Seen) -> None:
    """Raise FloatingPointError if what was seen is an anomaly."""
    infinite = [name for name, _, _, found in seen.inputs if found.infinite]
    excused = seen.excused or (
        seen.title.startswith("forward")
        and bool(infinite)
        and all(seen.makers.get(name, UNKNOWN) is not None for name in infinite)
    )
    for what, _, shape, found in seen.results:
        if found.nan or (found.infinite and not excused):
            raise FloatingPointError(_message(seen, what, shape, found))


def _message(seen: _Seen, what: str, shape: tuple[int, ...], bad: Extremes) -> str:
    assert bad.first is not None
    first = tuple(int(i) for i in np.unravel_index(bad.first, shape))
    size = int(np.prod(shape))
    at = f"the first at index {first} of {what}"
    lines = [
        f"{seen.title}: {bad.nan + bad.infinite} of {size} values are NaN or infinite, {at}",
        *_place(seen.place, "made at"),
    ]
    for outer in seen.within:
        lines.append(f"  in the backward pass of {outer.name}, which was")
        lines += _place(outer.place, "made at")
    rows = [(name, kind, _range(found)) for name, kind, _, found in (*seen.inputs, *seen.results)]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    for name, _, _, found in seen.inputs:
        if found.nan or found.infinite:
            lines += _origin(name, seen)
    return "\n".join(lines)


def _place(place: _where.Place, word: str) -> list[str]:
    lines = [f"  {word} {place.line}" if place.file else "  recorded outside of detect_anomaly"]
    return [f"  in module {place.path}", *lines] if place.modules else lines


def _origin(name: str, seen: _Seen) -> list[str]:
    """Return where an input came from that was not finite already."""
    maker = seen.makers.get(name, _Maker("", UNKNOWN))
    if seen.title.startswith("backward") or (maker is not None and not maker.name):
        return [f"  {name} held such values before"]
    if maker is None:
        return [f"  {name} held such values before: a parameter, or another leaf"]
    words = f"  {name} held such values before: the result of {maker.name}, which was"
    return [words, *_place(maker.place, "made at")]


def _range(found: Extremes) -> str:
    """Return the finite values' range and what else there is, in words."""
    parts = [] if found.low is None else [f"{found.low:.6g} to {found.high:.6g}"]
    for count, name in ((found.nan, "NaN"), (found.above, "+inf"), (found.below, "-inf")):
        if count:
            parts.append(f"{count} {name}")
    return ", ".join(parts) or "empty"


class detect_anomaly(no_grad):
    """Context and decorator: the first NaN or infinity raises FloatingPointError.

    It looks at every recorded operation of this thread, forward, and at the gradients of every
    backward pass inside the block. The message names the operation, the path of the modules that
    were called (``GPT.blocks.3.attention.query``), the line of the user's code, and dtype, shape,
    range of the finite values, and numbers of NaN, +inf and -inf of all that the operation took and
    made.

    Forward, a NaN is an anomaly. An infinity is one where the operation made it out of finite
    numbers, as log(0), 1 / 0 and overflow do, or of a parameter that is infinite; not where another
    input or a number given (``where(mask, x, -inf)``) was infinite, as in masked logits; but in
    what ``backward`` starts from, such as a loss, always. Backward, both are anomalies. Operations
    under ``no_grad``, of arguments that require no gradient, and within the forward of a
    ``gg.Function``, are not recorded: what they made is found in the first recorded operation that
    takes it, and the message says that its input held it before.

    ``gradients=False`` looks at the forward only: with a LossScaler a gradient may overflow.

    On the CPU arrays are checked at once. Where kernels run, one launch for each array counts on
    the device what it holds, and nothing waits: the host looks after each backward pass, at the end
    of the block, and after ROWS arrays, and names the first anomaly. What ``gg.compile`` made is
    called as it is, uncompiled. On the CPU a step of a small GPT takes 1.3 times as long; where
    kernels run it has five times as many launches (``benchmarks/anomaly.py``).
    """

    def __init__(self, gradients: bool = True) -> None:
        super().__init__()
        self._gradients = gradients
        self._watches: list[Any] = []

    def __enter__(self) -> None:
        self._watches.append(state.watch)
        self._outer.append(state.make_node)
        state.watch = watch = Watch(self._gradients)
        if state.make_node is not None:
            state.make_node = watch.node

    def __exit__(self, *error: Any) -> None:
        watch, state.watch = state.watch, self._watches.pop()
        state.make_node = self._outer.pop()
        if not isinstance(error[1], (FloatingPointError, KeyboardInterrupt, SystemExit)):
            watch.look()  # of an error, too, an anomaly may be the cause

    def _again(self) -> detect_anomaly:
        return detect_anomaly(self._gradients)
