"""What train_step.py measures: libraries, in which of their forms, at which sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np

MAX_NORM = 1.0  # of the gradients, beyond which they are clipped
MIB = 2**20
Batches: TypeAlias = Sequence[tuple[np.ndarray, np.ndarray]]
Weights: TypeAlias = Mapping[str, np.ndarray]
VOCABULARY = 256  # bytes


@dataclass(frozen=True)
class Run:
    """Sizes and settings. GPT-2's architecture on bytes, without dropout."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    block: int = 64
    batch: int = 12
    steps: int = 50
    vocabulary: int = VOCABULARY
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    seed: int = 1337

    def settings(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class NotThereError(Exception):
    """A peer cannot be measured here: the library, or what it is asked for, is missing."""


@dataclass(frozen=True)
class Peer:
    """What takes the step. The name says it all: library, mode, attention, precision.

    mode: "eager"; "compiled" is gg.compile; "compile" is torch.compile of the loss, "graphs" the
    same with mode="reduce-overhead", "captured" the same with the whole step, clipping and update
    included, in one CUDA graph. attention: the only backend PyTorch may choose, or "default".
    precision, of PyTorch: "autocast" keeps weights, residual stream and moments in float32 and
    multiplies in bfloat16; "bfloat16" keeps everything but the loss in bfloat16, the moments too.
    "avx512" after it: MKL takes such instructions on CPUs not of Intel's too; "avx2": it takes no
    later ones on Intel's either. JAX and tinygrad have the whole step under their "jit". gpugrad
    has weights and activations in the dtype of the run, float32 master weights and moments.
    """

    name: str

    @property
    def library(self) -> str:
        """The library."""
        return self.name.split("-")[0]

    @property
    def mode(self) -> str:
        """How Python's part of the step is avoided, if at all."""
        return self.name.split("-")[1]

    @property
    def attention(self) -> str:
        """The backend of the attention."""
        return self.name.split("-")[2] if self.library == "torch" else "own"

    @property
    def instructions(self) -> str:
        """What MKL is made to use, empty for its own choice."""
        return "".join(self.name.split("-")[4:5])

    @property
    def precision(self) -> str:
        """What is kept in which dtype, where the library leaves a choice."""
        return self.name.split("-")[3] if self.library == "torch" else ""


def _torch(modes: str, attentions: str, precisions: str) -> list[str]:
    parts = product(attentions.split(), precisions.split(), modes.split())
    return [f"torch-{mode}-{attention}-{precision}" for attention, precision, mode in parts]


# All that can be asked for, by device
PEERS = {
    "cpu": [
        "gpugrad-eager",
        "gpugrad-compiled",
        *_torch("eager compile", "default math", "float32"),
        *_torch("eager compile", "default", "float32-avx512 float32-avx2"),
        "jax-jit",
        "tinygrad-jit",
    ],
    "cuda": [
        "gpugrad-compiled",
        "gpugrad-eager",
        *_torch(
            "eager compile graphs captured", "flash cudnn default", "autocast bfloat16 float32"
        ),
    ],
}


@dataclass(frozen=True)
class Training:
    """A model on its device, ready to train.

    ``step(x, y)`` takes one step and returns the loss before it, which has an ``item()``; it waits
    for nothing. ``rest`` gives memory back that the next steps take again. ``about`` says what was
    really set, ``memory`` the MiB of the library's allocator, on a GPU, ``launches`` how many
    kernels gpugrad has launched so far, not counting matrix products.
    """

    step: Callable[[Any, Any], Any]
    batches: Sequence[tuple[Any, Any]]
    synchronize: Callable[[], None]
    rest: Callable[[], None]
    memory: Callable[[], dict[str, float]]
    launches: Callable[[], int]
    about: dict[str, Any]
