"""What the tests of fused operations share: the launch counter, and the rules of testing.py."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing, threads
from gpugrad.fused import FUSED, _mlp_numpy, _row_parts, _rows
from gpugrad.ops import _products


@contextlib.contextmanager
def _launching(name: str, times: int = 1, chosen: str = "numpy") -> Iterator[None]:
    op = FUSED[name]
    before = dict(op.launches)
    yield
    moved = {key: n - before.get(key, 0) for key, n in op.launches.items() if n != before.get(key)}
    assert moved == ({chosen: times} if times else {})


@pytest.fixture
def launching() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Return a context that asserts how often an operation ran which implementation inside it."""
    return _launching


@pytest.fixture
def check() -> Callable[..., None]:
    """Return ``check(name, function, inputs, dtype, scale=0, **statics)``.

    The public function must launch its NumPy implementation once, obey the 2x/3x rule against its
    spec, gradients included, and give the same bits when run again.
    """

    def run(
        name: str,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        dtype: Any,
        scale: float = 0.0,
        **statics: Any,
    ) -> None:
        spec = functools.partial(FUSED[name].spec, **statics)
        fast = functools.partial(function, **statics)
        with _launching(name), np.errstate(all="raise", under="ignore"):
            fast(*(_cast(x, dtype) for x in inputs))
        if dtype == "float64":  # where the spec is its own reference, without any error
            scale = max(scale, 1e3)
        with np.errstate(all="ignore"):  # the specs are plain operations and warn of overflow
            testing.assert_implements(fast, spec, inputs, dtype, scale=scale)
        first, again = (_bits(fast, [_cast(x, dtype) for x in inputs]) for _ in range(2))
        assert first == again

    return run


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have NumPy implementations take small layers too, in parts and a few rows at a time."""
    for name, value in {"ROWS": 16, "SPLIT": 1, "FEWEST": 0}.items():
        monkeypatch.setattr(_row_parts, name, value)
    monkeypatch.setattr(_mlp_numpy, "BLOCK", 12)
    monkeypatch.setattr(_rows, "BLOCK", 1)
    monkeypatch.setattr(_rows, "ALONE", 1)
    monkeypatch.setattr(_products, "WHOLE", 1)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Return an iterator that sets another size of blocks and number of threads in each turn."""

    def run() -> Iterator[None]:
        for block, count in ((1, 1), (1, 3), (3000, 2), (32768, 4)):
            monkeypatch.setattr(_rows, "BLOCK", block)
            monkeypatch.setattr(_rows, "ALONE", block)
            with threads.num_threads(count):
                yield

    return run()


def _cast(x: Any, dtype: Any) -> Any:
    if not isinstance(x, gg.Tensor):
        return x
    return gg.Tensor(x.data.astype(dtype), requires_grad=x.requires_grad)


def _bits(function: Callable[..., Any], inputs: Sequence[Any]) -> list[bytes]:
    result = function(*inputs)
    outs = result if isinstance(result, tuple) else (result,)
    upstream = [gg.Tensor(_upstream(out)) for out in outs]
    wanted = [x for x in inputs if isinstance(x, gg.Tensor) and x.requires_grad]
    grads = gg.grad(outs, wanted, upstream) if wanted else ()
    return [t.data.tobytes() for t in (*outs, *grads)]


def _upstream(out: gg.Tensor) -> np.ndarray:
    return np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype)
