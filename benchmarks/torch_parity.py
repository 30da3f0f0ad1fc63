"""Whether training in gpugrad and in PyTorch gives the same losses.

    python benchmarks/torch_parity.py [--steps N] [--out FILE]

A GPT (GPT-2's architecture) is trained from equal initial weights on equal batches with equal AdamW
settings, by gpugrad with NumPy and by PyTorch on the CPU. The loss of every step has to agree to
1e-4 in float32 and to 1e-9 in float64; otherwise the exit code is 1. Without PyTorch it is 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import small_gpt
from training import Run

TOLERANCES = {"float32": 1e-4, "float64": 1e-9}


def measure(run: Run, dtype: str, torch_gpt: Any) -> dict[str, Any]:
    """Return the row of one dtype; differences are the largest of all steps."""
    model = small_gpt.build(run, dtype)
    weights = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    ours = small_gpt.train(run, model).losses
    theirs = torch_gpt.train(run, weights, small_gpt.batches(run))
    differences = np.abs(np.subtract(ours, theirs))
    return {
        "what": f"GPT {run.layers}x{run.width}, {run.steps} steps",
        "dtype": dtype,
        "first_loss": ours[0],
        "last_loss": ours[-1],
        "largest_difference": float(differences.max()),
        "tolerance": TOLERANCES[dtype],
        "agrees": bool((differences < TOLERANCES[dtype]).all()),
        "losses": list(ours),
        "torch_losses": list(theirs),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "torch_parity.json")
    options = parser.parse_args(arguments)
    try:
        torch_gpt = importlib.import_module("torch_gpt")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print('torch_parity: PyTorch is not installed: pip install -e ".[bench]"')
        return 2
    run = replace(Run(), steps=options.steps)
    rows = [measure(run, dtype, torch_gpt) for dtype in TOLERANCES]
    harness.write_json(harness.record("torch_parity", rows, **run.settings()), options.out)
    hidden = ("losses", "torch_losses")
    print(f"written to {options.out}")
    print(harness.table([{k: v for k, v in row.items() if k not in hidden} for row in rows]))
    return int(not all(row["agrees"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
