"""Cross-entropy of a language model's logits: two passes, and loss and gradient in one."""

from __future__ import annotations

import sys
from typing import Any

import bench
from bench import Built, Case, Cost, Ids, Work

import gpugrad as gg
from gpugrad.fused.cross_entropy import cross_entropy_in_place
from gpugrad.registry import Sample


def _torch(torch: Any, logits: Any, target: Any, weight: Any, **statics: Any) -> Any:
    return torch.nn.functional.cross_entropy(logits, target, weight, **statics)


def _sample(rows: int, classes: int, smoothing: float = 0.0) -> Sample:
    statics: dict[str, Any] = {"ignore_index": -100, "reduction": "mean"}
    target = Ids((rows,), classes)
    return Sample((rows, classes), target, None, label_smoothing=smoothing, **statics)


def _in_place(size: tuple[int, int], device: str, dtype: str, torch: Any) -> Built:
    """Build what overwrites the logits with their gradient; every call goes on with the last's."""
    rows, classes = size
    gg.manual_seed(0)
    logits = bench.normal(size, dtype, device, requires_grad=True)
    target = gg.tensor(Ids((rows,), classes).draw(), device=device)
    overwritten = logits.data.copy()

    def in_two_passes() -> Any:
        return gg.grad(gg.nn.functional.cross_entropy(logits, target), logits)

    makers = {
        bench.fast_path(device): bench.only(
            lambda: cross_entropy_in_place(overwritten, target.data)
        ),
        "definition": bench.only(lambda: _with_gradients(in_two_passes)),
    }
    if torch is not None:
        x = bench.to_torch(torch, logits.data).requires_grad_()
        ids = bench.to_torch(torch, target.data)
        f = torch.nn.functional.cross_entropy
        makers["torch"] = bench.only(lambda: torch.autograd.grad(f(x, ids), x))
    moved = 2 * rows * classes * logits.dtype.itemsize
    return Built(Cost(moved, 10 * rows * classes), makers)


def _with_gradients(run: Any) -> Any:
    with gg.enable_grad():
        return run()


CASES = [
    Case("cross_entropy", _sample(8192, 50304), _sample(128, 50304), _torch, "ids"),
    Case("cross_entropy", _sample(8192, 50304, 0.1), _sample(128, 50304, 0.1), _torch, "smoothed"),
    Case("cross_entropy", _sample(65536, 256), _sample(16384, 256), _torch, "bytes"),
    Work("cross_entropy_in_place", (8192, 50304), (128, 50304), _in_place),
]

if __name__ == "__main__":
    sys.exit(bench.main(["cross_entropy", *sys.argv[1:]]))
