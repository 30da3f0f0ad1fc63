"""``crosscheck``: the first operation of a model whose implementations do not agree.

Each recorded operation is run again on what it was given, so an error does not travel on to the
operations behind it: by its definition in float64, which is the oracle, and by every other
implementation at hand. Errors and budgets are in units in the last place (ULP) of the largest
value of a result. The budget is the 2x/3x rule of ``closeness``: twice (gradients: three times)
the error of the definition in that dtype, on what was given and beside it. The gradient of the
definition itself, and that of a user's Function, is held against central differences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from .. import backend, engine
from .._where import Place
from ..function import Function
from ..graph.sweep import add, pull
from ..registry import describe
from ..tensor import Tensor
from . import functions
from .closeness import aligned, index_text, tolerance
from .reruns import Call, PlacedNode, Run, placing

SLOPE = "differences"  # the implementation of a gradient that is nobody's


@dataclass(frozen=True)
class Difference:
    """How far one result, or gradient, of one implementation is from the definition in float64.

    ``error`` and ``budget`` are in ULP of the largest value; ``value`` and ``exact`` are the worst
    element, at ``index`` ("" for a single number); ``count`` says how many are beyond the budget.
    Where the implementation is "differences", ``value`` is the derivative along a line by the
    gradient of the definition or of a Function, ``exact`` by central differences, and the two are
    relative.
    """

    op: str
    what: str
    implementation: str
    error: float
    budget: float
    index: str
    value: float
    exact: float
    count: int
    given: str
    place: Place

    @property
    def beyond(self) -> bool:
        """Whether it is more than the budget."""
        return not self.error <= self.budget

    def __str__(self) -> str:
        if self.implementation == SLOPE:
            first = (
                f"{self.what} is wrong: along a line {self.value!r}, by central "
                f"differences {self.exact!r}"
            )
            worst = f"off     by {self.error:.3g}, allowed {self.budget:.3g} (relative)"
        else:
            first = (
                f"{self.what} by {self.implementation} is {self.error:.3g} ULP from the definition "
                f"in float64, its budget is {self.budget:.3g}"
            )
            at = f" at {self.index}" if self.index else ""
            worst = (
                f"worst   {self.value!r}{at}, should be {self.exact!r}; {self.count} values are "
                "beyond the budget"
            )
        return (
            f"{self.op}: {first}\n"
            f"  module  {self.place.path or 'none'}\n"
            f"  line    {self.place.line}\n"
            f"  given   {self.given}\n"
            f"  {worst}"
        )


@dataclass
class Report:
    """All that was compared: results in the order they were computed, then gradients in theirs.

    ``calls`` counts the operations by name, ``unchecked`` those with nothing to compare: split, a
    checkpoint, a Function that gives two results for one input.
    """

    differences: list[Difference] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    unchecked: Counter[str] = field(default_factory=Counter)

    @property
    def first(self) -> Difference | None:
        """The first difference beyond its budget; None if there is none."""
        return next((d for d in self.differences if d.beyond), None)

    def __str__(self) -> str:
        """Return a line for each operation, with the errors nearest to their budgets.

        Above them a line that names what is unchecked, if anything is.
        """
        head = ("operation", "calls", "result", "budget", "gradient", "budget", "slope", "by")
        rows = [head, *(self._row(name) for name in sorted(self.calls))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        names = ", ".join(f"{name} ({count})" for name, count in sorted(self.unchecked.items()))
        lines = [f"unchecked: {names}"] * bool(names)
        for name, *numbers, by in rows:
            padded = (text.rjust(w) for text, w in zip(numbers, widths[1:], strict=False))
            lines.append("  ".join((name.ljust(widths[0]), *padded, by)))
        return "\n".join(lines)

    def _row(self, name: str) -> tuple[str, ...]:
        found = [d for d in self.differences if d.op == name]
        by = dict.fromkeys(d.implementation for d in found if d.implementation != SLOPE)
        results = [d for d in found if d.what.startswith("the result")]
        slopes = [d for d in found if d.implementation == SLOPE]
        gradients = [d for d in found if d not in results and d not in slopes]
        slope = f"{max(d.error for d in slopes):.0e}" if slopes else "-"
        pairs = (*_worst(results), *_worst(gradients))
        return (
            name,
            str(self.calls[name]),
            *pairs,
            slope,
            ", ".join(by) or (SLOPE if slopes else "nothing to compare with"),
        )


def _worst(found: list[Difference]) -> tuple[str, str]:
    if not found:
        return "-", "-"
    worst = max(found, key=lambda d: d.error / d.budget if d.budget else d.error)
    return f"{worst.error:.3g}", f"{worst.budget:.3g}"


def crosscheck(
    model: Callable[..., Any], batch: Any, *, raises: bool = True, seed: int = 0
) -> Report:
    """Run a model forward and backward once, and each of its operations by other implementations.

    ``model`` is a module or function, ``batch`` its arguments: a tuple, a mapping by name, or else
    a single one. Compared are the hand-written NumPy implementations; the kernels, in the emulator
    where it is active and on a GPU where there is one; and what the model itself computed. A result
    of one element starts the reverse sweep with 1, others with random numbers from ``seed``.
    ``.grad`` is left alone. Takes the time of a dozen steps in float64, and the memory of all
    intermediate values. The gradient of a Function is held against differences of its forward, so
    one that is no derivative on purpose (a straight-through estimator) is reported too.

    Raises AssertionError naming the first operation beyond its budget, its module, the user's line,
    shapes, the worst element and both values, above a table of all operations; with
    ``raises=False`` that is ``.first`` of the Report. ValueError if nothing was recorded.
    """
    with placing():
        if isinstance(batch, Mapping):
            result = model(**batch)
        else:
            result = model(*batch) if isinstance(batch, tuple) else model(batch)
    rng = np.random.default_rng(seed)
    seeds = [(t._node, _seed(t, rng)) for t in _tensors(result) if t._node is not None]
    if not seeds:
        raise ValueError(
            f"crosscheck: {getattr(model, '__name__', type(model).__name__)} returned no tensor "
            "that was recorded: no parameter requires grad, or it ran under no_grad"
        )
    report = Report()
    results, gradients = [], []
    for node, g, grads in _swept(seeds):
        call = Call.of(node, g, grads) if isinstance(node, PlacedNode) else None
        if call is not None:
            of_results, of_gradients = _compared(call, rng)
            results.append(of_results)
            gradients += of_gradients
        elif isinstance(node, PlacedNode):
            found = _of_function(node, g, rng)
            gradients += found
            report.unchecked[node.op.name] += not found and not isinstance(node.op, engine.Output)
        if not isinstance(node.op, engine.Output):
            report.calls[node.op.name if call is None else call.op.name] += 1
    report.unchecked = +report.unchecked
    report.differences = [d for of_one in reversed(results) for d in of_one] + gradients
    first = report.first
    if raises and first is not None:
        raise AssertionError(f"crosscheck: {first}\n\n{report}")
    return report


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, Mapping)):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(part)


def _seed(out: Tensor, rng: np.random.Generator) -> Any:
    values = np.ones(()) if out.size == 1 else rng.standard_normal(out.shape)
    return backend.as_array(values.reshape(out.shape).astype(out.dtype), device=out.device)


def _swept(seeds: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, list]]:
    """Go back from the seeds, yielding each node, its gradient and those it passes on."""
    gradients: dict[Any, Any] = {}
    for node, g in seeds:
        gradients[node] = add(gradients[node], g) if node in gradients else g
    for node in engine.reachable(gradients):
        g = gradients.pop(node, None)
        if g is None:
            continue
        with engine.no_grad(), np.errstate(all="ignore"):
            grads = pull(node, g, "crosscheck")
        for parent, part in zip(node.parents, grads, strict=True):
            gradients[parent] = add(gradients[parent], part) if parent in gradients else part
        yield node, g, grads


def _compared(call: Call, rng: np.random.Generator) -> tuple[list[Difference], list[Difference]]:
    """Return the differences of all results and of all gradients of one operation."""
    exact, nearby = call.exact(), call.nearby(rng)
    names = [call.op.arguments[i] for i in call.wanted]
    given = ", ".join(
        f"{name} {describe(a)}" for name, a in zip(call.op.arguments, call.arrays, strict=True)
    )

    def difference(what: str, run: Run, factor: float, i: int, of: str) -> Difference:
        found, reference = (backend.to_numpy(getattr(r, of)[i]) for r in (run, exact))
        own = [getattr(r, of)[i].astype(found.dtype) for r in nearby]
        allowed = max(tolerance(reference, near, factor) for near in own)
        return _difference(call, what, run.name, found, reference, allowed, given)

    results, gradients = [], []
    for run in call.runs():
        for i in range(len(run.outs)):
            if backend.is_float(run.outs[i].dtype):
                what = "the result" if len(run.outs) == 1 else f"the result {i}"
                results.append(difference(what, run, 2.0, i, "outs"))
        for i, name in enumerate(names if run.grads is not None else ()):
            gradients.append(difference(f"the gradient of {name}", run, 3.0, i, "grads"))
    if exact.outs[0].dtype == backend.float64:  # or it is a cast, whose steps are no slope
        numbers = _of_slopes(*call.slopes(exact, rng))
        what = "the gradient of the definition"
        gradients.append(Difference(call.op.name, what, SLOPE, *numbers, given, call.place))
    return results, gradients


def _of_function(node: PlacedNode, g: Any, rng: np.random.Generator) -> list[Difference]:
    """Return how far the gradients of a user's Function are from differences of its forward."""
    function = getattr(node.op, "function", None)
    if not (isinstance(function, type) and issubclass(function, Function)):
        return []
    args, kwargs = node.values[-2:]
    upstream = dict(g) if isinstance(g, dict) else {0: g}
    given = ", ".join(f"argument {i} {describe(a)}" for i, a in enumerate(args))
    return [
        Difference(
            node.op.name,
            f"the gradient of argument {i} by backward",
            SLOPE,
            *_of_slopes(*slopes),
            given,
            node.place,
        )
        for i, *slopes in functions.slopes(function, args, kwargs, upstream, rng)
    ]


def _of_slopes(
    slope: float, by_differences: float, allowed: float
) -> tuple[float, float, str, float, float, int]:
    """Return the numbers of a Difference, the error and the budget relative to the larger slope."""
    off, scale = abs(slope - by_differences), max(abs(slope), abs(by_differences)) or 1.0
    return off / scale, allowed / scale, "", slope, by_differences, int(not off <= allowed)


def _difference(
    call: Call,
    what: str,
    implementation: str,
    found: np.ndarray,
    exact: np.ndarray,
    allowed: float,
    given: str,
) -> Difference:
    value, reference = aligned(found, exact, found.dtype)
    with np.errstate(invalid="ignore"):
        errors = np.where(value == reference, 0.0, np.abs(value - reference))
    errors = np.nan_to_num(errors, nan=np.inf)
    finite = np.abs(reference[np.isfinite(reference)])
    precision = ml_dtypes.finfo(found.dtype)
    unit = float(precision.eps) * float(finite.max(initial=0.0)) or float(precision.tiny)
    k = int(errors.argmax()) if errors.size else 0
    error, a, b = (float(x.flat[k]) if x.size else 0.0 for x in (errors, value, reference))
    return Difference(
        op=call.op.name,
        what=what,
        implementation=implementation,
        error=error / unit,
        budget=allowed / unit,
        index=index_text(value.shape, k) if errors.size else "",
        value=a,
        exact=b,
        count=int((errors > allowed).sum()),
        given=given,
        place=call.place,
    )
