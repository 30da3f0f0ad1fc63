"""Recurrent language models: Elman, GRU and LSTM by truncated backpropagation through time.

Each reads the characters of Python's standard library in windows of 32. The gradient ends where a
window begins, but the state flows on: read the held-out text with the state forgotten at every
window, and each model predicts worse. The state a text starts from, h0, is learned.

    python -m gpugrad.examples.rnn_lm

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
from gpugrad.examples._command import command
from gpugrad.models import RNNLM, RNNLMConfig
from gpugrad.optim import AdamW
from gpugrad.text import CharTokenizer, ConsecutiveWindows, load_text, split

WINDOW, STREAMS, STEPS = 32, 16, 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one model of each kind, print what they reach and what the last one writes."""
    command(__doc__).parse_args(arguments)
    text = load_text(max_chars=200_000)
    tokenizer = CharTokenizer(text)
    train, held_out = split(tokenizer.encode(text), 0.95)
    print("cell   parameters   bits per character   state forgotten every 32")
    for cell in ("rnn", "gru", "lstm"):
        gg.manual_seed(0)
        model = RNNLM(RNNLMConfig(tokenizer.vocab_size, cell=cell, n_embd=64))
        fit(model, train)
        size = sum(p.size for p in model.parameters())
        kept, forgotten = (bits(model, held_out, forget=forget) for forget in (False, True))
        print(f"{cell:4}   {size:10}   {kept:18.3f}   {forgotten:24.3f}")
    written = model.generate(tokenizer.encode("def "), 60, temperature=0.7, seed=1)
    print("the lstm writes:", " ".join(tokenizer.decode(written.numpy()).split()))


def fit(model: RNNLM, tokens: np.ndarray) -> None:
    """Train by truncated backpropagation through time."""
    optimizer = AdamW(model.parameters(), lr=0.01)
    windows, state = ConsecutiveWindows(tokens, WINDOW, STREAMS), None
    for _ in range(STEPS):
        loss, state = model.truncated_loss(*next(windows), state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)


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
