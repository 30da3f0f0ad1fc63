"""Everything to measure on a machine with a GPU, in one command of less than ten minutes.

    python benchmarks/gpu_session.py [--out FILE] [SECTION ...]
    python benchmarks/gpu_session.py --dry-run     # the same code with NumPy at tiny sizes

Each section runs in a process of its own, so that a crash, a broken CUDA context or a section that
takes too long costs nothing but itself: what it had measured is kept, the failure is recorded with
its traceback, and the exit code at the end is 1. Without a GPU the exit code is 2.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import bench
import harness
import numpy as np
import small_gpt

import gpugrad as gg
from gpugrad import backend

SCRIPT = __file__
SECONDS = 560  # for all sections together
LIMITS = {"tests": 240, "kernels-bfloat16": 150, "sanitizer": 200}  # for one section; else 120
Rows = Iterator[dict[str, Any]]

# Sections: generators of rows {what, value, unit, ...}. Rows count as measured once yielded; an
# exception afterwards marks the section as failed.


def copy(device: str, tiny: bool) -> Rows:
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


def gemm(dtype: str, device: str, tiny: bool) -> Rows:
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


def train(device: str, tiny: bool) -> Rows:
    """Train a small GPT on the device and, for comparison, the same run with NumPy."""
    run = small_gpt.Run()
    if tiny:
        run = small_gpt.Run(layers=1, heads=2, width=16, block=8, batch=4, steps=12, lr=1e-2)
    outcomes = {}
    for name, where in {"numpy": "cpu", "measured": device}.items():
        outcomes[name] = outcome = small_gpt.train(run, run.model(device=where))
        seconds = float(np.median(outcome.seconds[1:]))  # the first step compiles
        yield {
            "what": f"GPT {run.layers}x{run.width} on {where}",
            "value": run.batch * run.block / seconds,
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


def tests(device: str, tiny: bool) -> Rows:
    """Run the tests that need a GPU; without one (dry run) they are skipped."""
    files = ["tests/benchmarks/test_harness.py"] if tiny else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *files]
        code = subprocess.run(command, cwd=harness.ROOT, check=False).returncode
        suite = next(ET.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    passed = count.pop("tests") - sum(count.values())
    for what, value in {"passed": passed, **count}.items():
        yield {"what": what, "value": value, "unit": "tests"}
    if code or not (passed or tiny):
        raise AssertionError(f"pytest -m gpu: exit code {code}, {passed} tests passed")


def conformance(device: str, tiny: bool) -> Rows:
    """Run every wrapper of kernels/ptx.cuh on the hardware; the tests hold the emulator to it."""
    script = harness.ROOT / "tests" / "emulator" / "conformance.py"
    if tiny:  # the hardware's part is the emulator's here
        yield {"what": "wrappers run", "value": 0, "unit": "cases"}
        return
    subprocess.run([sys.executable, str(script)], cwd=harness.ROOT, check=True)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    command += ["tests/emulator/test_conformance.py"]
    code = subprocess.run(command, cwd=harness.ROOT, check=False).returncode
    yield {"what": "emulator agrees with the hardware", "value": int(code == 0), "unit": "0 or 1"}
    if code:
        raise AssertionError(f"pytest tests/emulator/test_conformance.py: exit code {code}")


def kernels(dtype: str, device: str, tiny: bool) -> Rows:
    """Time every kernel against its floor, its definition and, where installed, PyTorch."""
    found = importlib.util.find_spec("torch") and not tiny
    torch = importlib.import_module("torch") if found else None
    peak = bench.peaks(device, dtype, 64 if tiny else None)
    yield {"what": "copy", "value": peak.bytes_per_second / 1e9, "unit": "GB/s"}
    yield {"what": f"matmul {dtype}", "value": peak.flops_per_second / 1e12, "unit": "TFLOP/s"}
    failed = []
    for name in ["layer_norm"] if tiny else bench.names():
        for case in bench.cases(name)[: 1 if tiny else None]:
            try:
                rows = list(bench.measure(case, dtype, device, peak, torch, 2 if tiny else 20))
            except Exception:
                failed.append(f"{name}, {case.title(device)}:\n{traceback.format_exc()}")
                continue
            for row in rows:
                what = " ".join(row[k] for k in ("op", "case", "direction", "implementation"))
                yield {"what": what, "value": row["us"], "unit": "us", **row}
    if failed:
        raise AssertionError("\n".join(failed))


def sanitizer(device: str, tiny: bool) -> Rows:
    """Run the kernels' tests on the GPU under compute-sanitizer, if it is installed."""
    found = shutil.which("compute-sanitizer") or next(
        iter(sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))), None
    )
    if found is None or tiny:
        yield {"what": "compute-sanitizer", "value": "not measured", "unit": ""}
        return
    for tool in ("memcheck", "racecheck"):
        command = [str(found), f"--tool={tool}", "--error-exitcode=99", sys.executable]
        command += ["-m", "pytest", "-m", "gpu", "-n", "0", "-x", "-p", "no:cacheprovider"]
        command += ["tests/fused/test_cuda.py", "-k", "test_on_the_gpu and float32"]
        # out of CuPy's pool every array is an allocation of its own, whose bounds are known
        environment = {**os.environ, "GPUGRAD_TEST_POOL": "0"}
        code = subprocess.run(command, cwd=harness.ROOT, env=environment, check=False).returncode
        yield {"what": tool, "value": code, "unit": "exit code"}
        if code:
            raise AssertionError(f"compute-sanitizer {tool}: exit code {code}")


SECTIONS: dict[str, Callable[[str, bool], Rows]] = {
    "copy": copy,
    **{
        f"gemm-{dtype}": lambda device, tiny, dtype=dtype: gemm(dtype, device, tiny)
        for dtype in ("float32", "float16", "bfloat16")
    },
    "conformance": conformance,
    "train": train,
    "tests": tests,
    **{
        f"kernels-{dtype}": lambda device, tiny, dtype=dtype: kernels(dtype, device, tiny)
        for dtype in ("bfloat16", "float32")
    },
    "sanitizer": sanitizer,
}


def run_section(name: str, dry_run: bool, path: Path) -> None:
    """Run one section in this process and append its rows to a file, one line each."""
    with open(path, "a") as file:
        for row in SECTIONS[name]("cpu" if dry_run else "cuda", dry_run):
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()


def supervise(name: str, dry_run: bool, limit: float) -> tuple[list[dict], str | None, float]:
    """Run one section in its own process; return its rows, how it failed, and the seconds."""
    if limit <= 0:
        return [], "not run: the time for the session was up", 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows", Path(folder) / "log"
        rows.touch()
        command = [sys.executable, SCRIPT, "--rows", str(rows), name]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command + ["--dry-run"] * dry_run,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its children too
                code = process.wait()
        seconds = time.perf_counter() - start
        failure = None
        if code:
            how = f"stopped after {limit:.0f} s" if seconds >= limit else f"exit code {code}"
            failure = f"{how}\n" + log.read_text(errors="replace")[-8000:]
        return [json.loads(line) for line in rows.read_text().splitlines()], failure, seconds


def session(names: Sequence[str], dry_run: bool, out: Path, seconds: float = SECONDS) -> int:
    """Run the sections, write the record after each, print the table; return the exit code."""
    end = time.perf_counter() + seconds
    device = "cpu" if dry_run else "cuda"
    record = {**harness.record("gpu_session", [], device, dry_run=dry_run), "sections": []}
    for name in names:
        print(f"{name} ...", flush=True)
        limit = min(LIMITS.get(name, 120), end - time.perf_counter())
        rows, failure, took = supervise(name, dry_run, limit)
        record["rows"] += [{"section": name, **row} for row in rows]
        status = {"section": name, "seconds": round(took, 1), "failure": failure}
        record["sections"].append(status)
        harness.write_json(record, out)
        if failure:
            print(failure, file=sys.stderr, flush=True)
    failed = [s["section"] for s in record["sections"] if s["failure"]]
    shown = ("section", "what", "value", "unit")
    print(f"{record['provenance']['device_name']}; written to {out}")
    print(harness.table([{key: row[key] for key in shown} for row in record["rows"]]))
    print(f"failed: {', '.join(failed)}" if failed else "all sections passed")
    return int(bool(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--dry-run", action="store_true", help="NumPy, tiny sizes, no GPU needed")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu_session.json")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # a section's own process
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {min(unknown)!r}; there are {', '.join(SECTIONS)}")
    if not options.dry_run:
        cupy, reason = backend.cupy_or_reason()
        if cupy is None:
            print(f"gpu_session: no GPU to measure. {reason}. --dry-run needs none.")
            return 2
    if options.rows:
        run_section(options.sections[0], options.dry_run, options.rows)
        return 0
    folder = Path(tempfile.gettempdir()) if options.dry_run else harness.RESULTS
    out = options.out or folder / "gpu_session.json"
    return session(options.sections or list(SECTIONS), options.dry_run, out)


if __name__ == "__main__":
    sys.exit(main())
