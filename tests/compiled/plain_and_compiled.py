"""Steps that are run as they are and compiled: what there is to see in each call has the same bits.

A case is a function of ``wrap``, which is ``gg.compile`` or nothing, and returns all that it saw.
Numbers are small multiples of powers of two, so that nothing depends on the order of rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator
from gpugrad.cuda import emulation
from gpugrad.cuda.replay import Replay

# what is launched, and the context in which it is
WAYS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "kernels": lambda: emulator.enabled("plain"),
    "numpy": emulation.disabled,
}
by_kernels = pytest.mark.parametrize("launched", ["kernels"], indirect=True)
Case = Callable[[Callable], Any]


class Cases:
    """The cases of a file; called as a decorator it adds one."""

    def __init__(self) -> None:
        self.found: list[Case] = []

    def __call__(self, case: Case) -> Case:
        """Add a case."""
        self.found.append(case)
        return case

    @staticmethod
    def agrees(case: Case) -> None:
        """Assert that a case sees the same with steps that are compiled, whatever they launch."""
        for way, context in WAYS.items():
            with context():
                plain = case(lambda step: step)
                with poisoned():
                    compiled = case(gg.compile)
            assert compiled == plain, way


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill the arena with NaN before each replay."""
    run = Replay._make_calls

    def poison_and_run(replay: Replay) -> None:
        replay.arena[...] = 0xFF
        run(replay)

    with mock.patch.object(Replay, "_make_calls", poison_and_run):
        yield


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Return multiples of 1/4 from -2 to 2."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 4


def leaf(*shape: int, seed: int = 0) -> gg.Tensor:
    """Return such numbers as a tensor that requires a gradient."""
    return gg.tensor(numbers(*shape, seed=seed), requires_grad=True)


def seen(*values: Any) -> list:
    """Return what can be compared of tensors and other values, as they are now."""
    found: list = []
    for value in values:
        if isinstance(value, (gg.Tensor, np.ndarray)):
            array = gg.asarray(value).detach().numpy()
            found.append((array.shape, array.dtype.name, array.tobytes()))
        elif isinstance(value, (list, tuple)):
            found.append(seen(*value))
        else:
            found.append(value)
    return found


def state_of(optimizer: Any) -> list:
    """Return all that an optimiser remembers of its parameters."""
    return [
        (name, np.asarray(value).tobytes())
        for one in optimizer.state_dict()["state"].values()
        for name, value in one.items()
    ]


def bits(x: Any) -> bytes:
    """Return the bytes of a tensor, an array or a number."""
    return (x.numpy() if isinstance(x, gg.Tensor) else np.asarray(x)).tobytes()


def recorded(function: Any) -> Any:
    """Return the only recording of a compiled function."""
    ((found,),) = function._found.values()
    return found
