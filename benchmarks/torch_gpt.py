"""GPT-2 and its training step in plain PyTorch, written for comparison with gpugrad's.

Pre-LN blocks around a residual stream, learned positions, tanh-gelu, the head tied to the embedding
(Radford et al., "Language models are unsupervised multitask learners", 2019). Modules are called as
in gpugrad, so that a state dict fits both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from small_gpt import Run
from torch import Tensor, nn
from torch.nn import functional as F


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


def train(run: Run, weights: Mapping[str, np.ndarray]) -> list[float]:
    """Train on the CPU from the given weights, in their dtype, and return the losses."""
    model = GPT(run)
    state = {name: torch.tensor(array) for name, array in weights.items()}
    model.to(next(iter(state.values())).dtype).load_state_dict(state)
    optimizer = adamw(model, run)
    losses = []
    for x, y in run.batches():
        logits = model(torch.from_numpy(x))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
