"""GPT-2 and its training step in plain PyTorch, written for comparison with gpugrad's.

Pre-LN blocks around a residual stream, learned positions, tanh-gelu, the head tied to the embedding
(Radford et al., "Language models are unsupervised multitask learners", 2019). Modules are called as
in gpugrad, so that a state dict fits both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import MAX_NORM, MIB, Batches, Peer, Run, Training, Weights


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)  # (B, heads, T, D)
            for part in self.in_proj(x).split(c, dim=-1)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(b, t, c))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.tokens = nn.Embedding(run.vocabulary, run.width)
        self.positions = nn.Embedding(run.block, run.width)
        self.blocks = nn.ModuleList(Block(run.width, run.heads) for _ in range(run.layers))
        self.norm = nn.LayerNorm(run.width)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of ids (B, T)."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def adamw(model: nn.Module, run: Run, **how: Any) -> torch.optim.AdamW:
    """Return the optimiser of a run: matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": run.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=run.lr,
        betas=run.betas,
        eps=run.eps,
        **how,
    )


def train(
    run: Run, weights: Weights, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[float]:
    """Train on the CPU from the given weights, in their dtype, and return the losses."""
    model = GPT(run)
    state = {name: torch.tensor(array) for name, array in weights.items()}
    model.to(next(iter(state.values())).dtype).load_state_dict(state)
    optimizer = adamw(model, run)
    losses = []
    for x, y in batches:
        logits = model(torch.from_numpy(x))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def prepare(
    peer: Peer, run: Run, weights: Weights, batches: Batches, device: str, dtype: str
) -> Training:
    """Return the step in PyTorch."""
    on_gpu = device != "cpu"
    torch.set_float32_matmul_precision("highest" if peer.precision == "float32" else "high")
    _allow(peer.attention)
    with torch.device(device):
        model = GPT(run)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    if peer.precision == "bfloat16":
        model.to(torch.bfloat16)
    captured = peer.mode == "captured"
    optimizer = adamw(model, run, fused=True, **({"capturable": True} if captured else {}))
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
        _captured(step, on_device[0]) if captured else step,
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


def _allow(attention: str) -> None:
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


def _captured(step: Callable[[Any, Any], Any], like: Any) -> Callable[[Any, Any], Any]:
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
