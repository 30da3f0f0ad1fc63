"""The same training step of a GPT in each library, in a process of its own: see train_step.py.

    python benchmarks/train_peers.py '{"peer": "gpugrad-eager", "run": {...}, ...}'

It builds the model, then answers one line of JSON by another: ``losses`` takes the first steps,
``time`` times some, ``rest`` gives back memory that is only kept for later. Whatever fails is an
answer too. Everything else that is printed goes to the standard error stream.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from training import NotThereError, Peer, Run


def _import(library: str) -> None:
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise NotThereError(f"{library} is not installed") from None


def serve(commands: Iterable[str], answers: TextIO, task: Mapping[str, Any]) -> None:
    """Build what the task says and answer commands, one line each, until one fails."""

    def answer(values: Mapping[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        peer = Peer(task["peer"])
        run = Run(**{**task["run"], "betas": tuple(task["run"]["betas"])})
        _import(peer.library)
        imported, imported_mib = time.time(), peak_rss_mib()
        weights = importlib.import_module("safetensors.numpy").load_file(task["weights"])
        batches = tuple(zip(*np.load(task["batches"]), strict=True))
        library = importlib.import_module(f"{peer.library}_gpt")
        training = library.prepare(peer, run, weights, batches, task["device"], task["dtype"])
        del weights
        training.synchronize()
        answer({"imported": imported, "built": time.time(), "about": training.about})
        taken = 0

        def step() -> Any:
            nonlocal taken
            taken += 1
            return training.step(*training.batches[(taken - 1) % len(batches)])

        for line in commands:
            command = json.loads(line)
            match command["do"]:
                case "losses":
                    losses = [float(step().item())]
                    first = time.time()
                    launched = training.launches()
                    losses += [float(step().item()) for _ in range(command["steps"] - 1)]
                    launched = training.launches() - launched
                    each = launched / (command["steps"] - 1)
                    memory = {"rss_mib": peak_rss_mib(), "imported_mib": imported_mib}
                    memory |= training.memory()
                    answer({"losses": losses, "first": first, "launches": each, "memory": memory})
                case "time":
                    for _ in range(command["warmup"]):
                        step()
                    training.synchronize()
                    start = time.perf_counter()
                    for _ in range(command["steps"]):
                        step()
                    training.synchronize()
                    answer({"seconds": (time.perf_counter() - start) / command["steps"]})
                case "rest":
                    training.rest()
                    answer({})
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        answer({"failure": kind_of(error), "text": text, "trace": traceback.format_exc()})


def kind_of(error: BaseException) -> str:
    """Return "not there", "out of memory", or "failed"."""
    if isinstance(error, NotThereError):
        return "not there"
    words = ("out of memory", "can't allocate memory", "memoryallocation", "alloc_failed")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "out of memory" if named or any(w in str(error).lower() for w in words) else "failed"


def peak_rss_mib() -> float:
    """Return the most memory this process had, and what processes it forked have now, in MiB.

    Linux's VmHWM begins anew with each program; getrusage keeps that of the parent. Of a forked
    process only the pages count that are its own.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = _kib(status, "VmHWM:")
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            found += _kib(Path(f"/proc/{child}/smaps_rollup"), "Private_Clean:", "Private_Dirty:")
    return found / 1024


def _kib(path: Path, *names: str) -> int:
    """Return the sum of some lines of a file of Linux's."""
    words = (line.split() for line in path.read_text().splitlines())
    return sum(int(word[1]) for word in words if word[0] in names)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    serve(sys.stdin, channel, json.loads(sys.argv[1]))
