"""LoRA teaches a frozen model something new by two thin matrices beside each weight.

A small GPT learns sums, "7+5=12". Then every weight is frozen and adapters of rank 4 learn
differences, "7-5=2". Merged into the weights they cost nothing; subtracted again, the model is what
it was; on disk they are a fraction of it. Hu et al., "LoRA" (ICLR 2022).

    python -m gpugrad.examples.lora [--picture FILE.svg]

>>> main([])
                         sums   differences
pre-trained on sums     0.9...   4...
adapters in place       3...   0.9...
merged                  3...   0.9...
subtracted again        0.9...   4...
trained: 4,280 of 31,416 parameters; logits differ by less than 1e-04 when merged
adapter on disk: 19 kB, model: 109 kB; loaded into the model: same logits
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig, load_adapter, save_adapter
from gpugrad.text import CharTokenizer

TOKENIZER = CharTokenizer("0123456789+-=\n")
CONFIG = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, block_size=24, n_layer=2, n_head=2, n_embd=32, tied_head=False
)

RANK, STEPS = 4, 100


def exercises(rng: np.random.Generator, sign: str, count: int) -> np.ndarray:
    """Return rows of 25 ids, each some exercises one after the other."""
    rows = []
    for _ in range(count):
        text = ""
        while len(text) < 25:
            a, b = sorted(rng.integers(10, size=2))[::-1]
            text += f"{a}{sign}{b}={a + b if sign == '+' else a - b}\n"
        rows.append(TOKENIZER.encode(text[:25]))
    return np.stack(rows)


def train(model: GPT, rows: np.ndarray, steps: int, lr: float) -> int:
    """Train what is not frozen; return how many parameters that is."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.AdamW(trained, lr=lr, weight_decay=0.0)
    for step in range(steps):
        batch = rows[np.arange(step * 16, step * 16 + 16) % len(rows)]
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
    return sum(p.size for p in trained)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pre-train, adapt, merge, subtract, save and load."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(0)
    rng = np.random.default_rng(0)
    sums, differences = (exercises(rng, sign, 500) for sign in "+-")
    held_out = [exercises(rng, sign, 50) for sign in "+-"]
    model = GPT(CONFIG)

    reached = {}

    def show(name: str) -> np.ndarray:
        with gg.no_grad():
            losses = [float(model.loss(rows[:, :-1], rows[:, 1:])) for rows in held_out]
            print(f"{name:20} {losses[0]:8.3f} {losses[1]:7.3f}")
            reached[name] = losses
            return model(held_out[1][:, :-1])[0].numpy()

    print("                         sums   differences")
    train(model, sums, steps=STEPS, lr=1e-2)
    show("pre-trained on sums")
    nn.lora.adapt(model, rank=RANK, alpha=8)
    trained = train(model, differences, steps=STEPS, lr=2e-2)
    adapted = show("adapters in place")
    weights = [layer.weight.numpy().copy() for layer in nn.lora.layers(model).values()]
    merged = show("merged") if nn.lora.merge(model) else adapted
    changes = {
        name: layer.weight.numpy() - weight
        for (name, layer), weight in zip(nn.lora.layers(model).items(), weights, strict=True)
    }
    nn.lora.unmerge(model)
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder, "adapter.safetensors")
        save_adapter(model, adapter)
        nn.lora.remove(model)
        show("subtracted again")
        model.save_pretrained(folder)
        sizes = [
            file.stat().st_size / 1024 for file in (adapter, Path(folder, "model.safetensors"))
        ]
        load_adapter(model, adapter)
    with gg.no_grad():
        loaded = model(held_out[1][:, :-1])[0].numpy()

    count = sum(p.size for p in model.parameters())
    apart = "less" if np.abs(merged - adapted).max() < 1e-4 else "more"
    print(f"trained: {trained:,} of {count:,} parameters; ", end="")
    print(f"logits differ by {apart} than 1e-04 when merged")
    same = "same" if np.abs(loaded - adapted).max() < 1e-4 else "other"
    print(f"adapter on disk: {sizes[0]:.0f} kB, model: {sizes[1]:.0f} kB; ", end="")
    print(f"loaded into the model: {same} logits")

    if picture is not None:
        figure = new_figure(10.0, 4.0)
        left, right = figure.subplots(1, 2)
        for number, name in enumerate(("sums", "differences")):
            places = np.arange(len(reached)) + 0.4 * number - 0.2
            left.bar(places, [losses[number] for losses in reached.values()], 0.4, label=name)
        left.set_xticks(range(len(reached)), [name.replace(" ", "\n", 1) for name in reached])
        left.set(ylabel="loss, nats per symbol")
        left.margins(y=0.2)
        left.legend()
        for name, change in changes.items():
            values = np.linalg.svd(change, compute_uv=False)[:12]
            right.semilogy(range(1, len(values) + 1), values, ".-", label=name)
        right.axvline(RANK + 0.5, color="gray", linestyle="--")
        right.text(RANK + 0.7, right.get_ylim()[1] / 4, "beyond rank 4: rounding")
        right.set(xlabel="singular value", ylabel="of the merged change of each weight")
        right.legend(fontsize=7)
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
