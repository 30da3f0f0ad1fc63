"""A whole training step of a GPT, side by side: gpugrad and others, each in its best forms.

    python benchmarks/train_step.py [--device cpu|cuda] [--cases NAME ...] [--peers PATTERN ...]
                                    [--rounds N] [--seconds S] [--budget S] [--json FILE]

A step is forward, backward, clipping to norm 1 and AdamW, from equal initial weights on equal
batches that lie on the device. Every peer has a process of its own, and they take turns, so that a
slow moment of the machine falls on all and what one cannot do (memory, a missing library) is a row
of the table and no more. The losses of the first steps have to agree; otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench
import harness
import numpy as np
import small_gpt
import train_peers
from harness import Timing
from training import MIB, PEERS, Peer, Run

from gpugrad import backend
from gpugrad.train.speed import device_name, peak_flops

SCRIPT = train_peers.__file__
FIRST = 5  # steps whose losses are compared
BATCHES = 4  # that take turns
# How far a loss may lie from the median of all peers', in nats, by dtype: rounding moves them by
# less, a step that is left out or taken twice by more.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}


def _gpt2(batch: int) -> Run:
    return Run(12, 12, 768, 1024, batch, vocabulary=50304, lr=6e-4)


def _small(block: int, batch: int) -> Run:
    return Run(block=block, batch=batch)


CASES = {
    "cpu": {
        "small-t64-b12": _small(64, 12),
        "gpt-6x384-t256-b8": Run(6, 6, 384, 256, 8),
        "small-t64-b1": _small(64, 1),
    },
    "cuda": {
        "small-t64-b8": _small(64, 8),
        "small-t64-b12": _small(64, 12),
        "small-t256-b8": _small(256, 8),
        **{f"gpt2-124m-b{batch}": _gpt2(batch) for batch in (1, 8, 32, 64)},
    },
}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def default_peers(device: str, run: Run) -> list[str]:
    """Return what is measured unless somebody asks for more, the most important first."""
    if device == "cpu":
        return [name for name in PEERS[device] if Peer(name).instructions in ("", not_by_mkl())]
    torch = ["compile-flash-autocast"]
    if tokens(run) <= 8192:  # where launches may cost more than what they launch
        torch += ["captured-flash-autocast", "graphs-flash-autocast"]
    torch += ["compile-cudnn-autocast", "eager-flash-autocast"]
    torch += ["compile-flash-bfloat16", "compile-default-autocast"]
    torch += ["eager-cudnn-autocast", "eager-default-autocast"]
    return ["gpugrad-compiled", "gpugrad-eager", *(f"torch-{name}" for name in torch)]


def chosen_peers(patterns: Sequence[str], device: str, run: Run) -> list[str]:
    """Return the peers that shell patterns name, in the order of the patterns; none: the default.

    Raises ValueError for a pattern that fits none.
    """
    if not patterns:
        return default_peers(device, run)
    return _chosen(patterns, PEERS[device], "peer")


def _chosen(patterns: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise ValueError(f"no {what} {pattern!r}; there are {', '.join(names)}")
        found |= dict.fromkeys(fitting)
    return list(found)


def tokens(run: Run) -> int:
    """Return the tokens of a step."""
    return run.batch * run.block


def flops(run: Run) -> int:
    """Return the floating-point operations of a step that no way to compute it can leave out.

    6 for every token and weight in a matrix product (2 forward, 4 backward), and for causal
    attention 2 products forward and 5 backward of half a (T, T) matrix each, for every head.
    """
    weights = 12 * run.layers * run.width**2 + run.vocabulary * run.width
    attention = 7 * run.layers * run.width * run.block
    return tokens(run) * (6 * weights + attention)


def draw_batches(run: Run) -> np.ndarray:
    """Return (2, BATCHES, B, T) ids and what follows them: the k-th id is about 1/k as frequent.

    That is how often words occur in text, which matters to the gradient of the embedding.
    """
    rng = np.random.default_rng(run.seed)
    uniform = rng.random((BATCHES, run.batch, run.block + 1))
    ids = np.exp(uniform * np.log(run.vocabulary + 1)).astype(np.int64) - 1
    ids = ids.clip(0, run.vocabulary - 1)
    return np.stack([ids[..., :-1], ids[..., 1:]])


def write_inputs(run: Run, dtype: str, folder: Path) -> dict[str, str]:
    """Write initial weights, float32 rounded to the dtype, and batches; return where they are."""
    from safetensors.numpy import save_file

    shape = f"{run.layers}x{run.width}-{run.heads}-{run.block}-{run.vocabulary}"
    weights = folder / f"{shape}-{dtype}.safetensors"
    if not weights.exists():
        state = small_gpt.build(run, "float32", "cpu").state_dict()
        kind = backend.as_dtype(dtype)
        arrays = {n: t.numpy().astype(kind).astype(np.float32) for n, t in state.items()}
        save_file(arrays, weights.with_suffix(".part"))
        os.replace(weights.with_suffix(".part"), weights)
    batches = folder / f"{shape}-{run.batch}.npy"
    if not batches.exists():
        np.save(batches.with_suffix(".part.npy"), draw_batches(run))
        os.replace(batches.with_suffix(".part.npy"), batches)
    return {"weights": str(weights), "batches": str(batches)}


# Processes


class Failed(Exception):
    """A peer cannot go on. ``kind`` is "not there", "out of memory", "failed" or "stopped"."""

    def __init__(self, kind: str, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.kind, self.trace = kind, trace


def not_by_mkl(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the instructions that MKL chooses on other makers' CPUs like this one, if there are.

    It takes AVX-512 on Intel's CPUs and AVX2 on all others.
    """
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if "avx512f" not in text:
        return ""
    return "avx2" if "GenuineIntel" in text else "avx512"


def mkl_as_on_intel(folder: Path) -> Path:
    """Return a library to preload, with which MKL takes any CPU for one of Intel's.

    MKL chooses instructions by what its function mkl_serv_intel_cpu_true says. Raises Failed where
    there is no compiler.
    """
    source, library = folder / "intel.c", folder / "intel.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    except FileNotFoundError:
        raise Failed("not there", "cc, a C compiler, is not installed") from None
    return library


class Worker:
    """The process of one peer, which answers one question after the other."""

    def __init__(self, task: Mapping[str, Any], caches: Path) -> None:
        names = ["CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"]
        if task["device"] != "cpu":  # there it is the emulator that compiles
            names.append("GPUGRAD_CACHE")
        own = {name: str(caches / name.lower()) for name in names}
        self.cold = not caches.exists()
        caches.mkdir(parents=True, exist_ok=True)
        instructions = Peer(task["peer"]).instructions
        if instructions == "avx512":
            own["LD_PRELOAD"] = str(mkl_as_on_intel(caches))
        elif instructions:
            own["MKL_ENABLE_INSTRUCTIONS"] = instructions.upper()
        # modules are compiled once, as those of an installed library are
        given = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        descriptor, self.log = tempfile.mkstemp(dir=caches)
        self.begun = time.time()
        with open(descriptor, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**given, **own},
            )
        self.unread = b""

    def ask(self, deadline: float, **command: Any) -> dict[str, Any]:
        """Return the answer to a command, or to none what is said first; raise Failed."""
        assert self.process.stdin is not None
        if command:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(command).encode() + b"\n")
                self.process.stdin.flush()
        answer = json.loads(self._line(deadline))
        if "failure" in answer:
            raise Failed(answer["failure"], answer["text"], answer["trace"] + self._printed())
        return answer

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise Failed("stopped", "no time left", self._printed())
            piece = os.read(pipe, 65536)
            if not piece:
                code = self.process.wait()
                kind = "out of memory" if code == -9 else "failed"  # by the kernel, most likely
                raise Failed(kind, f"ended with exit code {code}", self._printed())
            self.unread += piece
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def _printed(self) -> str:
        return Path(self.log).read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """End the process; its memory is free when this returns."""
        with self.process as process, contextlib.suppress(BrokenPipeError):
            process.kill()


# Measuring


@dataclasses.dataclass
class Measured:
    """What is known of a peer so far."""

    peer: Peer
    worker: Worker | None = None
    row: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: list[float] = dataclasses.field(default_factory=list)
    steps: int = 1  # in a sample


def measure(
    name: str,
    run: Run,
    peers: Sequence[str],
    device: str,
    dtype: str,
    peak: bench.Peaks,
    folder: Path,
    rounds: int = 10,
    seconds: float = 0.5,
    budget: float = 1e9,
) -> list[dict[str, Any]]:
    """Return a row for every peer of a case, within a budget of seconds.

    A sample lasts ``seconds`` at least. Three quarters of the budget are for the first steps:
    a peer that finds no time left is a row that says so. ``folder`` keeps weights, batches and what
    libraries compile: the first peer of a library finds its cache empty if the folder is new.
    """
    begun = time.monotonic()
    deadline = begun + budget
    inputs = write_inputs(run, dtype, folder)
    known: list[Measured] = []
    try:
        for peer in peers:
            task = {"peer": peer, "run": run.settings(), "device": device, "dtype": dtype}
            known.append(_first_steps({**task, **inputs}, folder, begun + 0.75 * budget))
        _rounds(known, rounds, seconds, deadline)
    finally:
        for one in known:
            _end(one)
    return _rows(name, run, known, device, dtype, peak)


def _first_steps(task: Mapping[str, Any], folder: Path, deadline: float) -> Measured:
    """Start a peer and take the first steps."""
    one = Measured(Peer(task["peer"]))
    if time.monotonic() > deadline:
        one.row |= {"failure": "not run", "why": "no time left"}
        return one
    free = _free_mib(task["device"])
    try:
        one.worker = worker = Worker(task, folder / "caches" / one.peer.library)
        one.row["caches"] = "cold" if worker.cold else "warm"
        ready = worker.ask(deadline)
        one.row |= ready["about"]
        done = worker.ask(deadline, do="losses", steps=FIRST)
        one.row |= {
            "losses": done["losses"],
            "import_s": ready["imported"] - worker.begun,
            "build_s": ready["built"] - ready["imported"],
            "first_step_s": done["first"] - ready["built"],
            "to_first_loss_s": done["first"] - worker.begun,
            **done["memory"],
        }
        if done["launches"]:
            one.row["launches"] = done["launches"]
        if free is not None:
            one.row["device_mib"] = free - (_free_mib(task["device"]) or 0)
        worker.ask(deadline, do="rest")
    except Failed as error:
        _end(one, error)
    return one


def _rounds(known: Sequence[Measured], rounds: int, seconds: float, deadline: float) -> None:
    """Time the peers in turns, A B C, B C A, ..., until the rounds are done or the time is up."""
    for one in known:
        took = _sample(one, deadline)
        if took is not None:
            one.steps = max(1, round(seconds / took))
    for i in range(rounds):
        running = [one for one in known if one.worker is not None]
        if not running or time.monotonic() > deadline:
            return
        first = i % len(running)
        for one in running[first:] + running[:first]:
            took = _sample(one, deadline)
            if took is not None:
                one.samples.append(took)


def _sample(one: Measured, deadline: float) -> float | None:
    """Return the seconds of a step, None where the peer is lost."""
    if one.worker is None:
        return None
    try:
        warmup = max(2, one.steps // 5)
        took = one.worker.ask(deadline, do="time", warmup=warmup, steps=one.steps)["seconds"]
        one.worker.ask(deadline, do="rest")
    except Failed as error:
        counts = error.kind == "stopped" and one.samples  # what was measured by then
        _end(one, None if counts else error)
        return None
    return float(took)


def _end(one: Measured, error: Failed | None = None) -> None:
    """End the process of a peer, because of an error or because it is done."""
    if one.worker is not None:
        one.worker.end()
        one.worker = None
    if error is None:
        return
    one.row |= {"failure": error.kind, "why": str(error).splitlines()[0][:300]}
    if error.kind in ("failed", "stopped"):
        one.row["trace"] = error.trace[-6000:]


def _free_mib(device: str) -> float | None:
    if device == "cpu":
        return None
    return float(backend.cupy_module().cuda.runtime.memGetInfo()[0]) / MIB


def _rows(
    name: str, run: Run, known: Sequence[Measured], device: str, dtype: str, peak: bench.Peaks
) -> list[dict[str, Any]]:
    """Return the rows: speed, its ratio to the best other library, memory, the losses' verdict."""
    sound = [one for one in known if one.samples and "failure" not in one.row]
    whole = min((len(one.samples) for one in sound), default=0)
    timed = {one.peer.name: Timing(tuple(one.samples[:whole])) for one in sound}
    others = [n for n in timed if Peer(n).library != "gpugrad"]
    best = min(others, key=lambda n: timed[n].median, default=None)
    losses = [one.row["losses"] for one in known if "losses" in one.row]
    finite = [x for x in losses if np.isfinite(x).all()]
    middle = [statistics.median(step) for step in zip(*finite, strict=True)]
    sheet = peak_flops(device_name(device), dtype)
    rows = []
    for one in known:
        row: dict[str, Any] = {"case": name, "peer": one.peer.name}
        timing = timed.get(one.peer.name)
        if timing is not None:
            rate = flops(run) / timing.median
            row |= timing.row("ms", 1e3)
            row |= {"tokens_per_s": tokens(run) / timing.median, "rounds": whole}
            if best is not None:
                ratio = (b / a for a, b in zip(timing.samples, timed[best].samples, strict=True))
                row |= {"best_peer": best, **Timing(tuple(ratio)).row("times_best_peer")}
            row["mfu_measured"] = rate / peak.flops_per_second
            row["mfu_data_sheet"] = rate / sheet if sheet else None
        row |= one.row
        if "losses" in row:
            row |= _verdict(row["losses"], middle, BOUNDS[dtype])
        row |= {"dtype": dtype, "tokens": tokens(run), "flops": flops(run), **run.settings()}
        rows.append(row)
    return rows


def _verdict(losses: Sequence[float], middle: Sequence[float], bound: float) -> dict[str, Any]:
    """Return the losses, how far they lie from those in the middle, and whether that is little."""
    if not np.isfinite(losses).all():
        return {"losses": list(map(str, losses)), "bound": bound, "agrees": False}
    difference = float(np.abs(np.subtract(losses, middle)).max())
    found = {"losses": losses, "largest_difference": difference}
    return {**found, "bound": bound, "agrees": difference < bound}


SHOWN = {
    "case": "case",
    "peer": "peer",
    "ms": "ms",
    "ms_p20": "p20",
    "ms_p80": "p80",
    "tokens_per_s": "tokens/s",
    "times_best_peer": "x best",
    "mfu_measured": "MFU",
    "mfu_data_sheet": "of sheet",
    "device_mib": "device MiB",
    "reserved_mib": "reserved MiB",
    "rss_mib": "RSS MiB",
    "to_first_loss_s": "first s",
    "launches": "launches",
    "largest_difference": "loss off by",
}


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table that is printed last, and the losses one below the other."""
    lines = []
    for row in rows:
        line = {shown: row.get(key) for key, shown in SHOWN.items()}
        if "failure" in row:
            line["note"] = f"{row['failure']}: {row['why']}"[:60]
        elif not row["agrees"]:
            line["note"] = "computes something else"
        else:
            line["note"] = ""
        lines.append(line)
    empty = {key for key in SHOWN.values() if all(line[key] is None for line in lines)}
    lines = [{k: v for k, v in line.items() if k not in empty} for line in lines]
    losses = [
        {"case": row["case"], "peer": row["peer"], "losses": " ".join(map(_digits, row["losses"]))}
        for row in rows
        if "losses" in row
    ]
    return "\n\n".join(harness.table(part) for part in (losses, lines) if part)


def _digits(loss: float | str) -> str:
    return loss if isinstance(loss, str) else f"{loss:.5f}"


def faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what went wrong that should not: other results, and failures that are no limits."""
    found = []
    for row in rows:
        where = f"{row['case']}, {row['peer']}"
        if row.get("failure") == "failed":
            found.append(f"{where}: {row['why']}\n{row['trace']}")
        if row.get("agrees") is False:
            found.append(f"{where}: computes something else, losses {row['losses']}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", choices=list(CASES), help="default: the GPU if there is one")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="NAME", help="shell patterns")
    parser.add_argument("--peers", nargs="+", default=[], metavar="PATTERN", help="shell patterns")
    parser.add_argument("--dtype", choices=list(BOUNDS), help="of gpugrad's weights")
    parser.add_argument("--rounds", type=int, default=10, help="of interleaved timing (10)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a sample, at least (0.5)")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after every case")
    given = parser.parse_args(arguments)
    device = given.device or backend.default_device().partition(":")[0]
    if device == "cuda" and not backend.cuda_is_available():
        print(f"train_step: no GPU to measure. {backend.cupy_or_reason()[1]}.")
        return 2
    dtype = given.dtype or DTYPES[device]
    try:
        cases = {
            name: CASES[device][name] for name in _chosen(given.cases, [*CASES[device]], "case")
        }
        peers = {name: chosen_peers(given.peers, device, run) for name, run in cases.items()}
    except ValueError as error:
        parser.error(str(error))
    record = harness.record("train_step", [], device, dtype=dtype, rounds=given.rounds)
    peak = bench.peaks(device, dtype)
    record["settings"] |= {"sample_s": given.seconds, "peaks": dataclasses.asdict(peak)}
    rows = record["rows"]
    with tempfile.TemporaryDirectory() as folder:
        for name, run in cases.items():
            print(f"{name}: {', '.join(peers[name])}", flush=True)
            rows += measure(
                name,
                run,
                peers[name],
                device,
                dtype,
                peak,
                Path(folder),
                given.rounds,
                given.seconds,
                given.budget,
            )
            found = (row["torch"] for row in rows if "torch" in row)
            record["provenance"]["torch"] = next(found, None)
            if given.json:
                harness.write_json(record, given.json)
    wrong = faults(rows)
    for text in wrong:
        print(text, file=sys.stderr)
    print(f"{record['provenance']['device_name']}, load {record['provenance']['load_average']:.2f}")
    print(summary(rows))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
