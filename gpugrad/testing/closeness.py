"""Whether results are as close as their precision allows: the 2x/3x rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .. import backend, engine
from ..backend import DTypeLike
from ..cuda.emulation import disabled
from ..registry import describe
from ..tensor import Tensor


def tolerance(reference: Any, spec: Any, factor: float = 2.0, scale: float = 0.0) -> float:
    """Return the largest error an implementation may have: ``factor`` times that of the spec.

    ``reference`` is the result of the spec in float64, ``spec`` its result in the dtype of the
    implementation. The floor, for a spec that is exact by luck, is one unit in the last place of
    that dtype at the largest value of the reference, or at ``scale`` if that is larger: the size
    of the terms that cancel in a result near zero. The rule is flash-attention's: 2 for results,
    3 for gradients.
    """
    exact, error = _finite(_wide(reference), _wide(spec))
    return _allowed(_largest, exact, error, spec.dtype, factor, scale)


def assert_close(
    actual: Any,
    reference: Any,
    spec: Any,
    factor: float = 2.0,
    scale: float = 0.0,
    name: str = "the result",
) -> None:
    """Raise AssertionError unless ``actual`` is as close to the reference as the rule asks.

    The three are tensors or arrays of one shape; ``actual`` has the dtype of ``spec``. NaN and
    infinities must be where the reference, rounded to that dtype, has them. The rule (see
    tolerance) holds for the largest error and for the root mean square error: the first finds a
    wrong element, the second an error of many that hides behind the largest.
    """
    if actual.shape != reference.shape or actual.dtype != spec.dtype:
        raise AssertionError(
            f"{name} is {describe(actual)} but should be {spec.dtype}{list(reference.shape)}"
        )
    found, exact = aligned(actual, reference, spec.dtype)
    values, error = _finite(_wide(reference), _wide(spec))
    allowed = _allowed(_largest, values, error, spec.dtype, factor, scale)
    assert_within(name, (f"in {spec.dtype}", found), ("in float64", exact), allowed)
    allowed = _allowed(_mean_square, values, error, spec.dtype, factor, scale)
    if _mean_square(found - exact) > allowed:
        raise AssertionError(
            f"{name}: the root mean square error in {spec.dtype} is "
            f"{_mean_square(found - exact):.3g}, allowed {allowed:.3g}"
        )


def aligned(actual: Any, reference: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return both in float64, with 0 where they agree on NaN or infinity.

    Where only one of them, rounded to ``dtype``, is finite, they stay apart.
    """
    found, exact = _wide(actual), _wide(reference)
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype).astype(np.float64)
    special = ~np.isfinite(rounded) | ~np.isfinite(found)
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    found = np.where(special & same, 0.0, found)
    return found, np.where(special, np.where(same, 0.0, rounded), exact)


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0))


def _mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean())) if x.size else 0.0


def _finite(exact: np.ndarray, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference and the error of the spec where both are finite."""
    finite = np.isfinite(exact) & np.isfinite(plain)
    return exact[finite], plain[finite] - exact[finite]


def _allowed(
    norm: Callable[[np.ndarray], float],
    exact: np.ndarray,
    error: np.ndarray,
    dtype: np.dtype,
    factor: float,
    scale: float,
) -> float:
    unit = float(ml_dtypes.finfo(dtype).eps)
    return factor * norm(error) + unit * max(norm(exact), scale)


def _wide(x: Any) -> np.ndarray:
    return backend.to_numpy(x._data if isinstance(x, Tensor) else x).astype(np.float64)


def assert_implements(
    f: Callable[..., Any],
    spec: Callable[..., Any],
    inputs: Sequence[Any],
    dtype: DTypeLike = backend.float32,
    seed: int = 0,
    scale: float = 0.0,
) -> None:
    """Raise AssertionError unless f computes in ``dtype`` what spec does, gradients included.

    Floating tensors among the inputs are rounded to ``dtype``, those that require grad
    differentiated (with one random upstream gradient), other inputs passed on. Results may have
    twice the error of the spec in that dtype, gradients three times; both against the spec in
    float64 on the rounded inputs. The spec of numpy tensors is computed by NumPy, also while the
    emulator is active. ``scale`` as in tolerance.
    """
    kind = backend.as_dtype(dtype)
    name = getattr(f, "__name__", None) or repr(f)
    actual = _evaluated(f, inputs, kind, kind, seed)
    with disabled():
        plain = _evaluated(spec, inputs, kind, kind, seed)
        exact = _evaluated(spec, inputs, kind, backend.float64, seed)
    if [what for what, _, _ in actual] != [what for what, _, _ in plain]:
        raise AssertionError(f"{name} and its spec do not return equally many results")
    for (what, factor, a), (_, _, p), (_, _, e) in zip(actual, plain, exact, strict=True):
        assert_close(a, e, p, factor, scale, f"{name}: {what}")


def _evaluated(
    f: Callable[..., Any], inputs: Sequence[Any], rounded: Any, computed: Any, seed: int
) -> list[tuple[str, float, Tensor]]:
    """Return (name, allowed factor, value) of the floating results of f and its gradients."""
    args = [
        Tensor(x._data.astype(rounded).astype(computed), requires_grad=x.requires_grad)
        if isinstance(x, Tensor) and backend.is_float(x.dtype)
        else x
        for x in inputs
    ]
    result = f(*args)
    outs = list(result) if isinstance(result, (tuple, list)) else [result]
    outs = [out for out in outs if backend.is_float(out.dtype)]
    found = [(f"output {i}", 2.0, out) for i, out in enumerate(outs)]
    wanted = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if wanted:
        rng = np.random.default_rng(seed)
        upstream = [
            Tensor(rng.standard_normal(out.shape).astype(rounded), out.dtype, out.device)
            for out in outs
        ]
        grads = engine.grad(outs, [args[i] for i in wanted], upstream)
        found += [
            (f"the gradient of input {i}", 3.0, g) for i, g in zip(wanted, grads, strict=True)
        ]
    return found


def index_text(shape: tuple[int, ...], k: int) -> str:
    """Return the index of the k-th element as it is written behind a name."""
    return str([int(i) for i in np.unravel_index(k, shape)]) if shape else ""


def assert_within(
    what: str, a: tuple[str, np.ndarray], b: tuple[str, np.ndarray], allowed: Any
) -> None:
    """Raise AssertionError with the worst pair unless |a - b| <= allowed everywhere."""
    (a_name, x), (b_name, y) = a, b
    with np.errstate(invalid="ignore"):
        error = np.where(x == y, 0, np.abs(x - y))  # equal infinities are equal
    allowed = np.broadcast_to(allowed, error.shape)
    if not error.size or (error <= allowed).all():
        return
    excess = np.where(np.isnan(error), np.inf, error - allowed)
    k = int(excess.argmax())
    at = index_text(x.shape, k)
    raise AssertionError(
        f"{what}{' at ' + at if at else ''} is {x.reshape(-1)[k].item()!r} {a_name} but "
        f"{y.reshape(-1)[k].item()!r} {b_name}: they differ by {error.reshape(-1)[k]:.3g}, "
        f"allowed {allowed.reshape(-1)[k]:.3g}; {int((~(error <= allowed)).sum())} of "
        f"{error.size} values differ"
    )
