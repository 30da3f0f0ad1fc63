"""Everything to measure on a machine with a GPU, ten minutes at most per command.

    python benchmarks/gpu_session.py [--only PATTERN ...] [--skip PATTERN ...] [--budget SECONDS]
                                     [--out FILE] [--add]
    python benchmarks/gpu_session.py --dry-run     # the same code on the CPU at tiny sizes

Each section runs in a process of its own, so that a crash, a broken CUDA context or a section that
takes too long costs nothing but itself: what it had measured is kept, the failure is recorded with
its traceback, and the exit code at the end is 1. The file is written while sections run. What the
budget did not suffice for another command adds: ``--add`` keeps what the file holds of sections
that it does not run. Without a GPU the exit code is 2.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree as ET

import adamw
import attention as measured_attention
import bench
import harness
import numpy as np
import small_gpt
import train_step
from training import Run

import gpugrad as gg
from gpugrad import backend, cuda, emulator
from gpugrad.fused import FUSED

SCRIPT = __file__
SECONDS = 560.0  # for all sections of a command together
LIMIT = 120.0  # for one section, unless it is here
LIMITS = {
    "copy": 20,
    "gemm-bfloat16": 25,
    "gemm-float16": 25,
    "gemm-float32": 25,
    "launch": 40,
    "conformance": 35,
    "conformance-box": 25,
    "attention-wgmma": 60,
    "attention-tma": 55,
    "train": 60,
    "products": 70,
    "step-small": 300,
    "step-b1": 240,
    "step-b8": 240,
    "step-b32": 240,
    "step-b64": 280,
    "kernels-bfloat16": 200,
    "kernels-float32": 200,
    "tests": 400,
    "sanitizer": 300,
}
Rows = Iterator[dict[str, Any]]

# Sections: generators of rows {what, value, unit, ...}. Rows count as measured once yielded; an
# exception afterwards marks the section as failed. They get the device, whether to do as little as
# possible (dry run), and the seconds after which they are ended.


def copy(device: str, tiny: bool, seconds: float) -> Rows:
    """Copy an array on the device; bytes read plus bytes written, per second."""
    xp = backend.namespace(device)
    for gib in (1e-6,) if tiny else (1, 4):
        source = xp.arange(int(gib * 2**30) // 4, dtype=xp.float32)
        target = xp.zeros_like(source)
        timing = harness.compare({"copy": lambda t=target, s=source: xp.copyto(t, s)})["copy"]
        if not (source == target).all():
            raise AssertionError(f"copy: {source.nbytes} bytes did not arrive unchanged")
        yield {
            "what": f"copy {gib:g} GiB",
            "value": 2 * source.nbytes / timing.median / 1e9,
            "unit": "GB/s",
            **timing.row("ms", 1e3),
        }


def gemm(dtype: str, device: str, tiny: bool, seconds: float) -> Rows:
    """Multiply two square matrices of normal numbers through the array library's matmul."""
    n = 64 if tiny else 8192
    # The error a product of this dtype with float32 accumulation stays below; TF32 does not.
    limit = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    xp = backend.namespace(device)
    a, b = (gg.random.normal(size=(n, n), device=device).astype(dtype).data for _ in range(2))
    timing = harness.compare({"gemm": lambda: xp.matmul(a, b)})["gemm"]
    few = slice(0, 16)
    exact = xp.matmul(a[few].astype(xp.float64), b.astype(xp.float64))
    difference = xp.matmul(a, b)[few].astype(xp.float64) - exact
    error = float(xp.sqrt((difference**2).sum() / (exact**2).sum()))
    yield {
        "what": f"matmul {n} {dtype}",
        "value": 2 * n**3 / timing.median / 1e12,
        "unit": "TFLOP/s",
        **timing.row("ms", 1e3),
        "relative_error": error,
    }
    if not error < limit:
        raise AssertionError(f"gemm {dtype}: relative error {error:.2e}, expected < {limit:g}")


def train(device: str, tiny: bool, seconds: float) -> Rows:
    """Train a small GPT on the device and, for comparison, the same run with NumPy."""
    run = Run()
    if tiny:
        run = Run(layers=1, heads=2, width=16, block=8, batch=4, steps=12, lr=1e-2)
    outcomes = {}
    for name, where in {"numpy": "cpu", "measured": device}.items():
        outcomes[name] = outcome = small_gpt.train(run, small_gpt.build(run, device=where))
        each = float(np.median(outcome.seconds[1:]))  # the first step compiles
        yield {
            "what": f"GPT {run.layers}x{run.width} on {where}",
            "value": run.batch * run.block / each,
            "unit": "tokens/s",
            "losses": outcome.losses,
            "seconds_first_step": outcome.seconds[0],
            "settings": run.settings(),
        }
    losses = np.array(outcomes["measured"].losses)
    difference = float(np.abs(losses - outcomes["numpy"].losses).max())
    yield {"what": "largest difference of losses to NumPy", "value": difference, "unit": "nats"}
    yield {"what": "loss went down by", "value": float(losses[0] - losses[-1]), "unit": "nats"}
    if not difference < 1e-3:
        raise AssertionError(f"train: losses differ from NumPy's by {difference:.2e}")
    if not losses[-3:].mean() < losses[0] - 0.1:
        raise AssertionError(f"train: the loss did not go down: {losses.tolist()}")


def step(names: Sequence[str], device: str, tiny: bool, seconds: float) -> Rows:
    """Time whole training steps beside PyTorch's: train_step.py."""
    cases = {name: train_step.CASES["cuda"][name] for name in names}
    peers = {name: train_step.default_peers(device, run) for name, run in cases.items()}
    how: dict[str, Any] = {}
    shared = Path(tempfile.gettempdir(), "gpugrad-train-step")  # by all sections of a session
    if tiny:
        run = Run(layers=1, heads=2, width=16, block=8, batch=2, vocabulary=31)
        cases, how = {names[0]: run}, {"rounds": 1, "seconds": 0.0}
        several = ["gpugrad-eager", "gpugrad-compiled", "torch-eager-default-float32"]
        peers = {names[0]: several[: 3 if len(names) > 1 else 1]}
    dtype = train_step.DTYPES[device]
    peak = bench.peaks(device, dtype, 64 if tiny else None)
    how["budget"] = (seconds - 15) / len(cases)
    wrong = []
    # in a dry run the kernels and the compiled step run in the emulator
    emulated = mock.patch.dict(os.environ, {"GPUGRAD_EMULATE": "plain"} if tiny else {})
    with tempfile.TemporaryDirectory() as folder, emulated:
        for name, run in cases.items():
            files = Path(folder) if tiny else shared
            files.mkdir(exist_ok=True)
            rows = train_step.measure(name, run, peers[name], device, dtype, peak, files, **how)
            wrong += train_step.faults(rows)
            for row in rows:
                value = row.get("tokens_per_s", row.get("failure"))
                yield {"what": f"{name} {row['peer']}", "value": value, "unit": "tokens/s", **row}
    if wrong:
        raise AssertionError("\n".join(wrong))


TOUCH = r"""
extern "C" __global__ void touch(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += 1.0f;
}
"""


def launch(device: str, tiny: bool, seconds: float) -> Rows:
    """Time what a launch costs: in Python, one after the other, and as a node of a CUDA graph."""
    source = cuda.Source("touch.cu", text=TOUCH)
    n = 3 if tiny else 2000
    x = backend.namespace(device).zeros(32, "float32")
    rounds = 1 if tiny else 20

    def chain() -> None:
        for _ in range(n):
            source.launch("touch", (1,), (32,), (x, x.size))

    with emulator.enabled("plain") if tiny else contextlib.nullcontext():
        chain()
        gg.synchronize()
        queued = []
        for _ in range(rounds):
            start = time.perf_counter()
            chain()
            queued.append((time.perf_counter() - start) / n)
            gg.synchronize()
        one_by_one = harness.compare({"launches": chain}, rounds)["launches"]
        replay = chain if tiny else _captured(chain)
        taken = float(x[0])
        replay()
        gg.synchronize()
        if float(x[0]) != taken + n:
            raise AssertionError(f"launch: {float(x[0]) - taken} of {n} launches of the graph ran")
        graph = harness.compare({"graph": replay}, rounds)["graph"]
    in_python = harness.Timing(tuple(queued))
    for what, timing, count in (
        ("launch, time in Python", in_python, 1),
        ("launches one after the other", one_by_one, n),
        ("nodes of a graph", graph, n),
    ):
        times = timing.row("us", 1e6 / count)
        yield {"what": what, "value": times["us"], "unit": "us each", **times}


def _captured(run: Callable[[], None]) -> Callable[[], None]:
    """Return a function that replays, as one CUDA graph, what another launches."""
    stream = backend.cupy_module().cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        run()
        graph = stream.end_capture()
    return lambda: graph.launch()


def pytest(*arguments: str, tool: Sequence[str] = (), **environment: str) -> int:
    """Run the tests in one process, without plugins that happen to be installed."""
    command = [*tool, sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-n", "0"]
    command += ["-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    return subprocess.run(command, cwd=harness.ROOT, env=environment, check=False).returncode


def tests(device: str, tiny: bool, seconds: float) -> Rows:
    """Run the tests that need a GPU; without one (dry run) they are skipped."""
    files = ["tests/benchmarks/test_harness.py"] if tiny else []
    wrong = os.environ.get(measured_attention.WRONG, "").split()
    doubtful = [tests for name, tests in TESTS_OF.items() if name in wrong]
    if doubtful:  # have failed before, and may hang
        files += ["-k", f"not ({' or '.join(doubtful)})"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = pytest("-m", "gpu", f"--junitxml={report}", *files)
        suite = next(ET.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    passed = count.pop("tests") - sum(count.values())
    for what, value in {"passed": passed, **count}.items():
        yield {"what": what, "value": value, "unit": "tests"}
    if code or not (passed or tiny):
        raise AssertionError(f"pytest -m gpu: exit code {code}, {passed} tests passed")


def conformance(cases: str, device: str, tiny: bool, seconds: float) -> Rows:
    """Run wrappers of kernels/ptx.cuh on the hardware; the tests hold the emulator to them.

    ``cases`` are "box", copies of boxes by tensor maps, or "not box", all the others.
    """
    folder = harness.ROOT / "tests" / "emulator"
    spec = importlib.util.spec_from_file_location("conformance", folder / "conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if tiny:  # the emulator stands in for the hardware
        name, case = next(iter(module.chosen(cases).items()))
        with emulator.enabled("plain"):
            outputs = [module.run(case, on_gpu=False) for _ in range(2)]
        different = module.differences(*outputs, *case[3:])
        yield {"what": f"{name}, in the emulator twice", "value": different, "unit": "differences"}
        return
    if module.main([cases]):
        raise AssertionError("conformance.py failed")
    code = pytest("tests/emulator/test_conformance.py", "-k", cases)
    yield {"what": "emulator agrees with the hardware", "value": int(code == 0), "unit": "0 or 1"}
    if code:
        raise AssertionError(f"pytest tests/emulator/test_conformance.py: exit code {code}")


def attention(kernels: str, device: str, tiny: bool, seconds: float) -> Rows:
    """Run the tests of attention for this GPU alone; after a failure all sections do without."""
    code = pytest("-m", "gpu", "-x", "-k", kernels, "tests/kernels/test_attention_sm90.py")
    what = f"attention for sm_90a is right ({kernels})"
    yield {"what": what, "value": int(code == 0), "unit": "0 or 1"}
    if code:
        raise AssertionError(f"pytest tests/kernels/test_attention_sm90.py: exit code {code}")


PRODUCTS = ("gemm", "affine", "mlp", "linear_cross_entropy")  # whose floor is a matrix product's


def products(dtype: str, device: str, tiny: bool, seconds: float) -> Rows:
    """Time the matrix products of GPT-2 with their epilogues."""
    yield from _measured(PRODUCTS, dtype, device, tiny)


def kernels(dtype: str, device: str, tiny: bool, seconds: float) -> Rows:
    """Time every kernel against its floor, its definition and, where installed, PyTorch."""
    yield from _measured([n for n in bench.names() if n not in PRODUCTS], dtype, device, tiny)


def _measured(names: Sequence[str], dtype: str, device: str, tiny: bool) -> Rows:
    found = importlib.util.find_spec("torch") and not tiny
    torch = importlib.import_module("torch") if found else None
    peak = bench.peaks(device, dtype, 64 if tiny else None)
    yield {"what": "copy", "value": peak.bytes_per_second / 1e9, "unit": "GB/s"}
    yield {"what": f"matmul {dtype}", "value": peak.flops_per_second / 1e12, "unit": "TFLOP/s"}
    failed = []
    for name in names:
        for case in _tiny(bench.cases(name)) if tiny else bench.cases(name):
            try:
                with emulator.enabled("plain") if tiny else contextlib.nullcontext():
                    rows = list(bench.measure(case, dtype, device, peak, torch, 1 if tiny else 20))
            except Exception:
                failed.append(f"{name}, {case.title(device)}:\n{traceback.format_exc()}")
                continue
            for row in rows:
                what = " ".join(row[k] for k in ("op", "case", "direction", "implementation"))
                yield {"what": what, "value": row["us"], "unit": "us", **row}
                if row.get("agrees") is False:
                    failed.append(f"{what}: computes something else, by {row['difference']}")
            bench.release(device, torch)
    if failed:
        raise AssertionError("\n".join(failed))


def _tiny(cases: Sequence[bench.Case | bench.Work]) -> list[bench.Case | bench.Work]:
    """Return the first of the cases, as small as it is tested or nearly so."""
    case = cases[0]
    if isinstance(case, bench.Case):
        return [replace(case, cpu_sample=FUSED[case.op].samples[0], label="")]
    size = case.cpu_size
    if isinstance(size, adamw.Parameters):
        return [replace(case, cpu_size=adamw.Parameters(1, 8, 16, 4))]
    lengths = size if isinstance(size, tuple) else (size,)
    small = tuple(min(length, 16) for length in lengths)
    return [replace(case, cpu_size=small if isinstance(size, tuple) else small[0])]


# What compute-sanitizer does for a dry run: it takes its options and runs the rest.
STAND_IN = """
import subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
sys.exit(subprocess.call([*command, "--collect-only", "-q"]))
"""


def sanitizer(device: str, tiny: bool, seconds: float) -> Rows:
    """Run the kernels' tests on the GPU under compute-sanitizer, if it is installed."""
    found = shutil.which("compute-sanitizer") or next(
        iter(sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))), None
    )
    if found is None and not tiny:
        yield {"what": "compute-sanitizer", "value": "not there", "unit": ""}
        return
    program = [sys.executable, "-c", STAND_IN] if tiny else [str(found)]
    for name in ("racecheck",) if tiny else ("memcheck", "racecheck"):
        code = pytest(
            *("-m", "gpu", "-x", "tests/fused/test_cuda.py"),
            *("-k", "test_on_the_gpu and float32"),
            tool=[*program, f"--tool={name}", "--error-exitcode=99"],
            # out of CuPy's pool every array is an allocation of its own, whose bounds are known
            GPUGRAD_TEST_POOL="0",
        )
        yield {"what": name, "value": code, "unit": "exit code"}
        if code:
            raise AssertionError(f"compute-sanitizer {name}: exit code {code}")


def _of(section: Callable[..., Rows], first: Any) -> Callable[[str, bool, float], Rows]:
    return lambda device, tiny, seconds: section(first, device, tiny, seconds)


STEPS = {
    "step-small": ("small-t64-b8", "small-t256-b8"),
    **{f"step-b{batch}": (f"gpt2-124m-b{batch}",) for batch in (8, 64, 32, 1)},
}
SECTIONS: dict[str, Callable[[str, bool, float], Rows]] = {
    "copy": copy,
    **{f"gemm-{dtype}": _of(gemm, dtype) for dtype in ("bfloat16", "float16", "float32")},
    "products": _of(products, "bfloat16"),
    **{f"attention-{name}": _of(attention, name) for name in ("wgmma", "tma")},
    **{section: _of(step, cases) for section, cases in STEPS.items()},
    "launch": launch,
    **{f"kernels-{dtype}": _of(kernels, dtype) for dtype in ("bfloat16", "float32")},
    "conformance": _of(conformance, "not box"),
    "conformance-box": _of(conformance, "box"),
    "train": train,
    "tests": tests,
    "sanitizer": sanitizer,
}
# Files that a section leaves elsewhere, copied beside the record
LEFT = dict.fromkeys(
    ("conformance", "conformance-box"), harness.ROOT / "tests" / "emulator" / "hardware.npz"
)
# What pytest calls the tests of sections whose failure may be a kernel that never ends
TESTS_OF = {
    "attention-wgmma": "(test_attention_sm90 and wgmma)",
    "attention-tma": "(test_attention_sm90 and tma)",
    "conformance-box": "(test_conformance and box)",
}


def run_section(name: str, dry_run: bool, path: Path, seconds: float) -> None:
    """Run one section in this process and append its rows to a file, one line each."""
    with open(path, "a") as file:
        for row in SECTIONS[name]("cpu" if dry_run else "cuda", dry_run, seconds):
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()


def supervise(
    name: str,
    dry_run: bool,
    limit: float,
    progress: Callable[[list[dict]], None],
    **environment: str,
) -> tuple[list[dict], str | None, float]:
    """Run one section in its own process; return its rows, how it failed, and the seconds.

    ``progress`` gets the rows there are while it runs.
    """
    if limit <= 0:
        return [], "not run: the time for the session was up", 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows", Path(folder) / "log"
        rows.touch()
        command = [sys.executable, SCRIPT, "--rows", str(rows), "--limit", str(limit)]
        command += ["--section", name]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command + ["--dry-run"] * dry_run,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment},
            )
            try:
                code = _wait(process, start + limit, lambda: progress(_read(rows)))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its children too
                process.wait()
        seconds = time.perf_counter() - start
        failure = None
        if code:
            how = f"exit code {code}" if code is not STOPPED else f"stopped after {limit:.0f} s"
            failure = f"{how}\n" + log.read_text(errors="replace")[-8000:]
        return _read(rows), failure, seconds


STOPPED = -1000  # no exit code


def _wait(process: subprocess.Popen, end: float, look: Callable[[], None]) -> int:
    """Return the exit code of a process, or STOPPED when the time is up."""
    while True:
        left = end - time.perf_counter()
        if left <= 0:
            return STOPPED
        try:
            return process.wait(timeout=min(left, 2.0))
        except subprocess.TimeoutExpired:
            look()


def _read(path: Path) -> list[dict]:
    """Return the rows in a file that are complete."""
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def session(
    names: Sequence[str],
    dry_run: bool,
    out: Path,
    seconds: float = SECONDS,
    before: dict[str, Any] | None = None,
) -> int:
    """Run the sections, write the record during each, print the table; return the exit code.

    ``before`` is a record whose sections stay, other than those that run now.
    """
    end = time.perf_counter() + seconds
    device = "cpu" if dry_run else "cuda"
    record = {**harness.record("gpu_session", [], device, dry_run=dry_run), "sections": []}
    origin = {key: record["provenance"][key] for key in ("commit", "sources", "date")}
    if before is not None:
        record["rows"] = [row for row in before["rows"] if row["section"] not in names]
        record["sections"] = [s for s in before["sections"] if s["section"] not in names]
    kept = list(record["rows"])

    def write(name: str, rows: list[dict]) -> None:
        record["rows"] = kept + [{"section": name, **row} for row in rows]
        harness.write_json(record, out)

    for name in names:
        print(f"{name} ...", flush=True)
        limit = min(LIMITS.get(name, LIMIT), end - time.perf_counter())
        wrong = [s["section"] for s in record["sections"] if s["failure"]]
        without = {measured_attention.WRONG: " ".join(wrong)} if wrong else {}
        if "attention-wgmma" in wrong:
            without["GPUGRAD_ATTENTION"] = "mma"
        progress = functools.partial(write, name)
        rows, failure, took = supervise(name, dry_run, limit, progress, **without)
        status = {"section": name, "seconds": round(took, 1), "failure": failure, **origin}
        record["sections"].append(status)
        write(name, rows)
        kept = list(record["rows"])
        if failure:
            print(failure, file=sys.stderr, flush=True)
        left = LEFT.get(name)
        if left is not None and left.exists() and not (dry_run or failure):
            shutil.copy(left, out.parent)
    failed = [s["section"] for s in record["sections"] if s["failure"]]
    print(report(record["rows"]))
    print(f"{record['provenance']['device_name']}; written to {out}")
    print(", ".join(f"{s['section']} {s['seconds']:.0f} s" for s in record["sections"]))
    print(f"failed: {', '.join(failed)}" if failed else "all sections passed")
    return int(bool(failed))


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables: kernels first, as they are long, whole steps last."""
    kernel = [row for row in rows if "implementation" in row]
    steps = [row for row in rows if "peer" in row]
    others = [row for row in rows if not {"implementation", "peer"} & row.keys()]
    shown = ("section", "what", "value", "unit")
    parts = [
        harness.table(bench.ratios(kernel)) if kernel else "",
        harness.table([{key: row[key] for key in shown} for row in others]) if others else "",
        train_step.summary(steps) if steps else "",
    ]
    return "\n\n".join(part for part in parts if part)


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Return the sections that shell patterns leave, in their order.

    Raises ValueError for a pattern that fits none.
    """
    for pattern in (*only, *skip):
        if not fnmatch.filter(SECTIONS, pattern):
            raise ValueError(f"no section {pattern!r}; there are {', '.join(SECTIONS)}")

    def fits(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    return [name for name in SECTIONS if fits(name, only or ["*"]) and not fits(name, skip)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sections = ", ".join(SECTIONS)
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help=f"of: {sections}")
    parser.add_argument("--skip", nargs="+", default=[], metavar="PATTERN", help="sections not run")
    parser.add_argument("--budget", type=float, default=SECONDS, help=f"seconds ({SECONDS:.0f})")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny, no GPU needed")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu_session.json")
    parser.add_argument("--add", action="store_true", help="to what the file holds already")
    for name, kind in (("--section", str), ("--rows", Path), ("--limit", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # a section's own process
    options = parser.parse_args(arguments)
    try:
        names = chosen(options.only, options.skip)
    except ValueError as error:
        parser.error(str(error))
    if not options.dry_run:
        cupy, reason = backend.cupy_or_reason()
        if cupy is None:
            print(f"gpu_session: no GPU to measure. {reason}. --dry-run needs none.")
            return 2
    if options.section:
        run_section(options.section, options.dry_run, options.rows, options.limit)
        return 0
    folder = Path(tempfile.gettempdir()) if options.dry_run else harness.RESULTS
    out = options.out or folder / "gpu_session.json"
    before = json.loads(out.read_text()) if options.add and out.exists() else None
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # sections end too
    try:
        return session(names, options.dry_run, out, options.budget, before)
    finally:
        signal.signal(signal.SIGTERM, usual)


if __name__ == "__main__":
    sys.exit(main())
