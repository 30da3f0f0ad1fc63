"""Which language model predicts Python source best, given equally many numbers and equal time.

    python benchmarks/language_models.py [--seconds S] [--parameters P] [--out FILE]

Characters of the standard library's source: the last tenth is held out, and bits per character are
measured on the same part of it for all models. Each has at most P parameters: for a model that
counts, the sequences it keeps a count of; the 5-gram then counts as much of the text, from its
beginning, as fits, and a row of its own shows what it reaches with all of it. Each trained model
has S seconds of CPU time on one thread, all with AdamW, a warm-up, and a learning rate that falls
to zero as the time runs out; learning rate, batch and window were chosen for each (see MODELS).
Recurrent models are trained by truncated backpropagation through time and read the held-out text in
streams with their state; the transformer and the window model see it in overlapping windows, so
that a token has at least half a window before it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is loaded
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("GPUGRAD_NUM_THREADS", "1")

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np

import gpugrad as gg
from gpugrad.models import (
    GPT,
    RNNLM,
    GPTConfig,
    NGram,
    NGramConfig,
    RNNLMConfig,
    WindowLM,
    WindowLMConfig,
)
from gpugrad.optim import AdamW, decay_groups
from gpugrad.text import CharTokenizer, ConsecutiveWindows, RandomWindows, load_text, split

RARE = 100  # a character that the training part holds less often becomes UNKNOWN
UNKNOWN = "\ufffd"
STREAMS, CHUNK = 16, 32  # how the held-out text is read
SEED = 1


@dataclass(frozen=True)
class Trained:
    """A trained model: how it is built from the vocabulary and a width, and how it is trained.

    widths: those that are tried, of which the largest that keeps to the budget is taken.
    """

    build: Callable[[int, int], Any]
    widths: range
    lr: float
    batch: int
    block: int
    weight_decay: float = 0.01


def _recurrent(cell: Any) -> Callable[[int, int], RNNLM]:
    return lambda v, width: RNNLM(RNNLMConfig(v, cell=cell, n_embd=width))


def _transformer(v: int, width: int) -> GPT:
    """Return a GPT of Llama's parts; initial weights are larger than GPT-2's as it is narrower.

    GPT-2's standard deviation of 0.02 goes with a width of 768; with 0.02 for all widths the
    smallest models begin so close to zero that much of a short training passes before they move.
    """
    config = GPTConfig(
        vocab_size=v,
        block_size=64,
        n_layer=2,
        n_head=4,
        n_embd=width,
        bias=False,
        positions="rotary",
        activation="swiglu",
        mlp_ratio=2.5,
        norm="rms",
    )
    model = GPT(config)
    with gg.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= math.sqrt(768 / width)
    return model


MODELS: dict[str, Trained] = {
    "window": Trained(
        lambda v, width: WindowLM(WindowLMConfig(v, window=10, n_embd=24, n_hidden=width)),
        range(8, 2048, 4),
        lr=1e-2,
        batch=16,
        block=64,
    ),
    "rnn": Trained(_recurrent("rnn"), range(8, 2048, 4), lr=4e-3, batch=16, block=32),
    "gru": Trained(_recurrent("gru"), range(8, 2048, 4), lr=1e-2, batch=16, block=32),
    "lstm": Trained(_recurrent("lstm"), range(8, 2048, 4), lr=1e-2, batch=16, block=32),
    "transformer": Trained(
        _transformer,
        range(8, 2048, 8),
        lr=5e-3,
        batch=8,
        block=64,
        weight_decay=0.1,
    ),
}


@dataclass(frozen=True)
class Text:
    """Ids to train on and to measure on, and how many different ones there are."""

    vocab_size: int
    train: np.ndarray
    held_out: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)


def read(source: str, max_chars: int | None, held_out: int) -> Text:
    """Return the corpus as characters; ``held_out`` of the last tenth are measured on."""
    train, rest = (
        "".join(part) for part in split(np.array(list(load_text(source, max_chars))), 0.9)
    )
    often = "".join(c for c, n in Counter(train).items() if n >= RARE)
    tokenizer = CharTokenizer(often + UNKNOWN)
    unit = STREAMS * CHUNK
    count = min(held_out, len(rest) - 1) // unit * unit + 1
    if count < unit:
        raise SystemExit(f"language_models: {len(rest):,} held-out characters are too few")
    return Text(
        tokenizer.vocab_size,
        tokenizer.encode(train, UNKNOWN),
        tokenizer.encode(rest[:count], UNKNOWN),
        {"train_characters": len(train), "held_out_characters": count - 1},
    )


# Counting


def counted(text: Text, order: int, budget: int | None) -> dict[str, Any]:
    """Return the row of an n-gram model, the better of two smoothings, within a budget of counts.

    Of a text that has more different sequences the longest beginning that fits is counted.
    """
    start = time.process_time()
    config = NGramConfig(text.vocab_size, order)

    def fitted(size: int) -> tuple[NGram, int]:
        model = NGram(config).fit(text.train[:size])
        return model, sum(len(level.codes) for level in model.counts.levels)

    size = len(text.train)
    model, numbers = fitted(size)
    if budget is not None and numbers > budget:
        low, high = order, size
        while high - low > 1000:
            middle = (low + high) // 2
            low, high = (middle, high) if fitted(middle)[1] <= budget else (low, middle)
        size = low
        model, numbers = fitted(size)
    losses = {
        smoothing: model.smoothed(smoothing).loss(text.held_out)
        for smoothing in ("kneser-ney", "witten-bell")
    }
    best = min(losses, key=lambda smoothing: losses[smoothing])
    return {
        "shape": best,
        "parameters": numbers,
        "seconds": time.process_time() - start,
        "characters_seen": size,
        "bits_per_character": losses[best] / math.log(2),
    }


# Training


def within(spec: Trained, vocab_size: int, budget: int) -> Any:
    """Return the widest model with at most ``budget`` parameters."""
    widest = None
    for width in spec.widths:
        gg.manual_seed(SEED)
        model = spec.build(vocab_size, width)
        if _size(model) > budget:
            break
        widest = model
    if widest is None:
        raise SystemExit(f"language_models: no {type(model).__name__} has only {budget} parameters")
    return widest


def _size(model: Any) -> int:
    return sum(parameter.size for parameter in model.parameters())


def losses_of(model: Any, spec: Trained, tokens: np.ndarray) -> Iterator[gg.Tensor]:
    """Yield the losses of a training run's batches, endlessly."""
    if isinstance(model, RNNLM):
        windows, state = ConsecutiveWindows(tokens, spec.block, spec.batch), None
        while True:
            state = None if windows.at_start else state
            loss, state = model.truncated_loss(*next(windows), state)
            yield loss
    for x, y in RandomWindows(tokens, spec.block, spec.batch, SEED):
        yield model.loss(x, y)


def rate(progress: float, peak: float) -> float:
    """Return the learning rate when this share of the time is over: up, then down on a cosine."""
    warm = 0.05
    if progress < warm:
        return peak * (progress + 0.002) / (warm + 0.002)
    return peak * (1 + math.cos(math.pi * (min(progress, 1) - warm) / (1 - warm))) / 2


def train(model: Any, spec: Trained, tokens: np.ndarray, seconds: float) -> int:
    """Train for so many seconds of CPU time and return the number of steps."""
    optimizer = AdamW(
        decay_groups(model, spec.weight_decay), lr=spec.lr, betas=(0.9, 0.99), eps=1e-8
    )
    steps, start = 0, time.process_time()
    losses = losses_of(model, spec, tokens)
    while (progress := (time.process_time() - start) / seconds) < 1:
        loss = next(losses)
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, spec.lr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        steps += 1
    return steps


# Measuring


@gg.no_grad()
def bits(model: Any, block: int, tokens: np.ndarray) -> float:
    """Return bits per character on all tokens but the first, each predicted once."""
    model.eval()
    found = (
        _in_streams(model, tokens) if isinstance(model, RNNLM) else _sliding(model, block, tokens)
    )
    losses = np.concatenate([part.reshape(-1) for part in found])
    if len(losses) != len(tokens) - 1:
        raise RuntimeError(f"measured {len(losses)} of {len(tokens) - 1} tokens")
    return float(losses.mean(dtype=np.float64)) / math.log(2)


def _in_streams(model: RNNLM, tokens: np.ndarray) -> Iterator[np.ndarray]:
    windows, state = ConsecutiveWindows(tokens, CHUNK, STREAMS), None
    for _ in range(windows.count):
        losses, state = model.truncated_loss(*next(windows), state, reduction="none")
        yield losses.numpy()


def _sliding(model: Any, block: int, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the losses of CHUNK tokens of each window, behind ``block - CHUNK`` others of it."""
    firsts = np.arange(0, len(tokens) - 1, CHUNK)
    starts = np.maximum(firsts - (block - CHUNK), 0)
    index = np.arange(block)
    counted_from = (firsts - starts)[:, None] + np.arange(CHUNK)
    for k in range(0, len(starts), STREAMS):
        part = starts[k : k + STREAMS, None] + index
        losses = model.loss(tokens[part], tokens[part + 1], reduction="none").numpy()
        yield np.take_along_axis(losses, counted_from[k : k + STREAMS], axis=1)


def trained(name: str, text: Text, budget: int, seconds: float) -> dict[str, Any]:
    """Return the row of a trained model."""
    spec = MODELS[name]
    model = within(spec, text.vocab_size, budget)
    start = time.process_time()
    steps = train(model, spec, text.train, seconds)
    elapsed = time.process_time() - start
    block = max(spec.block, 2 * CHUNK) if isinstance(model, WindowLM) else spec.block
    return {
        "shape": _shape(model),
        "parameters": _size(model),
        "seconds": elapsed,
        "steps": steps,
        "characters_seen": steps * spec.batch * spec.block,
        "bits_per_character": bits(model, block, text.held_out),
    }


def _shape(model: Any) -> str:
    config = model.config
    if isinstance(model, WindowLM):
        return f"{config.window} x {config.n_embd}, {config.n_hidden} hidden"
    if isinstance(model, RNNLM):
        return f"{config.n_layer} x {config.hidden_size}, tied"
    return f"{config.n_layer} x {config.n_embd}, {config.n_head} heads, {config.block_size} back"


def measure(text: Text, budget: int, seconds: float, only: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows in order, and print each when it is there."""
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "unigram": lambda: counted(text, 1, budget),
        "bigram": lambda: counted(text, 2, budget),
        "5-gram": lambda: counted(text, 5, budget),
        "5-gram, all text": lambda: counted(text, 5, None),
    }
    for name in MODELS:
        runs[name] = lambda name=name: trained(name, text, budget, seconds)
    rows = []
    for name, run in runs.items():
        if not only or name in only:
            rows.append({"model": name, **run()})
            print(f"{name}: {rows[-1]['bits_per_character']:.4f} bits per character", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=100, help="of CPU time to train, per model"
    )
    parser.add_argument("--parameters", type=int, default=200_000)
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--max-chars", type=int, default=None)
    parser.add_argument("--held-out", type=int, default=200_000, help="characters measured on")
    parser.add_argument("--only", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "language_models.json")
    options = parser.parse_args(arguments)
    text = read(options.data, options.max_chars, options.held_out)
    provenance = harness.provenance()  # with the load before the run
    rows = measure(text, options.parameters, options.seconds, options.only)
    settings = {
        "seconds": options.seconds,
        "parameters": options.parameters,
        "data": options.data,
        "vocab_size": text.vocab_size,
        **text.about,
        "training": {
            name: {"lr": s.lr, "batch": s.batch, "block": s.block, "weight_decay": s.weight_decay}
            for name, s in MODELS.items()
        },
    }
    record = harness.record("language_models", rows, **settings)
    record["provenance"] = provenance
    harness.write_json(record, options.out)
    print(f"written to {options.out}")
    print(harness.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
