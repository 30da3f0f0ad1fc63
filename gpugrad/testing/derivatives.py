"""Gradients against central differences in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend, engine
from ..registry import describe
from ..tensor import Tensor
from .closeness import assert_within, index_text

DENSE = 200  # inputs plus outputs up to which every entry of the Jacobian is compared
DIRECTIONS = 3  # random directions per input beyond that


def gradcheck(
    f: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
) -> bool:
    """Compare the gradients of ``f(*inputs)`` with central differences; return True or raise.

    The tensors that require grad are checked and must be float64; other inputs are passed on. Up
    to DENSE elements the whole Jacobian is compared, beyond that random projections of it. ``f``
    returns a tensor or several, floating ones float64.

    Raises AssertionError that names the function, the operand, the index and both numbers;
    TypeError for other dtypes; ValueError if nothing can be checked.
    """
    return _Check("gradcheck", f, inputs, eps, atol, rtol, seed).run()


def gradgradcheck(
    f: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
) -> bool:
    """Compare the second derivatives of ``f(*inputs)`` with central differences of the first.

    The gradient recorded with ``create_graph=True`` must equal the plain one, and is then
    checked as a function of the inputs and of the upstream gradients. Arguments and errors are
    those of gradcheck.
    """
    check = _Check("gradgradcheck", f, inputs, eps, atol, rtol, seed)
    outs = [out for out in check.outputs(check.inputs) if out.requires_grad]
    if not outs:
        raise ValueError(f"gradgradcheck: no result of {check.name} requires grad")
    upstream = [
        Tensor(check.rng.standard_normal(out.shape), device=out.device, requires_grad=True)
        for out in outs
    ]

    def gradient(*args: Any) -> tuple[Any, ...]:
        given = args[: len(check.inputs)]
        outs = [out for out in check.outputs(given) if out.requires_grad]
        wanted = [given[i] for i in check.checked]
        return engine.grad(outs, wanted, args[len(given) :], create_graph=True)

    plain = engine.grad(outs, [check.inputs[i] for i in check.checked], upstream)
    for i, a, b in zip(check.checked, plain, gradient(*check.inputs, *upstream), strict=True):
        assert_within(
            f"gradgradcheck: {check.name}: the gradient of {check.operand(i)}",
            ("with create_graph=True", _numpy(b)),
            ("without", _numpy(a)),
            1e-12 + 1e-9 * np.abs(_numpy(a)),
        )
    second = _Check("gradgradcheck", gradient, [*check.inputs, *upstream], eps, atol, rtol, seed)
    second.name = f"the gradient of {check.name}"
    second.operands = [
        *check.operands,
        *(f"the upstream gradient of output {i}" for i in range(len(outs))),
    ]
    return second.run()


class _Check:
    """A function, the inputs it is checked at, and how to compare its derivatives."""

    def __init__(
        self,
        where: str,
        f: Callable[..., Any],
        inputs: Any,
        eps: float,
        atol: float,
        rtol: float,
        seed: int,
    ) -> None:
        self.where = where
        self.f = f
        self.eps, self.atol, self.rtol = eps, atol, rtol
        self.rng = np.random.default_rng(seed)
        self.inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        self.name = getattr(f, "__name__", None) or repr(f)
        self.operands = _parameter_names(f, len(self.inputs))
        self.checked = [
            i for i, x in enumerate(self.inputs) if isinstance(x, Tensor) and x.requires_grad
        ]
        if not self.checked:
            raise ValueError(f"{where}: none of the inputs is a tensor that requires grad")
        for i in self.checked:
            self._refuse_narrow(self.operand(i), self.inputs[i])

    def _refuse_narrow(self, what: str, x: Tensor) -> None:
        if x.dtype != backend.float64:
            raise TypeError(
                f"{self.where}: {what} of {self.name} is {describe(x)}; finite differences of "
                "step 1e-6 need float64: use .astype(gg.float64)"
            )

    def operand(self, i: int) -> str:
        """Return what to call an input in messages."""
        return f"{self.operands[i]} (input {i})" if self.operands[i] else f"input {i}"

    def outputs(self, args: Sequence[Any]) -> list[Tensor]:
        """Return the floating results of f."""
        result = self.f(*args)
        outs = list(result) if isinstance(result, (tuple, list)) else [result]
        for i, out in enumerate(outs):
            if not isinstance(out, Tensor):
                raise TypeError(
                    f"{self.where}: {self.name} must return tensors, got {describe(out)}"
                )
            if backend.is_float(out.dtype):
                self._refuse_narrow(f"output {i}", out)
        return [out for out in outs if backend.is_float(out.dtype)]

    def run(self) -> bool:
        """Compare all derivatives; return True or raise."""
        outs = self.outputs(self.inputs)
        if not outs:
            raise ValueError(f"{self.where}: {self.name} returns nothing floating to check")
        for first, again in zip(outs, self.outputs(self.inputs), strict=True):
            if not np.array_equal(_numpy(first), _numpy(again), equal_nan=True):
                raise ValueError(
                    f"{self.where}: {self.name} gives another result when called again; "
                    "seed its random numbers inside it"
                )
        size = sum(t.size for t in (*outs, *(self.inputs[i] for i in self.checked)))
        if size <= DENSE:
            self._compare_all(outs)
        else:
            self._compare_projections(outs)
        return True

    def gradients(self, outs: Sequence[Tensor], upstream: Sequence[Any]) -> list[np.ndarray]:
        """Return the gradient of each checked input, zeros where no output depends on any."""
        inputs = [self.inputs[i] for i in self.checked]
        pairs = [(o, u) for o, u in zip(outs, upstream, strict=True) if o.requires_grad]
        if not pairs:
            return [np.zeros(x.shape) for x in inputs]
        seeds = [Tensor(u, device=o.device) for o, u in pairs]
        grads = engine.grad([o for o, _ in pairs], inputs, seeds, retain_graph=True)
        for i, x, g in zip(self.checked, inputs, grads, strict=True):
            if g.shape != x.shape or g.dtype != x.dtype:
                raise AssertionError(
                    f"{self.where}: {self.name}: the gradient of {self.operand(i)} is "
                    f"{describe(g)} but the input is {describe(x)}"
                )
        return [_numpy(g) for g in grads]

    def difference(self, i: int, direction: np.ndarray) -> list[np.ndarray]:
        """Return the derivative of every output along a direction of input i."""
        ends = []
        for step in (self.eps, -self.eps):
            args = list(self.inputs)
            for j in self.checked:
                moved = _numpy(args[j]) + step * direction if i == j else _numpy(args[j]).copy()
                args[j] = Tensor(moved, device=args[j].device, requires_grad=True)
            ends.append([_numpy(out) for out in self.outputs(args)])
        return [(up - down) / (2 * self.eps) for up, down in zip(*ends, strict=True)]

    def _compare_all(self, outs: list[Tensor]) -> None:
        """Compare the Jacobians of all outputs and inputs entry by entry."""
        rows: list[list[list[np.ndarray]]] = []  # [output][element][checked input]
        for o, out in enumerate(outs):
            rows.append([])
            for k in range(out.size):
                seeds = [np.zeros(other.shape) for other in outs]
                seeds[o] = _unit(out.shape, k)
                rows[o].append(self.gradients(outs, seeds))
        for position, i in enumerate(self.checked):
            x = self.inputs[i]
            for k in range(x.size):
                columns = self.difference(i, _unit(x.shape, k))
                for o, (out, column) in enumerate(zip(outs, columns, strict=True)):
                    found = [row[position].reshape(-1)[k] for row in rows[o]]
                    assert_within(
                        f"{self.where}: {self.name}{_made_by(out)}: d output {o} "
                        f"/ d {self.operand(i)}{index_text(x.shape, k)}",
                        ("by backward", np.reshape(found, out.shape)),
                        ("by finite differences", column),
                        self.atol + self.rtol * np.abs(column),
                    )

    def _compare_projections(self, outs: list[Tensor]) -> None:
        """Compare derivatives of random sums of the outputs along random directions."""
        for _ in range(DIRECTIONS):
            upstream = [self.rng.standard_normal(out.shape) for out in outs]
            grads = self.gradients(outs, upstream)
            for i, g in zip(self.checked, grads, strict=True):
                direction = self.rng.standard_normal(g.shape)
                found, expected = self._along(i, g, direction, upstream)
                allowed = self.atol * math.sqrt(g.size) + self.rtol * abs(expected)
                if abs(found - expected) <= allowed:
                    continue
                k = self._worst(i, g, upstream)
                found, expected = self._along(i, g, _unit(g.shape, k), upstream)
                raise AssertionError(
                    f"{self.where}: {self.name}{_made_by(outs[0])}: d (random sum of the outputs) "
                    f"/ d {self.operand(i)}{index_text(g.shape, k)} is {found!r} by backward "
                    f"but {expected!r} by finite differences"
                )

    def _along(
        self, i: int, g: np.ndarray, direction: np.ndarray, upstream: Sequence[np.ndarray]
    ) -> tuple[float, float]:
        moved = self.difference(i, direction)
        expected = sum(float((u * d).sum()) for u, d in zip(upstream, moved, strict=True))
        return float((g * direction).sum()), expected

    def _worst(self, i: int, g: np.ndarray, upstream: Sequence[np.ndarray]) -> int:
        """Return the flat index of a wrong element, by halving the direction."""
        direction = self.rng.standard_normal(g.size)
        low, high = 0, g.size
        while high - low > 1:
            middle = (low + high) // 2
            errors = []
            for part in (slice(low, middle), slice(middle, high)):
                half = np.zeros(g.size)
                half[part] = direction[part]
                found, expected = self._along(i, g, half.reshape(g.shape), upstream)
                error = abs(found - expected)
                errors.append(math.inf if math.isnan(error) else error)
            low, high = (low, middle) if errors[0] >= errors[1] else (middle, high)
        return low


def _parameter_names(f: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # some built-in callables have no signature
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else "" for i in range(count)]


def _made_by(out: Tensor) -> str:
    return "" if out._node is None else f" (last operation: {out._node.op.name})"


def _numpy(x: Tensor) -> np.ndarray:
    return backend.to_numpy(x._data)


def _unit(shape: tuple[int, ...], k: int) -> np.ndarray:
    unit = np.zeros(math.prod(shape))
    unit[k] = 1
    return unit.reshape(shape)
