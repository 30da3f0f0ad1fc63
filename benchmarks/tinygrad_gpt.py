"""The same GPT and training step in plain tinygrad, captured by its TinyJit."""

from __future__ import annotations

import shutil
from importlib.metadata import version

import tinygrad
from tinygrad import Context, Tensor, TinyJit, nn
from training import MAX_NORM, Batches, NotThereError, Peer, Run, Training, Weights


class Attention:
    def __init__(self, width: int, heads: int) -> None:
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)  # (B, heads, T, D)
            for part in self.in_proj(x).split(c, dim=-1)
        )
        out = q.scaled_dot_product_attention(k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(b, t, c))


class MLP:
    def __init__(self, width: int) -> None:
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).gelu())


class Block:
    def __init__(self, width: int, heads: int) -> None:
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT:
    def __init__(self, run: Run) -> None:
        self.tokens = nn.Embedding(run.vocabulary, run.width)
        self.positions = nn.Embedding(run.block, run.width)
        self.blocks = [Block(run.width, run.heads) for _ in range(run.layers)]
        self.norm = nn.LayerNorm(run.width)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of ids (B, T)."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def prepare(
    peer: Peer, run: Run, weights: Weights, batches: Batches, device: str, dtype: str
) -> Training:
    """Return the step in tinygrad, in float32. NotThereError where its compiler is missing."""
    if device == "cpu" and not shutil.which("clang"):
        raise NotThereError("clang, which tinygrad compiles with, is not installed")
    where = "CPU" if device == "cpu" else "CUDA"
    with Context(DEV=where):
        model = GPT(run)
        state = {name: Tensor(array, device=where) for name, array in weights.items()}
        nn.state.load_state_dict(model, state, verbose=False)
    parameters = nn.state.get_parameters(model)
    kinds = [[p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
    optimizer = nn.optim.OptimizerGroup(
        *(
            nn.optim.AdamW(some, run.lr, *run.betas, eps=run.eps, weight_decay=decay)
            for some, decay in zip(kinds, (run.weight_decay, 0.0), strict=True)
        )
    )

    @TinyJit
    @Context(TRAINING=1)
    def step(ids: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(ids).sparse_categorical_crossentropy(targets).backward()
        norm = sum((p.grad.square().sum() for p in parameters), Tensor(0.0, device=where)).sqrt()
        scale = (MAX_NORM / (norm + 1e-6)).minimum(1.0)
        for p in parameters:
            p.grad = p.grad * scale
        return loss.realize(*optimizer.schedule_step())

    return Training(
        step,
        [tuple(Tensor(a, device=where).realize() for a in batch) for batch in batches],
        tinygrad.Device[where].synchronize,
        lambda: None,
        dict,
        lambda: 0,
        {"tinygrad": version("tinygrad"), "precision": "float32"},
    )
