"""`gpugrad doctor --determinism`: whether one seed gives one result on this machine, to the bit.

A small GPT with dropout is trained for some steps, again and again: in this process and in others,
with other numbers of threads, as it is and compiled, with NumPy, by the kernels in the emulator (in
other orders of threads too) and on a GPU where there is one. All runs on one device must end with
the same weights and losses, and all devices begin with the same weights, dropout masks and batches.

Takes some 15 seconds without a GPU. A run in a process of its own is this module as a program: it
prints what it computed as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import backend, emulator, threads
from ..compiled import compile
from ..cuda.emulation import ORDERS
from ..fused import dropout
from ..models import GPT, GPTConfig
from ..ops import ones, random
from ..optim import AdamW

SEED = 1234
NUMPY, EMULATOR, GPU = "NumPy", "emulator", "GPU"
_VARIABLES = (threads.VARIABLE, "OPENBLAS_NUM_THREADS")


class Size(NamedTuple):
    """What is trained; the emulator takes something smaller."""

    width: int
    block: int
    batch: int
    steps: int


SIZES = {NUMPY: Size(96, 64, 32, 4), EMULATOR: Size(32, 16, 2, 2), GPU: Size(96, 64, 12, 10)}


class Result(NamedTuple):
    """Digests (SHA-256) of the initial state, the final weights and all losses."""

    start: str
    weights: str
    losses: str


class Row(NamedTuple):
    """One run. ``result`` is None where it was not possible; ``how`` then says why."""

    device: str
    how: str
    result: Result | None


class Report(NamedTuple):
    """All runs; ``verdicts`` says of each device, and of the common start, whether they agree."""

    rows: list[Row]

    @property
    def verdicts(self) -> dict[str, bool]:
        """Whether all runs on a device are equal, and whether all devices start equal."""
        done = [row for row in self.rows if row.result is not None]
        found = {}
        for device in dict.fromkeys(row.device for row in done):
            found[device] = len({row.result for row in done if row.device == device}) == 1
        found["start"] = len({row.result.start for row in done if row.result}) == 1
        return found

    @property
    def works(self) -> bool:
        """Whether everything that was compared is equal."""
        return all(self.verdicts.values())

    def to_json(self) -> str:
        """Return the report as JSON."""
        rows = [
            {**row._asdict(), "result": row.result and row.result._asdict()} for row in self.rows
        ]
        return json.dumps({"same": self.works, "verdicts": self.verdicts, "runs": rows}, indent=2)

    def to_text(self) -> str:
        """Return the runs as a table, with the first digits of each digest, and the verdict."""
        width = max(len(row.how) for row in self.rows)
        lines = [f"{'device':<9} {'run':<{width}}  start     weights   losses"]
        for device, how, result in self.rows:
            digests = "  ".join(d[:8] for d in result) if result else "not compared"
            lines.append(f"{device:<9} {how:<{width}}  {digests}")
        lines.append("")
        for name, equal in self.verdicts.items():
            what = "all devices start alike" if name == "start" else f"{name}: all runs are equal"
            lines.append(f"{'ok' if equal else 'DIFFERENT':<9} {what}")
        return "\n".join(lines)


def examine() -> Report:
    """Train on all devices that are here, in all ways."""
    rows = list(_on_numpy())
    if shutil.which("g++"):
        rows += _in_the_emulator()
    else:
        rows.append(Row(EMULATOR, "no g++ here, see gpugrad doctor", None))
    if backend.cuda_is_available():
        rows += _on_the_gpu()
    else:
        rows.append(Row(GPU, "none here, see gpugrad doctor", None))
    return Report(rows)


def _on_numpy() -> Iterator[Row]:
    for count, compiled in ((1, False), (2, False), (3, False), (5, False), (3, True)):
        with threads.num_threads(count):
            how = f"{count} thread{'s' * (count > 1)}{', compiled' * compiled}"
            yield Row(NUMPY, how, train(NUMPY, compiled))
    for counts in (("1", "1"), ("3", "2")):
        yield _elsewhere(NUMPY, dict(zip(_VARIABLES, counts, strict=True)))


def _in_the_emulator() -> Iterator[Row]:
    for order in ORDERS:
        with emulator.enabled("plain", order=order):
            yield Row(EMULATOR, f"threads of a block {order}", train(EMULATOR))
    with emulator.enabled("plain"):
        yield Row(EMULATOR, "compiled", train(EMULATOR, compiled=True))
    yield _elsewhere(EMULATOR, {threads.VARIABLE: "3", "GPUGRAD_EMULATE": "plain"})


def _on_the_gpu() -> Iterator[Row]:
    for how in ("once", "again"):
        yield Row(GPU, how, train(GPU))
    yield Row(GPU, "compiled", train(GPU, compiled=True))
    yield _elsewhere(GPU, {})


def _elsewhere(device: str, variables: dict[str, str]) -> Row:
    """Train in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "GPUGRAD_EMULATE"} | variables
    command = [sys.executable, "-m", __name__, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    settings = " ".join(f"{k}={v}" for k, v in variables.items() if k != "GPUGRAD_EMULATE")
    how = f"another process {settings}".rstrip()
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the run in {how} failed with status {done.returncode}: {reason}")
    return Row(device, how, Result(**json.loads(done.stdout)))


def train(kind: str, compiled: bool = False) -> Result:
    """Train a small GPT from SEED; return the digests of how it began and ended."""
    size = SIZES[kind]
    device = "cuda" if kind == GPU else "cpu"
    start = _start(device)
    random.manual_seed(SEED)
    model = _model(size, device)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    shape = (size.steps, size.batch, size.block + 1)
    tokens = random.integers(model.config.vocab_size, size=shape, device=device)

    def step(ids: Any, targets: Any) -> Any:
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()
        return loss

    run = compile(step) if compiled else step
    losses = [run(ids[:, :-1], ids[:, 1:]).detach().numpy().copy() for ids in tokens]
    return Result(start, _digest(p.numpy() for p in model.state_dict().values()), _digest(losses))


def _start(device: str) -> str:
    """Return the digest of what a seed gives before anything is computed."""
    random.manual_seed(SEED)
    weights = _model(SIZES[EMULATOR], device).state_dict().values()
    mask = dropout(ones((64, 33), device=device), 0.1)
    batch = random.permutation(1000, device=device), random.integers(50, size=99, device=device)
    return _digest(t.numpy() for t in (*weights, mask, *batch))


def _model(size: Size, device: str) -> GPT:
    config = GPTConfig(
        vocab_size=65,
        block_size=size.block,
        n_layer=2,
        n_head=2,
        n_embd=size.width,
        dropout=0.1,
    )
    return GPT(config, device=device)


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1])._asdict()))
