"""What gpugrad costs beyond NumPy: nanoseconds per small operation, seconds to import.

    python benchmarks/overhead.py [--check] [--out FILE] [--rounds N]

For each operation a chain of it on 8 float32 numbers runs forward and backward, interleaved with
exactly the NumPy calls that gpugrad makes for it: those of the forward, of the pullbacks, of
summing a broadcast gradient, of accumulating where a value was used more than once. The difference
is the overhead. Both have to give the same bits. Python's garbage collector runs as it does for
users, and the fixed cost of one ``backward()`` is spread over the chain. All times are CPU times,
which other programs disturb less than the clock on the wall. ``--check`` exits with 1 if a row is
over its budget. A compiled step is compared with the NumPy calls that it replays.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

import gpugrad as gg

BUDGET_NS = 2500.0  # forward + backward of one operation
REPLAY_BUDGET_NS = 300.0  # one launch of a compiled step
IMPORT_BUDGET_MS = 100.0
LENGTH = 400  # operations in a chain

# The NumPy calls of the backward of each operation. `ys` and `outs` hold what the links of the
# chain took and gave, newest first; `total` accumulates the gradient of w, which every link uses.

Arrays = Sequence[np.ndarray]
Gradients = tuple[np.ndarray, "np.ndarray | None"]


def _add(g: np.ndarray, w: np.ndarray, ys: Arrays, outs: Arrays) -> Gradients:
    total = np.zeros_like(w)
    for _ in ys:
        total = total + g
    return g, total


def _multiply(g: np.ndarray, w: np.ndarray, ys: Arrays, outs: Arrays) -> Gradients:
    total = np.zeros_like(w)
    for y in ys:
        total = total + g * y
        g = g * w
    return g, total


def _multiply_broadcast(g: np.ndarray, w: np.ndarray, ys: Arrays, outs: Arrays) -> Gradients:
    total = np.zeros_like(w)
    for y in ys:
        total = total + np.add.reduce(g * y, axis=(0,), keepdims=True).reshape(w.shape)
        g = g * w
    return g, total


def _matmul(g: np.ndarray, w: np.ndarray, ys: Arrays, outs: Arrays) -> Gradients:
    total = np.zeros_like(w)
    for y in ys:
        total = total + np.matmul(y.mT, g)
        g = np.matmul(g, w.mT)
    return g, total


def _multiply_number(g: np.ndarray, w: float, ys: Arrays, outs: Arrays) -> Gradients:
    for _ in ys:
        g = g * w
    return g, None


def _negative(g: np.ndarray, w: None, ys: Arrays, outs: Arrays) -> Gradients:
    for _ in ys:
        g = -g
    return g, None


def _tanh(g: np.ndarray, w: None, ys: Arrays, outs: Arrays) -> Gradients:
    for out in outs:
        g = g * (1 - out * out)
    return g, None


def _exp_negative(g: np.ndarray, w: None, ys: Arrays, outs: Arrays) -> Gradients:
    for out in outs:
        g = -(g * out)
    return g, None


def _sqrt(g: np.ndarray, w: None, ys: Arrays, outs: Arrays) -> Gradients:
    for out in outs:
        g = g / (out * 2)
    return g, None


def _sum(g: np.ndarray, w: None, ys: Arrays, outs: Arrays) -> Gradients:
    for y in ys:
        g = np.broadcast_to(g, y.shape)
    return g, None


def _reshape(g: np.ndarray, w: None, ys: Arrays, outs: Arrays) -> Gradients:
    for y in ys:
        g = g.reshape(y.shape)
    return g, None


@dataclass(frozen=True)
class Case:
    """One operation: y = f(y, w) or y = f(y) where w is None, in gpugrad and in NumPy.

    ``shape`` is that of y and ``w`` the shape of a second tensor that wants a gradient too, or a
    number. The results of a long chain have to stay finite. ``operations`` is how many f holds.
    """

    name: str
    gpugrad: Callable[..., Any]
    numpy: Callable[..., Any]
    backward: Callable[..., Gradients]
    shape: tuple[int, ...] = (8,)
    w: tuple[int, ...] | float | None = None
    operations: int = 1


def _last(total: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(total, axis=1, keepdims=True)


CASES = (
    Case("add", gg.add, np.add, _add, w=(8,)),
    Case("multiply", gg.multiply, np.multiply, _multiply, w=(8,)),
    Case("multiply by a number", gg.multiply, np.multiply, _multiply_number, w=0.99),
    Case("multiply, broadcast", gg.multiply, np.multiply, _multiply_broadcast, (2, 4), (4,)),
    Case("negative", gg.negative, np.negative, _negative),
    Case("tanh", gg.tanh, np.tanh, _tanh),
    Case("sqrt", gg.sqrt, np.sqrt, _sqrt),
    Case(
        "exp, negative",
        lambda y: gg.exp(gg.negative(y)),
        lambda y: np.exp(np.negative(y)),
        _exp_negative,
        operations=2,
    ),
    Case("sum", _last(gg.sum), _last(np.add.reduce), _sum, (8, 1)),
    Case("reshape", lambda y: gg.reshape(y, (8,)), lambda y: y.reshape((8,)), _reshape),
    Case("matmul", gg.matmul, np.matmul, _matmul, (2, 4), (4, 4)),
)


class Chain:
    """The four loops that are timed for a case, and the check that they compute the same."""

    def __init__(self, case: Case, length: int = LENGTH) -> None:
        rng = np.random.default_rng(0)
        self.case = case
        self.length = length
        self.x = rng.uniform(0.5, 1.0, case.shape).astype(np.float32)
        self.arguments: tuple = ()
        if isinstance(case.w, tuple):  # of spectral norm 1 or below, so that nothing overflows
            w = rng.uniform(0.9, 1.0, case.w).astype(np.float32)
            self.arguments = (w / np.linalg.norm(w) if w.ndim == 2 else w,)
        elif case.w is not None:
            self.arguments = (case.w,)
        self.g = np.ones(case.shape, np.float32)
        self.tensor = gg.tensor(self.x, requires_grad=True)
        self.tensors = tuple(
            gg.tensor(a, requires_grad=True) if isinstance(a, np.ndarray) else a
            for a in self.arguments
        )
        ys = [self.x]
        for _ in range(length):
            ys.append(case.numpy(ys[-1], *self.arguments))
        self.ys, self.outs = ys[-2::-1], ys[:0:-1]
        self.check()

    def gpugrad_forward(self) -> gg.Tensor:
        y, rest, f = self.tensor, self.tensors, self.case.gpugrad
        for _ in range(self.length):
            y = f(y, *rest)
        return y

    def gpugrad_both(self) -> None:
        for leaf in (self.tensor, *self.tensors):
            if isinstance(leaf, gg.Tensor):
                leaf.grad = None
        self.gpugrad_forward().backward(self.g)

    def numpy_forward(self) -> np.ndarray:
        y, rest, f = self.x, self.arguments, self.case.numpy
        for _ in range(self.length):
            y = f(y, *rest)
        return y

    def numpy_both(self) -> Gradients:
        self.numpy_forward()
        w = self.arguments[0] if self.arguments else None
        return self.case.backward(self.g, w, self.ys, self.outs)

    def check(self) -> None:
        """Raise AssertionError unless gpugrad and the NumPy calls give the same bits."""
        np.testing.assert_array_equal(self.gpugrad_forward().numpy(), self.numpy_forward())
        self.gpugrad_both()
        g, total = self.numpy_both()
        np.testing.assert_array_equal(self.tensor.grad.numpy(), g, self.case.name)
        if total is not None:
            np.testing.assert_array_equal(self.tensors[0].grad.numpy(), total, self.case.name)


def measure_operation(case: Case, rounds: int) -> dict[str, Any]:
    """Return the row of one operation, in nanoseconds per operation."""
    chain = Chain(case)
    timings = harness.compare(
        {
            "gpugrad forward": chain.gpugrad_forward,
            "numpy forward": chain.numpy_forward,
            "gpugrad": chain.gpugrad_both,
            "numpy": chain.numpy_both,
        },
        rounds=rounds,
        clock=time.thread_time,
    )
    scale = 1e9 / (chain.length * case.operations)
    forward = timings["gpugrad forward"] - timings["numpy forward"]
    both = timings["gpugrad"] - timings["numpy"]
    return {
        "what": case.name,
        "unit": "ns",
        "numpy": timings["numpy"].median * scale,
        "forward": forward.median * scale,
        "backward": (both - forward).median * scale,
        **both.row("beyond_numpy", scale),
        "budget": BUDGET_NS,
    }


def measure_replay(rounds: int) -> dict[str, Any]:
    """Return the row of one launch of a compiled step, in nanoseconds.

    The fixed cost of a call, copying the argument and the result among it, is spread over the
    launches.
    """
    w = np.full(8, 0.99, np.float32)
    x = np.ones(8, np.float32)
    factor = gg.tensor(w)

    @gg.compile
    def step(y: gg.Tensor) -> gg.Tensor:
        for _ in range(LENGTH):
            y = y * factor
        return y

    out = np.empty_like(x)

    def numpy() -> np.ndarray:
        y = x
        for _ in range(LENGTH):
            y = np.multiply(y, w, out=out)
        return y

    np.testing.assert_array_equal(step(x).numpy(), numpy())
    timings = harness.compare(
        {"gpugrad": lambda: step(x), "numpy": numpy}, rounds=rounds, clock=time.thread_time
    )
    scale = 1e9 / LENGTH
    return {
        "what": "launch of a compiled step",
        "unit": "ns",
        "numpy": timings["numpy"].median * scale,
        **(timings["gpugrad"] - timings["numpy"]).row("beyond_numpy", scale),
        "budget": REPLAY_BUDGET_NS,
    }


def measure_import(rounds: int) -> dict[str, Any]:
    """Return the row of ``import gpugrad``, in milliseconds, each in a fresh interpreter.

    The second import after installing is meant: modules are compiled in the warm-up. OpenBLAS has
    one thread: others would spin for as long as the process lives, which counts as CPU time.
    """
    with tempfile.TemporaryDirectory() as compiled:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": compiled, "OPENBLAS_NUM_THREADS": "1"}

        def importing(name: str) -> Callable[[], object]:
            command = [sys.executable, "-c", f"import {name}"]
            return lambda: subprocess.run(command, check=True, env=environment)

        def clock() -> float:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            return used.ru_utime + used.ru_stime

        variants = {"numpy": importing("numpy"), "gpugrad": importing("gpugrad")}
        timings = harness.compare(variants, rounds, warmup=2, clock=clock)
    return {
        "what": "import gpugrad",
        "unit": "ms",
        "numpy": timings["numpy"].median * 1e3,
        **(timings["gpugrad"] - timings["numpy"]).row("beyond_numpy", 1e3),
        "budget": IMPORT_BUDGET_MS,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if over a budget")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "overhead.json")
    options = parser.parse_args(arguments)

    record = harness.record("overhead", [], length=LENGTH, rounds=options.rounds)
    start = time.perf_counter()
    rows = [measure_operation(case, options.rounds) for case in CASES]
    rows.append(measure_replay(options.rounds))
    rows.append(measure_import(options.rounds))
    over = [row["what"] for row in rows if row["beyond_numpy"] > row["budget"]]
    harness.write_json({**record, "rows": rows}, options.out)
    print(f"load average before: {record['provenance']['load_average']:.2f};", end=" ")
    print(f"{time.perf_counter() - start:.0f} s; written to {options.out}")
    print(harness.table(rows))
    if over:
        print(f"over budget: {', '.join(over)}")
    return int(options.check and bool(over))


if __name__ == "__main__":
    sys.exit(main())
