"""Recurrent language models: Elman, GRU and LSTM by truncated backpropagation through time.

Each reads the characters of Python's standard library in windows of 32. The gradient ends where a
window begins, but the state flows on: read the held-out text with the state forgotten at every
window, and each model predicts worse. The state a text starts from, h0, is learned.

    python -m gpugrad.examples.rnn_lm [--picture FILE.svg]

>>> main([])
cell   parameters   bits per character   state forgotten every 32
rnn         1...                ...                   ...
gru         3...                ...                   ...
lstm        3...                ...                   ...
the lstm writes: ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import RNNLM, RNNLMConfig
from gpugrad.optim import AdamW
from gpugrad.text import CharTokenizer, ConsecutiveWindows, load_text, split

WINDOW, STREAMS, STEPS = 32, 16, 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one model of each kind, print what they reach and what the last one writes."""
    picture = parse_picture(__doc__, arguments)
    text = load_text(max_chars=200_000)
    tokenizer = CharTokenizer(text)
    train, held_out = split(tokenizer.encode(text), 0.95)
    losses = {}
    print("cell   parameters   bits per character   state forgotten every 32")
    for cell in ("rnn", "gru", "lstm"):
        gg.manual_seed(0)
        model = RNNLM(RNNLMConfig(tokenizer.vocab_size, cell=cell, n_embd=64))
        losses[cell] = fit(model, train)
        size = sum(p.size for p in model.parameters())
        kept, forgotten = (bits(model, held_out, forget=forget) for forget in (False, True))
        print(f"{cell:4}   {size:10}   {kept:18.3f}   {forgotten:24.3f}")
    written = model.generate(tokenizer.encode("def "), 60, temperature=0.7, seed=1)
    print("the lstm writes:", " ".join(tokenizer.decode(written.numpy()).split()))

    if picture is not None:
        figure = new_figure(6.5, 4.5)
        axes = figure.subplots()
        for cell, values in losses.items():
            axes.plot(np.array(values) / math.log(2), label=cell)
        axes.set(xlabel="step", ylabel="bits per character of the batch")
        axes.legend()
        save(figure, picture)


def fit(model: RNNLM, tokens: np.ndarray) -> list[float]:
    """Train by truncated backpropagation through time; return the losses."""
    optimizer = AdamW(model.parameters(), lr=0.02)
    windows, state = ConsecutiveWindows(tokens, WINDOW, STREAMS), None
    losses = []
    for _ in range(STEPS):
        loss, state = model.truncated_loss(*next(windows), state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        losses.append(loss.item())
    return losses


@gg.no_grad()
def bits(model: RNNLM, tokens: np.ndarray, *, forget: bool) -> float:
    """Return bits per character, with the state passed on from window to window or not."""
    windows, state = ConsecutiveWindows(tokens, WINDOW, STREAMS), None
    losses = []
    for _ in range(windows.count):
        loss, state = model.truncated_loss(*next(windows), None if forget else state)
        losses.append(loss.item())
    return float(np.mean(losses)) / math.log(2)


if __name__ == "__main__":
    main(sys.argv[1:])
