"""Direct preference optimisation: from pairs of answers, a model learns to prefer the polite one.

A small GPT has learned to answer a question with "please" and with "gimme" equally often. Then for
each question a pair says which answer is better. DPO raises the log-probability of the chosen one
against that of the rejected one, each measured from a frozen copy of the model: no reward model, no
sampling. The engine's gradient is the textbook's, -beta s(-beta d) times the gradient of log p of
the chosen answer less that of the rejected one. Rafailov et al. (NeurIPS 2023).

    python -m gpugrad.examples.dpo [--picture FILE.svg]

>>> main([])
step  loss    margin in nats   polite
   0  0.6931             0.0      50%
gradient: engine and textbook differ by less than 1e-12
  10  0.4...             1.2      76%
  20  0.2...             2...     9...%
  30  0.1...             ...      9...%
  40  0.0...             ...      ...%
a question without a pair: polite 50% before, ...% after
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad import optim
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import functional as F
from gpugrad.text import CharTokenizer, ChatTemplate

BETA, STEPS, BLOCK = 0.5, 40, 16
TEMPLATE = ChatTemplate(user="", assistant="", end=".")
TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz?.")
QUESTIONS = ["tea?", "milk?", "cake?", "bread?", "soup?", "rice?", "salt?", "honey?"]
POLITE, RUDE = "please", "gimme"


def rows(questions: list[str], answer: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of every question with this answer; only the answer counts."""
    turns = [[("user", question), ("assistant", answer)] for question in questions]
    return TEMPLATE.batch(TOKENIZER, turns, BLOCK)


def log_probabilities(model: GPT, questions: list[str]) -> tuple[gg.Tensor, gg.Tensor]:
    """Return log p(polite | question) and log p(rude | question) for each question, in nats."""
    polite, rude = (model.loss(*rows(questions, a), reduction="none") for a in (POLITE, RUDE))
    return -polite.sum(axis=-1), -rude.sum(axis=-1)


def politeness(model: GPT, questions: list[str]) -> float:
    """Return how much of the probability of both answers the polite one has, on average."""
    with gg.no_grad():
        polite, rude = log_probabilities(model, questions)
        return float(gg.sigmoid(polite - rude).mean())


def pretrain(model: GPT) -> None:
    """Teach both answers to every question, equally often."""
    pairs = [rows(QUESTIONS, answer) for answer in (POLITE, RUDE)]
    x, y = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step(max_norm=1.0)


def textbook_difference(
    model: GPT, reference: tuple[gg.Tensor, gg.Tensor], questions: list[str]
) -> float:
    """Return the largest difference between the engine's gradient and equation 7 of the paper."""
    weight = model.tokens.weight
    policy = log_probabilities(model, questions)
    loss = F.dpo_loss(*policy, *reference, beta=BETA, reduction="sum")
    (engine,) = gg.grad(loss, [weight])
    textbook = np.zeros(weight.shape)
    for i, question in enumerate(questions):
        one = log_probabilities(model, [question])
        (chosen,), (rejected,) = (gg.grad(value[0], [weight]) for value in one)
        margin = float(one[0] - reference[0][i]) - float(one[1] - reference[1][i])
        weight_of_pair = BETA / (1 + np.exp(BETA * margin))
        textbook -= weight_of_pair * (chosen.numpy() - rejected.numpy())
    return float(np.abs(engine.numpy() - textbook).max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Pre-train, optimise by preferences, and draw how the answers part."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size=TOKENIZER.vocab_size,
            block_size=BLOCK,
            n_layer=1,
            n_head=2,
            n_embd=32,
            dtype="float64",
        )
    )
    pretrain(model)
    paired, left_out = QUESTIONS[:-1], QUESTIONS[-1:]
    before = politeness(model, left_out)
    with gg.no_grad():
        reference = log_probabilities(model, paired)

    optimizer = optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    changes = []
    for step in range(STEPS + 1):
        if step == 5:  # at step 0 every weight is beta / 2
            apart = textbook_difference(model, reference, paired)
            word = "less" if apart < 1e-12 else "more"
            print(f"gradient: engine and textbook differ by {word} than 1e-12")
        policy = log_probabilities(model, paired)
        loss = F.dpo_loss(*policy, *reference, beta=BETA)
        changes.append([float((p - r).mean()) for p, r in zip(policy, reference, strict=True)])
        if step == 0:
            print("step  loss    margin in nats   polite")
        if step % 10 == 0:
            margin = changes[-1][0] - changes[-1][1]
            polite = politeness(model, paired)
            print(f"{step:4}  {float(loss):.4f} {margin:15.1f}   {polite:6.0%}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = politeness(model, left_out)
    print(f"a question without a pair: polite {before:.0%} before, {after:.0%} after")

    if picture is not None:
        figure = new_figure()
        axes = figure.subplots()
        for name, values in zip((POLITE, RUDE), zip(*changes, strict=True), strict=True):
            axes.plot(values, label=f"log p of {name!r}")
        axes.set_xlabel("step")
        axes.set_ylabel("change against the reference (nats)")
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
