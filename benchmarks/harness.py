"""Timing and recording shared by the benchmarks.

``compare`` times variants in interleaved rounds, so that a slow moment of the machine falls on
all of them; ``record`` puts rows together with what they were measured on; ``write_json`` and
``write_csv`` leave a complete file or none; ``table`` is what a benchmark prints last.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.text.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
L2_BYTES = 256 * 2**20  # more than the last-level cache of any GPU so far


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample per round; every sample is the mean of ``repeats`` calls."""

    samples: tuple[float, ...]
    repeats: int = 1

    def percentile(self, q: float) -> float:
        """Return the sample below which q percent of the samples lie, interpolated linearly."""
        return float(np.percentile(self.samples, q))

    @property
    def median(self) -> float:
        """The middle sample."""
        return self.percentile(50)

    def __sub__(self, other: Timing) -> Timing:
        """Return the differences round by round: what the two had in common cancels."""
        pairs = zip(self.samples, other.samples, strict=True)
        return Timing(tuple(a - b for a, b in pairs), self.repeats)

    def row(self, name: str, scale: float = 1.0) -> dict[str, float]:
        """Return name, name_p20 and name_p80: median and percentiles times scale."""
        values = {name: 50, f"{name}_p20": 20, f"{name}_p80": 80}
        return {key: self.percentile(q) * scale for key, q in values.items()}


def compare(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    warmup: int = 3,
    min_seconds: float = 1e-3,
    before: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Return a Timing per variant, measured in rounds A B C, B C A, C A B, ...

    Each variant first runs ``warmup`` times untimed. A call shorter than ``min_seconds`` is
    repeated within a sample until the sample lasts that long. ``before`` runs untimed before
    every sample (see ``cold_cache``), which then is a single call: on a GPU it includes the time
    to launch it. The clock is read only when the GPU is idle. Raises ValueError without variants
    or rounds.
    """
    if not variants or rounds < 1:
        raise ValueError(f"compare: needs variants and rounds, got {len(variants)} and {rounds}")
    repeats = {}
    for name, run in variants.items():
        for _ in range(warmup):
            run()
        repeats[name] = 1 if before else _enough(run, min_seconds, clock)
    names = list(variants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if before:
                before()
            samples[name].append(_seconds(variants[name], repeats[name], clock) / repeats[name])
    return {name: Timing(tuple(samples[name]), repeats[name]) for name in names}


def _seconds(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    gg.synchronize()
    start = clock()
    for _ in range(repeats):
        run()
    gg.synchronize()
    return clock() - start


def _enough(run: Callable[[], object], min_seconds: float, clock: Callable[[], float]) -> int:
    repeats = 1
    while _seconds(run, repeats, clock) < min_seconds:
        repeats *= 2
    return repeats


def cold_cache(device: str | None = None, size: int = L2_BYTES) -> Callable[[], None]:
    """Return a function that pushes everything else out of the device's caches by writing."""
    buffer = gg.zeros((size,), dtype="uint8", device=device).data
    return lambda: buffer.fill(1)


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Return what a row was measured on and with; versions of libraries not imported are None."""
    modules = {name: sys.modules.get(name) for name in ("cupy", "torch")}
    return {
        "device": device,
        "device_name": _gpu_name() if device.startswith("cuda") else cpu_name(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": " ".join(f"{v}={os.environ[v]}" for v in THREAD_VARIABLES if v in os.environ)
        or "default",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": _blas(),
        **{name: getattr(module, "__version__", None) for name, module in modules.items()},
        "cuda": _cuda_versions() if device.startswith("cuda") else None,
        "gpugrad": gg.__version__,
        "commit": commit(),
        "sources": sources(),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """Return the processor's name as Linux tells it, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_name() -> str:
    cupy = gg.backend.cupy_module()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _cuda_versions() -> str:
    runtime = gg.backend.cupy_module().cuda.runtime
    return f"runtime {runtime.runtimeGetVersion()} driver {runtime.driverGetVersion()}"


def _blas() -> str:
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found.get('name')} {found.get('version')}"


def commit(root: Path = ROOT) -> str:
    """Return the commit measured, with "+changes" if the code differs from it.

    Raises RuntimeError where ``import gpugrad`` takes it from elsewhere: whose commit it is then
    is unknown.
    """
    package = Path(gg.__file__).resolve().parent
    if root == ROOT == package:
        return f"release {gg.__version__}"
    if root == ROOT and package.parent != ROOT:
        raise RuntimeError(f"these benchmarks belong to {ROOT}, but gpugrad is that of {package}")
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return "not a git checkout"
    changes = _git(root, "status", "--porcelain", "--", "gpugrad", "kernels", "benchmarks/*.py")
    return head + "+changes" if changes else head


def sources(root: Path = ROOT) -> str:
    """Return a digest of the code measured: it tells the commit where there is no git checkout."""
    digest = hashlib.sha256()
    for pattern in ("gpugrad/**/*.py", "kernels/*.cu*", "benchmarks/*.py"):
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def record(
    benchmark: str, rows: Sequence[Mapping[str, Any]], device: str = "cpu", **settings: Any
) -> dict[str, Any]:
    """Return rows with the benchmark's name, its settings and the provenance, ready to write."""
    return {
        "benchmark": benchmark,
        "provenance": provenance(device),
        "settings": settings,
        "rows": [dict(row) for row in rows],
    }


def write_json(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a record as JSON; the file is complete or is not there. NaN is refused."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    _write(text, path)


def write_csv(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a record's rows as CSV, benchmark, provenance and settings repeated in each."""
    common = {"benchmark": record["benchmark"], **record["provenance"], **record["settings"]}
    rows = [{**common, **row} for row in record["rows"]]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    _write(file.getvalue(), path)


def _write(text: str, path: str | os.PathLike[str]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as aligned text, columns as they first appear; what a row lacks is "-"."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [any(isinstance(row.get(c), (int, float)) for row in rows) for c in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value and abs(value) < 1e4 else f"{value:.0f}"
    return str(value)
