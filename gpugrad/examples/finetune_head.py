"""A pre-trained body under a new head learns from eight labels what a new network cannot.

A small GPT reads sums of two digits, each answer one letter: "3+4=h". To predict the letter it has
to know the sum. Then its body is frozen, a linear layer takes the place of its head, and 8 of the
100 sums come with a label: ten or more, or less. With that it labels the other 92; the same network
trained from scratch learns the 8 by heart and little else. Shares are means over 5 draws of the 8.

    python -m gpugrad.examples.finetune_head [--picture FILE.svg]

>>> main([])
pre-training: loss 3.5 -> 0... nats per symbol
                      trained   labels learned   others right
head on frozen body        66             100%            9...%
all, from scratch      14,978             100%            ...%
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig, SequenceClassifier
from gpugrad.text import CharTokenizer

TOKENIZER = CharTokenizer("0123456789+=abcdefghijklmnopqrs")
CONFIG = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, block_size=5, n_layer=1, n_head=2, n_embd=32, tied_head=False
)
LABELLED = 8
DRAWS = 5


def train(
    model: nn.Module, steps: int, lr: float, ids: np.ndarray, **wanted: np.ndarray
) -> list[float]:
    """Train what is not frozen to predict targets or labels; return the losses."""
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        _, loss = model(ids, **wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        losses.append(float(loss))
    return losses


def accuracy(model: SequenceClassifier, texts: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of texts that get their label."""
    with gg.no_grad():
        logits, _ = model(texts)
    return float((logits.numpy().argmax(-1) == labels).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the frozen body under a new head with the whole network from scratch."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]
    texts = np.stack([TOKENIZER.encode(f"{a}+{b}={chr(ord('a') + a + b)}") for a, b in pairs])
    large = np.array([a + b >= 10 for a, b in pairs]).astype(int)
    orders = [np.random.default_rng(i).permutation(len(pairs)) for i in range(DRAWS)]
    questions = texts[:, :4]  # up to the "="

    body = GPT(CONFIG)
    losses = train(body, 150, 1e-2, texts[:, :-1], targets=texts[:, 1:])
    print(f"pre-training: loss {losses[0]:.1f} -> {losses[-1]:.2f} nats per symbol")

    nn.freeze(body)
    models = {}
    print("                      trained   labels learned   others right")
    for name, lr in (("head on frozen body", 3e-2), ("all, from scratch", 3e-3)):
        right = []
        for order in orders:
            under = body if name.startswith("head") else GPT(CONFIG)
            model = models[name] = SequenceClassifier(under, classes=2)
            known, others = order[:LABELLED], order[LABELLED:]
            train(model, 80, lr, questions[known], labels=large[known])
            right.append([accuracy(model, questions[i], large[i]) for i in (known, others)])
        count = sum(p.size for p in model.parameters() if p.requires_grad)
        learned, found = np.mean(right, axis=0)
        print(f"{name:20} {count:8,} {learned:16.0%} {found:>14.0%}")

    if picture is not None:
        figure = new_figure(9.0, 4.5)
        for axes, (name, model) in zip(figure.subplots(1, 2), models.items(), strict=True):
            with gg.no_grad():
                chances = nn.functional.softmax(model(questions)[0]).numpy()[:, 1]
            square = axes.imshow(chances.reshape(10, 10), cmap="coolwarm", vmin=0, vmax=1)
            a, b = np.array(pairs)[orders[-1][:LABELLED]].T
            axes.plot(b, a, "o", markersize=13, markerfacecolor="none", color="black")
            axes.step(np.arange(-0.5, 10), 10 - np.arange(-0.5, 10), color="black")
            axes.set(title=name, xlabel="b", ylabel="a", ylim=(9.5, -0.5))
            axes.set(xticks=range(10), yticks=range(10))
        figure.colorbar(square, ax=figure.axes, label="p(a + b is ten or more); circles: labelled")
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
