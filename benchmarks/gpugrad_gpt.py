"""The training step of train_step.py in gpugrad."""

from __future__ import annotations

from typing import Any

import small_gpt
from training import MAX_NORM, MIB, Batches, Peer, Run, Training, Weights

import gpugrad as gg
from gpugrad import backend, cuda
from gpugrad.optim import AdamW, decay_groups


def prepare(
    peer: Peer, run: Run, weights: Weights, batches: Batches, device: str, dtype: str
) -> Training:
    """Return the step in gpugrad."""
    model = small_gpt.build(run, dtype, device)
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
