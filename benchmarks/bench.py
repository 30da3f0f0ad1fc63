"""Time operations against their floor, their definition and other libraries: `gpugrad bench`.

    python benchmarks/bench.py [NAME ...] [--compare torch] [--dtype bfloat16] [--json FILE]

The floor of an operation is what the device cannot beat: the bytes it has to move at the copy
rate, or its floating operations at the rate of a matrix product, whichever takes longer; both
rates are measured here first. All variants of a case are timed in interleaved rounds.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np

import gpugrad as gg
from gpugrad import backend
from gpugrad.fused import FUSED, Fused
from gpugrad.registry import Sample

FOLDER = Path(__file__).resolve().parent
OTHERS = {"bench", "harness", "gpu_session", "overhead", "small_gpt", "torch_gpt", "torch_parity"}
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Case:
    """An operation at one size. ``sample`` gives shapes or arrays, and the keywords.

    ``torch(torch, *tensors)`` computes the same with PyTorch, ``cpu_sample`` stands in for
    ``sample`` where there is no GPU.
    """

    op: str
    sample: Sample
    cpu_sample: Sample | None = None
    torch: Callable[..., Any] | None = None
    label: str = ""
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def at(self, device: str) -> Sample:
        """Return the sample for a device."""
        return self.sample if device != "cpu" or self.cpu_sample is None else self.cpu_sample

    def title(self, device: str) -> str:
        """Return the size in words."""
        return self.label or repr(self.at(device))


@dataclass(frozen=True)
class Peaks:
    """What the device does at best: bytes copied, and operations of a matrix product, a second."""

    bytes_per_second: float
    flops_per_second: float

    def floor(self, size: int, flops: int) -> float:
        """Return the seconds that moving so many bytes and computing so much takes at least."""
        return max(size / self.bytes_per_second, flops / self.flops_per_second)


def names() -> list[str]:
    """Return the names of the files with cases, one for each kernel."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in OTHERS)


def cases(name: str) -> list[Case]:
    """Return the cases of a file here, or the benchmark samples of an operation of that name."""
    if name in names():
        return list(importlib.import_module(name).CASES)
    op = FUSED[name]
    return [Case(name, sample) for sample in op.sizes or op.samples]


def peaks(device: str, dtype: str, n: int | None = None) -> Peaks:
    """Measure the copy rate and the rate of a matrix product of a dtype."""
    xp = backend.namespace(device)
    size = 2**30 if device != "cpu" else 2**27
    source = xp.ones(size // 4, dtype=xp.float32)
    target = xp.empty_like(source)
    n = n or (8192 if device != "cpu" else 1024)
    kind = backend.as_dtype("float32" if device == "cpu" else dtype)
    a, b = (xp.ones((n, n), dtype=kind) for _ in range(2))
    timing = harness.compare(
        {"copy": lambda: xp.copyto(target, source), "matmul": lambda: xp.matmul(a, b)}, rounds=10
    )
    return Peaks(2 * size / timing["copy"].median, 2 * n**3 / timing["matmul"].median)


def inputs(op: Fused, sample: Sample, dtype: str, device: str) -> list[Any]:
    """Return the arguments as tensors on the device, shapes drawn from a normal distribution."""
    gg.manual_seed(0)
    made: list[Any] = []
    for name, argument in zip(op.arguments, sample.arguments, strict=True):
        if argument is None:
            made.append(None)
        elif isinstance(argument, tuple):
            x = gg.random.normal(size=argument, device=device).astype(dtype)
            made.append(gg.tensor(x.data, requires_grad=name in op.differentiable))
        else:
            made.append(gg.tensor(argument, device=device))
    return made


def variants(
    op: Fused, case: Case, given: Sequence[Any], statics: Mapping[str, Any], compare: Sequence[str]
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield (implementation, direction, call) of everything that can be timed."""
    arrays = [None if x is None else x.data for x in given]
    wanted = tuple(x is not None and x.requires_grad for x in given)
    chosen = op.choose(arrays, dict(statics))
    if chosen != "spec":
        implementation = op.implementations[chosen]
        out, kept = implementation.forward(*arrays, **statics)
        g = [_like(o) for o in out] if isinstance(out, tuple) else _like(out)
        yield chosen, "forward", lambda: implementation.forward(*arrays, **statics)
        if implementation.backward is not None:
            backward = implementation.backward
            yield chosen, "backward", lambda: backward(wanted, g, arrays, kept, **statics)

    def definition() -> Any:
        return op.spec(*given, **statics)

    yield "definition", "forward", definition
    out = definition()
    outs = out if isinstance(out, tuple) else (out,)
    seeds = [gg.tensor(_like(o.data)) for o in outs]
    leaves = [x for x, w in zip(given, wanted, strict=True) if w]
    yield "definition", "backward", lambda: gg.grad(outs, leaves, seeds, retain_graph=True)
    if "torch" in compare and case.torch is not None:
        yield from _torch_variants(case.torch, given, wanted, statics)


def _torch_variants(
    f: Callable[..., Any], given: Sequence[Any], wanted: Sequence[bool], statics: Mapping[str, Any]
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    torch = importlib.import_module("torch")
    tensors = [None if x is None else _to_torch(torch, x.data) for x in given]
    leaves = [t.requires_grad_() for t, w in zip(tensors, wanted, strict=True) if w]

    def forward() -> Any:
        with torch.no_grad():
            return f(torch, *tensors, **statics)

    yield "torch", "forward", forward
    out = f(torch, *tensors, **statics)
    outs = out if isinstance(out, tuple) else (out,)
    seeds = [torch.randn_like(o) for o in outs]
    yield (
        "torch",
        "backward",
        lambda: torch.autograd.grad(outs, leaves, seeds, retain_graph=True),
    )


def _to_torch(torch: Any, array: Any) -> Any:
    if array.dtype != backend.bfloat16:
        return torch.from_dlpack(array).clone()
    return torch.from_dlpack(array.view(np.int16)).clone().view(torch.bfloat16)


def _like(array: Any) -> Any:
    xp = backend.xp_of(array)
    return xp.cos(xp.arange(array.size, dtype=xp.float32)).reshape(array.shape).astype(array.dtype)


def measure(
    case: Case,
    dtype: str,
    device: str,
    peak: Peaks,
    compare: Sequence[str] = (),
    rounds: int = 20,
    cold: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a row for every implementation and direction of a case."""
    op, sample = FUSED[case.op], case.at(device)
    given = inputs(op, sample, dtype, device)
    statics = sample.statics
    calls: dict[str, dict[str, Callable[[], object]]] = {d: {} for d in DIRECTIONS}
    first = {}
    for name, direction, call in variants(op, case, given, statics, compare):
        start = time.perf_counter()  # the first call compiles
        call()
        gg.synchronize()
        first[name, direction] = time.perf_counter() - start
        calls[direction][name] = call
    cost = (
        None
        if op.cost is None
        else op.cost(*(x if x is None else x.data for x in given), **statics)
    )
    before = harness.cold_cache(device) if cold else None
    for direction in DIRECTIONS:
        if not calls[direction]:
            continue
        with gg.no_grad() if direction == "forward" else gg.enable_grad():
            timings = harness.compare(calls[direction], rounds=rounds, before=before)
        for name, timing in timings.items():
            row = {"op": case.op, "case": case.title(device), "dtype": dtype}
            row |= {"direction": direction, "implementation": name}
            row |= timing.row("us", 1e6)
            row["first_call_ms"] = 1e3 * first[name, direction]
            if cost is not None:
                size = getattr(cost, f"{direction}_bytes")
                flops = getattr(cost, f"{direction}_flops")
                floor = peak.floor(size, flops)
                row |= {"floor_us": 1e6 * floor, "percent_of_peak": 100 * floor / timing.median}
                row |= {"GB/s": size / timing.median / 1e9, "GFLOP/s": flops / timing.median / 1e9}
                row["flops_per_byte"] = flops / size if size else math.inf
            yield row


def roofline(rows: Sequence[Mapping[str, Any]], peak: Peaks, path: Path) -> None:
    """Draw what was reached over floating operations per byte, under the device's two limits."""
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise SystemExit('bench: --plot needs Matplotlib: pip install "gpugrad[plot]"') from None
    shown = [row for row in rows if row.get("flops_per_byte") and row["GFLOP/s"]]
    pyplot.switch_backend("agg")
    figure, axes = pyplot.subplots(figsize=(8, 5))
    ridge = peak.flops_per_second / peak.bytes_per_second
    x = np.geomspace(0.05, 10 * ridge, 200)
    axes.loglog(x, np.minimum(x * peak.bytes_per_second, peak.flops_per_second) / 1e9, "k")
    for name in dict.fromkeys(row["implementation"] for row in shown):
        mine = [row for row in shown if row["implementation"] == name]
        points = [row["flops_per_byte"] for row in mine], [row["GFLOP/s"] for row in mine]
        axes.loglog(*points, "o", label=name, alpha=0.7)
    axes.set_xlabel("floating operations per byte")
    axes.set_ylabel("GFLOP/s")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per case and direction: the time of each other over the fast path's."""
    lines = []
    keys = ("op", "case", "dtype", "direction")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        mine = {r["implementation"]: r for r in rows if tuple(r[k] for k in keys) == key}
        fast = next((mine[name] for name in ("cuda", "numpy", "definition") if name in mine), None)
        if fast is None:
            continue
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        line |= {"implementation": fast["implementation"], "us": fast["us"]}
        line |= {"percent_of_peak": fast.get("percent_of_peak")}
        line |= {f"{n}_us": r["us"] for n, r in mine.items() if r is not fast}
        line |= {f"{n}_takes": r["us"] / fast["us"] for n, r in mine.items() if r is not fast}
        lines.append(line)
    return lines


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; return the exit code."""
    description = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of: {', '.join(names())}")
    parser.add_argument("--module", action="append", default=[], help="with operations of your own")
    parser.add_argument("--compare", action="append", default=[], choices=["torch"])
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=20, help="of interleaved timing (20)")
    parser.add_argument("--cold", action="store_true", help="empty the caches before every sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, with provenance")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline (Matplotlib)")
    given = parser.parse_args(arguments)
    for module in given.module:
        importlib.import_module(module)
    unknown = [n for n in given.names if n not in names() and n not in FUSED]
    if unknown:
        parser.error(f"nothing named {unknown[0]!r}; there are {', '.join(names())}")
    if given.rounds < 1:
        parser.error(f"--rounds must be positive, got {given.rounds}")
    if "torch" in given.compare and importlib.util.find_spec("torch") is None:
        parser.error('--compare torch needs PyTorch: pip install "gpugrad[bench]"')
    device = backend.default_device()
    if device == "cpu":
        why = backend.cupy_or_reason()[1] or "GPUGRAD_DEVICE asks for the CPU"
        print(f"No GPU ({why}): these are the NumPy implementations at small sizes.")
    rows: list[dict[str, Any]] = []
    dtypes = given.dtype or (["float32"] if device == "cpu" else ["bfloat16"])
    for dtype in dtypes:
        peak = peaks(device, dtype)
        print(
            f"{dtype}: copy {peak.bytes_per_second / 1e9:.4g} GB/s, matrix product "
            f"{peak.flops_per_second / 1e12:.3g} TFLOP/s, measured here"
        )
        for name in given.names or names():
            for case in cases(name):
                args = (case, dtype, device, peak, given.compare, given.rounds, given.cold)
                found = list(measure(*args))
                rows += found
                print(".", end="", flush=True)
        if given.plot:
            roofline([row for row in rows if row["dtype"] == dtype], peak, given.plot)
    print()
    if given.json:
        harness.write_json(harness.record("bench", rows, device, cold=given.cold), given.json)
    print(harness.table(ratios(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
