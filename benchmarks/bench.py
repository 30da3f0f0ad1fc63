"""Time operations against their floor, their definition and other libraries: `gpugrad bench`.

    python benchmarks/bench.py [NAME ...] [--compare torch] [--dtype bfloat16] [--json FILE]

The floor of an operation is what the device cannot beat: the bytes it has to move at the copy
rate, or its floating operations at the rate of a matrix product, whichever takes longer; both
rates are measured here first. All implementations of a case are timed in interleaved rounds, and
what they compute is compared: another result is reported, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import harness
import numpy as np

import gpugrad as gg
from gpugrad import backend
from gpugrad.cuda import emulation
from gpugrad.fused import FUSED, Cost, Fused
from gpugrad.registry import Sample

FOLDER = Path(__file__).resolve().parent
OTHERS = {"bench", "harness", "gpu_session", "overhead", "torch_parity", "language_models"}
OTHERS |= {"anomaly"}  # extremes.cu within a whole step
OTHERS |= {"training", "train_peers", "train_step", "small_gpt"}
OTHERS |= {"gpugrad_gpt", "torch_gpt", "jax_gpt", "tinygrad_gpt"}
DIRECTIONS = ("forward", "backward")
# The relative difference between two results below which they count as the same.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}


class Call(NamedTuple):
    """A call to time, and how far its results are from those of the fast path, relatively."""

    direction: str
    run: Callable[[], object]
    difference: float | None = None


Makers: TypeAlias = Mapping[str, Callable[[], Iterable[Call]]]


class Built(NamedTuple):
    """What to time on a device, by implementation: functions that return the calls one by one.

    Nothing is computed before, so that an implementation that needs too much memory is left out
    and no other. ``cost`` is that of the fast path's task, not of one implementation.
    """

    cost: Cost | None
    makers: Makers


@dataclass(frozen=True)
class Ids:
    """An argument of a sample: integers below a limit, drawn when they are needed."""

    shape: tuple[int, ...]
    below: int

    def draw(self) -> np.ndarray:
        """Return them, int64, always the same."""
        return np.random.default_rng(0).integers(self.below, size=self.shape)


@dataclass(frozen=True)
class Weights:
    """An argument of a sample: normal numbers that keep the size of what they multiply.

    Their standard deviation is 1 / sqrt(the last length).
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A fused operation at one size. ``sample`` gives shapes, arrays, Ids or Weights, and the
    keywords.

    ``torch(torch, *tensors, **keywords)`` computes the same with PyTorch, ``cpu_sample`` stands in
    for ``sample`` where there is no GPU, ``label`` for the keywords in the title. ``kernels`` are
    other kernels than those a GPU takes by itself: a name, and what returns the context in which
    they are taken.
    """

    op: str
    sample: Sample
    cpu_sample: Sample | None = None
    torch: Callable[..., Any] | None = None
    label: str = ""
    kernels: tuple[tuple[str, Callable[[], AbstractContextManager[None]]], ...] = ()

    def at(self, device: str) -> Sample:
        """Return the sample for a device."""
        return self.sample if device != "cpu" or self.cpu_sample is None else self.cpu_sample

    def title(self, device: str) -> str:
        """Return the size in words."""
        sample = self.at(device)
        if not self.label:
            return repr(sample)
        shapes = [a if isinstance(a, tuple) else a.shape for a in sample.arguments if a is not None]
        return " ".join([self.label, *dict.fromkeys("x".join(map(str, s)) for s in shapes)])

    def build(self, device: str, dtype: str, torch: Any = None) -> Built:
        """Return what to time: the fast path, the definition and, given the module, PyTorch."""
        op, sample = FUSED[self.op], self.at(device)
        given = inputs(op, sample, dtype, device)
        arrays, statics = [None if x is None else x.data for x in given], sample.statics
        cost = None if op.cost is None else op.cost(*arrays, **statics)
        chosen = op.choose(arrays, dict(statics))
        makers: dict[str, Callable[[], Iterable[Call]]] = {}
        if chosen != "spec":
            makers[chosen] = lambda: _fast_path(op, chosen, given, statics)

        @functools.cache
        def fast() -> tuple[list[Any], list[Any]]:
            return _results(lambda: op(*given, **statics), given)

        for name, choice in self.kernels if chosen == "cuda" else ():
            makers[f"cuda, {name}"] = functools.partial(
                _other_kernels, choice, op, given, statics, fast
            )
        makers["definition"] = lambda: _definition(op, given, statics, fast)
        if torch is not None and self.torch is not None:
            f = self.torch
            makers["torch"] = lambda: _in_torch(torch, f, given, statics, fast)
        return Built(cost, makers)


@dataclass(frozen=True)
class Work:
    """What is no fused operation, at one size: ``make(size, device, dtype, torch)`` builds it.

    ``torch`` is the module or None; ``cpu_size`` stands in for ``size`` where there is no GPU.
    """

    op: str
    size: Any
    cpu_size: Any
    make: Callable[[Any, str, str, Any], Built]
    label: str = ""

    def at(self, device: str) -> Any:
        """Return the size for a device."""
        return self.size if device != "cpu" else self.cpu_size

    def title(self, device: str) -> str:
        """Return the size in words."""
        size = self.at(device)
        words = "x".join(map(str, size)) if type(size) is tuple else str(size)
        return f"{self.label} {words}".strip()

    def build(self, device: str, dtype: str, torch: Any = None) -> Built:
        """Return what to time on a device."""
        return self.make(self.at(device), device, dtype, torch)


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


def cases(name: str) -> list[Case | Work]:
    """Return the cases of a file here, or those of an operation.

    An operation that no file here knows is measured at its own sizes. Raises KeyError where there
    is neither file nor operation.
    """
    if name in names():
        return list(importlib.import_module(name).CASES)
    found = [case for file in names() for case in cases(file) if case.op == name]
    if found:
        return found
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
    with emulation.disabled():  # random numbers: a GPU multiplies equal ones faster
        a, b = (normal((n, n), kind, device).data for _ in range(2))
    timing = harness.compare(
        {"copy": lambda: xp.copyto(target, source), "matmul": lambda: xp.matmul(a, b)}, rounds=10
    )
    return Peaks(2 * size / timing["copy"].median, 2 * n**3 / timing["matmul"].median)


# What to time


def fast_path(device: str) -> str:
    """Return the name of gpugrad's own implementation on a device."""
    return "numpy" if device == "cpu" else "cuda"


def only(run: Callable[[], object]) -> Callable[[], Iterable[Call]]:
    """Return the maker of a single call, which has no backward pass."""
    return lambda: [Call("forward", run)]


def normal(
    shape: tuple[int, ...],
    dtype: Any,
    device: str,
    requires_grad: bool = False,
    std: float = 1.0,
) -> Any:
    """Return a tensor of normal numbers."""
    x = gg.random.normal(0.0, std, shape, device=device).astype(dtype)
    return gg.tensor(x.data, requires_grad=requires_grad)


def inputs(op: Fused, sample: Sample, dtype: str, device: str) -> list[Any]:
    """Return the arguments as tensors on the device, shapes drawn from a normal distribution."""
    gg.manual_seed(0)
    made: list[Any] = []
    for name, argument in zip(op.arguments, sample.arguments, strict=True):
        if argument is None:
            made.append(None)
        elif isinstance(argument, (tuple, Weights)):
            shape = argument if isinstance(argument, tuple) else argument.shape
            std = 1.0 if isinstance(argument, tuple) else shape[-1] ** -0.5
            made.append(normal(shape, dtype, device, name in op.differentiable, std))
        else:
            values = argument.draw() if isinstance(argument, Ids) else argument
            made.append(gg.tensor(values, device=device))
    return made


def _fast_path(
    op: Fused, chosen: str, given: Sequence[Any], statics: Mapping[str, Any]
) -> Iterator[Call]:
    arrays = [None if x is None else x.data for x in given]
    wanted = tuple(x is not None and x.requires_grad for x in given)
    implementation = op.implementations[chosen]
    yield Call("forward", lambda: implementation.forward(*arrays, **statics))
    if implementation.backward is not None:
        backward = implementation.backward
        out, kept = implementation.forward(*arrays, **statics)
        g = [_like(o) for o in out] if isinstance(out, tuple) else _like(out)
        yield Call("backward", lambda: backward(wanted, g, arrays, kept, **statics))


Results: TypeAlias = Callable[[], tuple[list[Any], list[Any]]]


def _results(run: Callable[[], Any], given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the arrays that a function of tensors computes, and the gradients."""
    outs, gradients = _differentiated(run, given)
    return [o.data for o in outs], [g.data for g in gradients()]


def _differentiated(run: Callable[[], Any], given: Sequence[Any]) -> tuple[Any, Callable]:
    out = run()
    outs = out if isinstance(out, tuple) else (out,)
    seeds = [gg.tensor(_like(o.data)) for o in outs]
    leaves = [x for x in given if x is not None and x.requires_grad]
    return outs, lambda: gg.grad(outs, leaves, seeds, retain_graph=True)


def _other_kernels(
    choice: Callable[[], AbstractContextManager[None]],
    op: Fused,
    given: Sequence[Any],
    statics: Mapping[str, Any],
    fast: Results,
) -> Iterator[Call]:
    def chosen(run: Callable[[], object]) -> object:
        with choice():
            return run()

    with choice():
        found = _results(lambda: op(*given, **statics), given)
        calls = list(_fast_path(op, "cuda", given, statics))
    for call, mine, expected in zip(calls, found, fast(), strict=False):
        run = functools.partial(chosen, call.run)
        yield Call(call.direction, run, difference(mine, expected))


def _definition(
    op: Fused, given: Sequence[Any], statics: Mapping[str, Any], fast: Results
) -> Iterator[Call]:
    def forward() -> Any:
        return op.spec(*given, **statics)

    outs, gradients = _differentiated(forward, given)
    yield Call("forward", forward, difference([o.data for o in outs], fast()[0]))
    found = [g.data for g in gradients()]
    yield Call("backward", gradients, difference(found, fast()[1]))


def _in_torch(
    torch: Any,
    f: Callable[..., Any],
    given: Sequence[Any],
    statics: Mapping[str, Any],
    fast: Results,
) -> Iterator[Call]:
    tensors = [None if x is None else to_torch(torch, x.data) for x in given]
    pairs = zip(tensors, given, strict=True)
    leaves = [t.requires_grad_() for t, x in pairs if x is not None and x.requires_grad]

    def forward() -> Any:
        return f(torch, *tensors, **statics)

    out = forward()
    outs = out if isinstance(out, tuple) else (out,)
    found = [from_torch(torch, o) for o in outs]
    yield Call("forward", without_graph(torch, forward), difference(found, fast()[0]))
    seeds = [to_torch(torch, _like(o)) for o in fast()[0]]

    def backward() -> Any:
        return torch.autograd.grad(outs, leaves, seeds, retain_graph=True)

    found = [from_torch(torch, g) for g in backward()]
    yield Call("backward", backward, difference(found, fast()[1]))


def without_graph(torch: Any, run: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs another while PyTorch records nothing."""

    def quietly() -> object:
        with torch.no_grad():
            return run()

    return quietly


def to_torch(torch: Any, array: Any) -> Any:
    """Return an array as a PyTorch tensor with memory of its own."""
    if array.dtype != backend.bfloat16:
        return torch.from_dlpack(array).clone()
    return torch.from_dlpack(array.view(np.int16)).clone().view(torch.bfloat16)


def from_torch(torch: Any, tensor: Any) -> Any:
    """Return a PyTorch tensor as an array where it is."""
    xp = np if tensor.device.type == "cpu" else backend.cupy_module()
    tensor = tensor.detach().contiguous()
    if tensor.dtype != torch.bfloat16:
        return xp.from_dlpack(tensor)
    return xp.from_dlpack(tensor.view(torch.int16)).view(backend.bfloat16)


def difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest relative difference between two lists of arrays, in the 2-norm."""
    return max(map(_distance, found, expected), default=0.0)


def _distance(a: Any, b: Any) -> float:
    xp = backend.xp_of(a)
    a, b = a.astype(xp.float32).reshape(-1), b.astype(xp.float32).reshape(-1)
    if a.shape != b.shape:
        return math.inf
    size = float(xp.linalg.norm(b))
    a -= b
    distance = float(xp.linalg.norm(a)) / (size or 1.0)
    return distance if math.isfinite(distance) else math.inf


def _like(array: Any) -> Any:
    xp = backend.xp_of(array)
    return xp.cos(xp.arange(array.size, dtype=xp.float32)).reshape(array.shape).astype(array.dtype)


# Timing


def measure(
    case: Case | Work,
    dtype: str,
    device: str,
    peak: Peaks,
    torch: Any = None,
    rounds: int = 20,
    cold: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a row for every implementation and direction of a case.

    What does not fit into memory is left out and named on the standard error stream.
    """
    built = case.build(device, dtype, torch)
    title, cost = case.title(device), built.cost
    calls: dict[str, dict[str, Call]] = {direction: {} for direction in DIRECTIONS}
    first: dict[tuple[str, str], float] = {}
    too_much = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    for name, make in built.makers.items():
        try:
            for call in make():
                with _recording(call.direction):
                    start = time.perf_counter()  # the first call compiles
                    call.run()
                    gg.synchronize()
                    first[name, call.direction] = time.perf_counter() - start
                calls[call.direction][name] = call
        except too_much as error:
            print(f"\n{case.op} {title}: {name} is left out, {error}", file=sys.stderr)
    before = harness.cold_cache(device) if cold else None
    for direction, named in calls.items():
        if not named:
            continue
        with _recording(direction):
            runs = {name: call.run for name, call in named.items()}
            timings = harness.compare(runs, rounds=rounds, before=before)
        for name, timing in timings.items():
            row: dict[str, Any] = {"op": case.op, "case": title, "dtype": dtype}
            row |= {"direction": direction, "implementation": name}
            row |= timing.row("us", 1e6)
            row["first_call_ms"] = 1e3 * first[name, direction]
            if cost is not None:
                size = getattr(cost, f"{direction}_bytes")
                flops = getattr(cost, f"{direction}_flops")
                floor = peak.floor(size, flops)
                row |= {"floor_us": 1e6 * floor, "percent_of_peak": 100 * floor / timing.median}
                row |= {"GB/s": size / timing.median / 1e9, "GFLOP/s": flops / timing.median / 1e9}
                row["flops_per_byte"] = flops / size if size else None
            off = named[name].difference
            if off is not None:
                row["difference"] = off if math.isfinite(off) else None
                row["agrees"] = off < TOLERANCES[dtype]
            yield row


def _recording(direction: str) -> Any:
    return gg.no_grad() if direction == "forward" else gg.enable_grad()


def release(device: str, torch: Any) -> None:
    """Give the memory that two libraries keep for later back to the GPU, for the next case."""
    if device != "cpu":
        backend.cupy_module().get_default_memory_pool().free_all_blocks()
        if torch is not None:
            torch.cuda.empty_cache()


def matplotlib() -> Any:
    """Return matplotlib.pyplot; SystemExit says what to install."""
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise SystemExit('bench: --plot needs Matplotlib: pip install "gpugrad[plot]"') from None


def roofline(rows: Sequence[Mapping[str, Any]], peak: Peaks, path: Path) -> None:
    """Draw what was reached over floating operations per byte, under the device's two limits."""
    pyplot = matplotlib()
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
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        help="with operations of your own; without NAME these",
    )
    parser.add_argument("--compare", action="append", default=[], choices=["torch"])
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=20, help="of interleaved timing (20)")
    parser.add_argument("--cold", action="store_true", help="empty the caches before every sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, with provenance")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline (Matplotlib)")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds must be positive, got {given.rounds}")
    if "torch" in given.compare and importlib.util.find_spec("torch") is None:
        parser.error('--compare torch needs PyTorch: pip install "gpugrad[bench]"')
    try:
        own = operations_of(given.module)
        if given.module and not given.names and not own:
            raise ValueError(f"--module {' '.join(given.module)}: no operation of gg.kernel there")
        chosen = [case for name in given.names or own or names() for case in cases(name)]
    except ValueError as error:
        parser.error(str(error))
    except KeyError as error:
        parser.error(f"nothing named {error}; there are {', '.join([*names(), *own])}")
    for path in filter(None, (given.json, given.plot)):  # not found out after minutes of timing
        if path.is_dir():
            parser.error(f"{path} is a folder: a name for the file is wanted")
        path.parent.mkdir(parents=True, exist_ok=True)
    if given.plot:
        matplotlib()
    torch = importlib.import_module("torch") if "torch" in given.compare else None
    device = backend.default_device()
    if device == "cpu":
        why = backend.cupy_or_reason()[1] or "GPUGRAD_DEVICE asks for the CPU"
        print(f"No GPU ({why}): these are the NumPy implementations at small sizes.")
    rows: list[dict[str, Any]] = []
    found: dict[str, Peaks] = {}
    dtypes = given.dtype or (["float32"] if device == "cpu" else ["bfloat16"])
    try:
        for dtype in dtypes:
            peak = found[dtype] = peaks(device, dtype)
            print(
                f"{dtype}: copy {peak.bytes_per_second / 1e9:.4g} GB/s, matrix product "
                f"{peak.flops_per_second / 1e12:.3g} TFLOP/s, measured here"
            )
            for case in chosen:
                with emulation.disabled():  # its time means nothing
                    rows += measure(case, dtype, device, peak, torch, given.rounds, given.cold)
                release(device, torch)
                print(".", end="", flush=True)
    except (MemoryError, OSError):  # which the caller explains
        raise
    except Exception:  # of what is measured: its place matters
        traceback.print_exc()
        return 1
    finally:  # what was measured is shown, whatever ends it
        print(f"\n{harness.table(ratios(rows))}")
    wrong = [row for row in rows if row.get("agrees") is False]
    for row in wrong:
        what = " ".join(row[k] for k in ("op", "case", "dtype", "direction"))
        print(f"{what}: {row['implementation']} computes something else, by {row['difference']}")
    if given.json:
        limits = {dtype: asdict(peak) for dtype, peak in found.items()}
        settings = {"rounds": given.rounds, "cold": given.cold, "peaks": limits}
        harness.write_json(harness.record("bench", rows, device, **settings), given.json)
    for dtype in dtypes if given.plot else ():
        several = f"_{dtype}" if len(dtypes) > 1 else ""
        path = given.plot.with_stem(given.plot.stem + several)
        roofline([row for row in rows if row["dtype"] == dtype], found[dtype], path)
    return int(bool(wrong))


def operations_of(modules: Sequence[str]) -> list[str]:
    """Import modules of the user's; return the names of the operations that came with them.

    Raises ValueError for what cannot be found by that name, and SystemExit after the traceback of
    what goes wrong inside.
    """
    before = set(FUSED)
    if modules:
        sys.path.insert(1, "")  # the current folder, behind this one, as with python -m
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{name}.".startswith(f"{missing}."):
                raise ValueError(
                    f"--module {name}: there is no module of this name, seen from {Path.cwd()}"
                ) from None
            traceback.print_exc()
            raise SystemExit(1) from None
        if Path(getattr(module, "__file__", None) or ".").parent == FOLDER:
            raise ValueError(f"--module {name}: a benchmark here has this name; rename yours")
    return [name for name in FUSED if name not in before]


if __name__ == "__main__":
    sys.exit(main())
