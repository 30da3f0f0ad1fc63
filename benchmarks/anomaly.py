"""What gg.detect_anomaly costs: a training step of small GPTs with and without it.

    python benchmarks/anomaly.py [--rounds N] [--out FILE]

Forward and backward of one batch, interleaved, in CPU time of the process. Where kernels run every
array that an operation takes or makes is one more launch (``extremes``): these are counted in the
emulator; how long they take on a GPU is not measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.models import GPT, GPTConfig

# layers, heads, width, context, batch
SHAPES = {"small": (2, 2, 64, 32, 8), "default": (4, 4, 128, 64, 12)}  # the latter: gpugrad train


class Step:
    """Forward and backward of a model on one batch."""

    def __init__(self, layers: int, heads: int, width: int, context: int, batch: int) -> None:
        gg.manual_seed(0)
        config = GPTConfig(256, block_size=context, n_layer=layers, n_head=heads, n_embd=width)
        self.model = GPT(config)
        self.ids = gg.random.integers(256, size=(batch, context))

    def plain(self) -> None:
        """Take the step."""
        self.model.zero_grad()
        self.model.loss(self.ids, self.ids).backward()

    def watched(self) -> None:
        """Take the step in anomaly mode."""
        with gg.detect_anomaly():
            self.plain()


def launches(run: Any) -> int:
    """Return how many kernels a step launches."""
    before = cuda.launches.total()
    with emulator.enabled("plain"):
        run()
    return cuda.launches.total() - before


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return the row of one model, in milliseconds and launches of a step."""
    step = Step(*SHAPES[name])
    variants = {"plain": step.plain, "watched": step.watched}
    timings = harness.compare(variants, rounds=rounds, clock=time.process_time)
    return {
        "what": name,
        "unit": "ms",
        "plain": timings["plain"].median * 1e3,
        "detect_anomaly": timings["watched"].median * 1e3,
        "ratio": timings["watched"].median / timings["plain"].median,
        "launches": launches(step.plain),
        "launches_detect_anomaly": launches(step.watched),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the table; return the exit status."""
    parser = argparse.ArgumentParser(description="What gg.detect_anomaly costs.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "anomaly.json")
    options = parser.parse_args(arguments)
    record = harness.record("anomaly", [], rounds=options.rounds)
    rows = [measure(name, options.rounds) for name in SHAPES]
    harness.write_json({**record, "rows": rows}, options.out)
    print(harness.table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
