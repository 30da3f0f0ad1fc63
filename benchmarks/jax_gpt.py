"""The same GPT and training step in plain JAX, one jitted function."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from training import MAX_NORM, Batches, Peer, Run, Training, Weights

Arrays = dict[str, jax.Array]


def norm(x: jax.Array, p: Arrays, name: str) -> jax.Array:
    """Layer normalisation over the last axis."""
    mean = x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return (x - mean) * scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: jax.Array, p: Arrays, name: str) -> jax.Array:
    """A product with a weight of shape (out, in), and the bias."""
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def attention(x: jax.Array, p: Arrays, name: str, heads: int) -> jax.Array:
    """Causal attention of x (B, T, C)."""
    b, t, c = x.shape
    qkv = linear(x, p, f"{name}.in_proj").reshape(b, t, 3, heads, c // heads)
    q, k, v = (qkv[:, :, i] for i in range(3))  # (B, T, heads, D)
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return linear(out.reshape(b, t, c), p, f"{name}.out_proj")


def loss_of(p: Arrays, run: Run, ids: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean cross-entropy of targets (B, T) after ids (B, T), in nats."""
    x = p["tokens.weight"][ids] + p["positions.weight"][: ids.shape[1]]
    for i in range(run.layers):
        block = f"blocks.{i}"
        x = x + attention(norm(x, p, f"{block}.norm1"), p, f"{block}.attention", run.heads)
        hidden = jax.nn.gelu(linear(norm(x, p, f"{block}.norm2"), p, f"{block}.mlp.up"))
        x = x + linear(hidden, p, f"{block}.mlp.down")
    log_p = jax.nn.log_softmax(norm(x, p, "norm") @ p["tokens.weight"].T)
    return -jnp.take_along_axis(log_p, targets[..., None], -1).mean()


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2, 3))
def train_step(
    run: Run, p: Arrays, m: Arrays, v: Arrays, count: int, ids: jax.Array, targets: jax.Array
) -> tuple[Arrays, Arrays, Arrays, jax.Array]:
    """Return weights and moments after a step of AdamW with clipping, and the loss before it."""
    loss, grads = jax.value_and_grad(loss_of)(p, run, ids, targets)
    total = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
    grads = {n: g * jnp.minimum(1.0, MAX_NORM / (total + 1e-6)) for n, g in grads.items()}
    b1, b2 = run.betas
    m = {n: b1 * m[n] + (1 - b1) * g for n, g in grads.items()}
    v = {n: b2 * v[n] + (1 - b2) * g * g for n, g in grads.items()}
    new = {}
    for name, weight in p.items():
        decay = run.weight_decay if weight.ndim >= 2 else 0.0
        scale = jnp.sqrt(v[name] / (1 - b2**count)) + run.eps
        update = m[name] / (1 - b1**count) / scale
        new[name] = weight * (1 - run.lr * decay) - run.lr * update
    return new, m, v, loss


def prepare(
    peer: Peer, run: Run, weights: Weights, batches: Batches, device: str, dtype: str
) -> Training:
    """Return the step in JAX, in float32."""
    where = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    p = {name: jax.device_put(array, where) for name, array in weights.items()}
    state: Any = (p, jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p))
    count = 0

    def step(ids: jax.Array, targets: jax.Array) -> jax.Array:
        nonlocal state, count
        count += 1
        *state, loss = train_step(run, *state, count, ids, targets)
        return loss

    return Training(
        step,
        [tuple(jax.device_put(array, where) for array in batch) for batch in batches],
        lambda: jax.block_until_ready(state),
        lambda: None,
        dict,
        lambda: 0,
        {"jax": jax.__version__, "precision": "float32"},
    )
