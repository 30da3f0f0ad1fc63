"""One case per row of the registry and sample: tests ask for a ``row`` or a ``smooth`` one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.registry import OPS, Op, Sample


class Row:
    """An operation with one of its samples; calling it calls the operation."""

    def __init__(self, op: Op, sample: Sample) -> None:
        self.op = op
        self.sample = sample
        self.__name__ = op.name
        self.__signature__ = inspect.Signature(  # for the messages of gradcheck
            [inspect.Parameter(a, inspect.Parameter.POSITIONAL_ONLY) for a in op.arguments]
        )

    def __str__(self) -> str:
        return f"{self.op.name}-{self.sample!r}"

    def __call__(self, *args: Any) -> Any:
        return self.op.function(*args, **self.sample.statics)

    def arrays(self, seed: int = 0) -> list[Any]:
        """Return the sample's arguments: float64 arrays, masks, None."""
        return self.sample.draw(np.random.default_rng(seed))

    def tensors(self, arrays: list[Any], dtype: Any = backend.float64) -> list[Any]:
        """Return the arguments as tensors, those with a pullback requiring grad."""
        return [
            a
            if a is None
            else gg.tensor(a.astype(dtype), requires_grad=name in self.op.rules)
            if a.dtype.kind == "f"
            else gg.tensor(a)
            for name, a in zip(self.op.arguments, arrays, strict=True)
        ]


def rows() -> Iterator[Row]:
    """Yield every row of the registry with each of its samples."""
    for op in OPS.values():
        for sample in op.samples:
            yield Row(op, sample)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", list(rows()), ids=str)
    if "smooth" in metafunc.fixturenames:
        metafunc.parametrize("smooth", [r for r in rows() if r.op.rules], ids=str)


@pytest.fixture(scope="session")
def rows_of() -> Any:
    """A function from the name of an operation to its rows."""
    return lambda name: [row for row in rows() if row.op.name == name]
