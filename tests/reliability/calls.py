"""Calls of anything public, drawn at random, and what is wrong with the way one ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import gpugrad as gg

from . import values
from .fuzz import allow
from .surface import Target
from .values import HOSTILE, SHAPES, build, described

PACKAGE = str(Path(gg.__file__).parent)
ERRORS = (TypeError, ValueError, IndexError, RuntimeError)
TOLERANCES = {"bfloat16": 6e-2, "float16": 1e-2, "float32": 1e-4, "float64": 1e-9}
UNDEFINED = {"gg.empty", "gg.empty_like"}  # their elements
UNLIKE_NUMPY = {  # by design
    "gg.nonzero",  # one row a position
    "gg.reciprocal",  # integers give float32
    "gg.trace",  # of the last two axes
}


@st.composite
def calls(draw: Any, target: Target) -> tuple[list[Any], dict[str, Any]]:
    """Draw the positional and the keyword arguments of a call, most of them sound."""
    base = draw(st.sampled_from(SHAPES))
    positional: list[Any] = []
    named: dict[str, Any] = {}
    by_position = True
    for i, p in enumerate(target.parameters):
        if target.is_method and i == 0:
            positional.append(draw(values.arrays(base, tensors=True)))
            continue
        if p.kind is p.VAR_KEYWORD:
            continue
        sound = values.of(target.id.partition(".")[2], p, base)
        value = sound if draw(st.integers(0, 9)) else HOSTILE
        if p.kind is p.VAR_POSITIONAL:
            positional += draw(st.lists(value, max_size=3))
        elif p.default is not p.empty and draw(st.booleans()):
            by_position = False
        elif p.kind is p.KEYWORD_ONLY or not by_position:
            named[p.name] = draw(value)
        else:
            positional.append(draw(value))
    if not draw(st.integers(0, 19)):
        named["no_such_argument"] = 1
    return positional, named


def problem(target: Target, arguments: tuple[list[Any], dict[str, Any]]) -> str | None:
    """Return what is wrong with the way a call ends, None if nothing is."""
    positional, named = build(arguments)
    before = described([positional, named])
    state = gg.random.get_state()
    try:
        allow()
        with np.errstate(all="ignore"):
            result = target.function(*positional, **named)
            if isinstance(result, Iterator):
                list(zip(range(3), result, strict=False))
            if gg.random.get_state() == state and not target.is_in_place:
                return inexact(target, arguments, result)
    except ERRORS as error:
        drew = gg.random.get_state() != state and "meta" not in repr(arguments)
        return (
            foreign(error, target)
            or ("an argument changed" if described([positional, named]) != before else None)
            or ("random numbers were drawn" if drew and not asks_for_much(arguments) else None)
        )
    except BufferError:  # what DLPack's protocol asks for
        return None
    except MemoryError as error:
        return None if asks_for_much(arguments) else f"{error!r}"
    except AssertionError as error:
        return None if target.id.startswith("testing.assert") else f"{error!r}"
    except (OSError, ImportError) as error:
        return None if target.id.startswith(("text.", "models.")) else f"{error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def asks_for_much(arguments: Any) -> bool:
    """Return whether a number among the arguments may mean more memory than there is."""
    return any(str(large) in repr(arguments) for large in (10**9, *values.LARGE))


def inexact(target: Target, arguments: Any, result: Any) -> str | None:
    """Return how a result differs from that of the same numbers in float64, and from NumPy's."""
    if not isinstance(result, gg.Tensor) or result.device != "cpu" or not plain(arguments):
        return None
    if target.id in UNDEFINED:
        return None
    positional, named = values.precise(arguments)
    try:
        expected = target.function(*positional, **named)
    except ERRORS as error:
        return f"not with float64 in C order: {error!r}"
    problem = far(result, expected, arguments, "float64 in C order")
    reference = getattr(np, target.id.partition(".")[2], None)
    if problem or target.id[:3] != "gg." or reference is None or target.id in UNLIKE_NUMPY:
        return problem
    try:
        arrays, named = values.precise(arguments)
        expected = reference(*map(raw, arrays), **{key: raw(v) for key, v in named.items()})
        expected = np.asarray(expected)
    except Exception:  # what NumPy refuses may mean something here
        return None
    return far(result, expected, arguments, "NumPy")


def plain(arguments: Any) -> bool:
    """Return whether the arguments are numbers that every dtype can compute with."""
    text = repr(arguments)
    return not any(word in text for word in ("special", "meta", "large", "nan", "inf", "e+"))


def raw(value: Any) -> Any:
    """Return an argument as NumPy takes it."""
    if isinstance(value, (list, tuple)):
        return type(value)(raw(v) for v in value)
    return value.numpy() if isinstance(value, gg.Tensor) else value


def far(result: gg.Tensor, expected: Any, arguments: Any, what: str) -> str | None:
    """Return how a result differs from the expected one by more than rounding."""
    found = result.detach().numpy()
    expected = np.asarray(
        expected.detach().numpy() if isinstance(expected, gg.Tensor) else expected
    )
    if found.shape != expected.shape:
        return f"shape {found.shape} where {what} gives {expected.shape}"
    if not found.size or expected.dtype.kind not in "fiub":
        return None
    used = [name for name in TOLERANCES if f"'{name}'" in repr(arguments)]
    used += [found.dtype.name, expected.dtype.name]
    tolerance = max(TOLERANCES.get(name, 1e-9) for name in used)
    with np.errstate(all="ignore"):
        wanted = expected.astype(found.dtype).astype(float)
    finite = np.abs(wanted[np.isfinite(wanted)])
    scale = max(1.0, finite.max(initial=0.0))
    if np.allclose(found.astype(float), wanted, tolerance, tolerance * scale, equal_nan=True):
        return None
    return f"{found.ravel()[:4]} where {what} gives {wanted.ravel()[:4]}"


def foreign(error: Exception, target: Target) -> str | None:
    """Return what is wrong with an error: where it was raised, or what it says."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    if frames == [__file__]:
        return None  # Python's own, about the arguments of the call
    if not frames[-1].startswith(PACKAGE):
        return f"raised in {frames[-1]}: {type(error).__name__}: {error}"
    if type(error).__module__.startswith("gpugrad") or target.takes_function:
        return None  # the message is the class's, or that of the function
    if not any(name in str(error) for name in target.names):
        return f"does not name {target.names}: {type(error).__name__}: {error}"
    return None


def refusal(function: Callable[..., Any], *arguments: Any) -> Exception | None:
    """Return the error a call raises, None if it is answered."""
    try:
        function(*arguments)
    except ERRORS as error:
        return error
    return None
