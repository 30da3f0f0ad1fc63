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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
from small_gpt import Run

MAX_NORM = 1.0  # of the gradients, beyond which they are clipped
MIB = 2**20
Batches: TypeAlias = Sequence[tuple[np.ndarray, np.ndarray]]
Weights: TypeAlias = Mapping[str, np.ndarray]


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
    gpugrad has weights and activations in the dtype of the run, float32 master weights and moments.
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


def gpugrad_training(
    peer: Peer, run: Run, weights: Weights, batches: Batches, device: str, dtype: str
) -> Training:
    """Return the step in gpugrad."""
    import gpugrad as gg
    from gpugrad import backend, cuda
    from gpugrad.optim import AdamW, decay_groups

    model = run.model(dtype, device)
    model.load_state_dict(weights)
    groups = decay_groups(model, run.weight_decay)
    optimizer = AdamW(groups, lr=run.lr, betas=run.betas, eps=run.eps)

    def step(x: Any, y: Any) -> Any:
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step(max_norm=MAX_NORM)
        optimizer.zero_grad()
        return loss

    if peer.mode == "compiled":
        step = gg.compile(step, device=device)
    cupy = backend.cupy_module() if device != "cpu" else None

    def rest() -> None:
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()

    def memory() -> dict[str, float]:
        if cupy is None:
            return {}
        return {"reserved_mib": cupy.get_default_memory_pool().total_bytes() / MIB}

    return Training(
        step,
        [(gg.tensor(x, device=device), gg.tensor(y, device=device)) for x, y in batches],
        gg.synchronize,
        rest,
        memory,
        lambda: sum(cuda.launches.values()),
        {
            "gpugrad": gg.__version__,
            "cupy": getattr(cupy, "__version__", None),
            "precision": f"{dtype} weights and activations"
            + (", float32 master weights and moments" if dtype != "float32" else ""),
        },
    )


def torch_training(
    peer: Peer, run: Run, weights: Weights, batches: Batches, device: str, dtype: str
) -> Training:
    """Return the step in PyTorch."""
    import torch
    import torch_gpt

    on_gpu = device != "cpu"
    torch.set_float32_matmul_precision("highest" if peer.precision == "float32" else "high")
    _allow(torch, peer.attention)
    with torch.device(device):
        model = torch_gpt.GPT(run)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    if peer.precision == "bfloat16":
        model.to(torch.bfloat16)
    captured = peer.mode == "captured"
    optimizer = torch_gpt.adamw(
        model, run, fused=True, **({"capturable": True} if captured else {})
    )
    parameters = list(model.parameters())

    def loss_of(x: Any, y: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=peer.precision == "autocast"):
            logits = model(x)
            if peer.precision == "bfloat16":
                logits = logits.float()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    how = {"graphs": {"mode": "reduce-overhead"}, "compile": {}, "captured": {}}
    if peer.mode in how:
        loss_of = torch.compile(loss_of, fullgraph=True, **how[peer.mode])

    def step(x: Any, y: Any) -> Any:
        if peer.mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        return loss.detach()

    def memory() -> dict[str, float]:
        if not on_gpu:
            return {}
        return {
            "reserved_mib": torch.cuda.max_memory_reserved() / MIB,
            "allocated_mib": torch.cuda.max_memory_allocated() / MIB,
        }

    on_device = [
        (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)) for x, y in batches
    ]
    kept = {
        "autocast": "float32 weights and moments, autocast to bfloat16",
        "bfloat16": "bfloat16 weights, activations and moments, float32 loss",
        "float32": "float32",
    }
    return Training(
        _captured(torch, step, on_device[0]) if captured else step,
        on_device,
        torch.cuda.synchronize if on_gpu else lambda: None,
        torch.cuda.empty_cache if on_gpu else lambda: None,
        memory,
        lambda: 0,
        {
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "threads": torch.get_num_threads(),
            "tf32": torch.backends.cuda.matmul.allow_tf32 if on_gpu else None,
            "precision": kept[peer.precision],
        },
    )


def _allow(torch: Any, attention: str) -> None:
    """Leave PyTorch one backend of its attention to choose, or all."""
    if attention == "default":
        return
    switches = {
        "flash": torch.backends.cuda.enable_flash_sdp,
        "mem_efficient": torch.backends.cuda.enable_mem_efficient_sdp,
        "math": torch.backends.cuda.enable_math_sdp,
        "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    }
    for name, switch in switches.items():
        switch(name == attention)


def _captured(torch: Any, step: Callable[[Any, Any], Any], like: Any) -> Callable[[Any, Any], Any]:
    """Return the step as the replay of one CUDA graph, after three ordinary ones on its stream."""
    x, y = (t.clone() for t in like)  # what the graph reads
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    taken: list[Any] = []  # the losses so far; the graph's stays where it is

    def replay(new_x: Any, new_y: Any) -> Any:
        if len(taken) < 3:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                taken.append(step(new_x, new_y))
            torch.cuda.current_stream().wait_stream(stream)
            return taken[-1]
        if len(taken) == 3:
            with torch.cuda.graph(graph):
                taken.append(step(x, y))
        x.copy_(new_x)
        y.copy_(new_y)
        graph.replay()
        return taken[3]

    return replay


LIBRARIES: dict[str, Callable[..., Training]] = {
    "gpugrad": gpugrad_training,
    "torch": torch_training,
}


# The process


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
        build = LIBRARIES[peer.library]
        training = build(peer, run, weights, batches, task["device"], task["dtype"])
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
    """Return the most memory this process had, in MiB.

    Linux's VmHWM begins anew with each program; getrusage keeps that of the parent.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    serve(sys.stdin, channel, json.loads(sys.argv[1]))
