"""One transformer, many parts: positions, order of the norms, Llama's norm, gate and shared heads.

Every variant is GPT with another setting. They learn the same text, Python source in characters,
for the same number of steps. Without positions of some kind attention could not tell "ab" from
"ba": the last column says by how much the last logits move when two earlier characters swap.

    python -m gpugrad.examples.transformer_variants [--picture FILE.svg]

>>> main([])
variant                       parameters   loss at first   after 70 steps   moves when two swap
GPT-2: learned positions          16,...
Vaswani: sinusoidal, post-LN      15,...
rotary                            15,...
ALiBi                             15,...
T5's relative positions           15,...
Llama                             14,...
all below the unigram entropy: True
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import CharTokenizer, RandomWindows

TEXT = inspect.getsource(textwrap)
STEPS = 70
TOKENIZER = CharTokenizer(TEXT)
PLAIN = GPTConfig(
    vocab_size=TOKENIZER.vocab_size,
    block_size=32,
    n_layer=1,
    n_head=4,
    n_embd=32,
    bias=False,
)
VARIANTS = {
    "GPT-2: learned positions": PLAIN,
    "Vaswani: sinusoidal, post-LN": replace(PLAIN, positions="sinusoidal", norm_first=False),
    "rotary": replace(PLAIN, positions="rotary"),
    "ALiBi": replace(PLAIN, positions="alibi"),
    "T5's relative positions": replace(PLAIN, positions="relative"),
    "Llama": replace(
        PLAIN, n_kv_head=2, positions="rotary", norm="rms", activation="swiglu", mlp_ratio=2.75
    ),
}


def train(config: GPTConfig, ids: np.ndarray) -> tuple[GPT, list[float]]:
    """Return a trained model and its losses."""
    gg.manual_seed(1)
    model = GPT(config)
    optimizer = gg.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    batches, losses = RandomWindows(ids, config.block_size, 8, seed=1), []
    for _ in range(STEPS):
        inputs, targets = next(batches)
        loss = model.loss(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        losses.append(loss.item())
    return model, losses


def moves(model: GPT, ids: np.ndarray) -> float:
    """Return how far the logits after ids move when two characters in them swap places."""
    swapped = ids.copy()
    swapped[[3, 9]] = ids[[9, 3]]
    with gg.no_grad():
        one, other = model.next_logits(ids[None]), model.next_logits(swapped[None])
    return float(gg.norm(one - other) / gg.norm(one))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant, print what it learned, and draw the losses."""
    picture = parse_picture(__doc__, arguments)
    ids = TOKENIZER.encode(TEXT)
    print("variant                       parameters   loss at first   ", end="")
    print(f"after {STEPS} steps   moves when two swap")
    curves = {}
    for name, config in VARIANTS.items():
        model, losses = train(config, ids)
        end = float(np.mean(losses[-10:]))
        size = sum(parameter.size for parameter in model.parameters())
        print(f"{name:29} {size:10,}   {losses[0]:13.2f}   {end:15.2f}", end="")
        print(f"   {moves(model, ids[:12]):19.3f}")
        curves[name] = losses
    counts = np.bincount(ids) / len(ids)
    entropy = -float((counts[counts > 0] * np.log(counts[counts > 0])).sum())
    below = all(np.mean(losses[-10:]) < entropy for losses in curves.values())
    print(f"all below the unigram entropy: {below}")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        for name, losses in curves.items():
            axes.plot(np.convolve(losses, np.ones(10) / 10, "valid"), label=name, linewidth=1)
        axes.axhline(entropy, color="gray", linestyle="--", label="unigram entropy")
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per character")
        axes.legend(fontsize=8)
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
