"""Duck duck goose: a text as the mean of its words, read by a network of any depth.

First a network small enough for paper, two words of two numbers: forward, backward and one step of
gradient descent. Then the same model sorts snippets of 30 words of Python's standard library by the
package they come from; half of the files are held out. Which words occur says much, and depth
adds little.

    python -m gpugrad.examples.bag_of_words [--picture FILE.svg]

>>> main([])
duck duck goose: mean = [0.0, -1.3], logits = [-0.195, 0.117]
p = [0.4226, 0.5774], loss = 0.8613
dloss/dduck = [0.2156, -0.0924], dloss/dgoose = [0.1078, -0.0462]
after one step: loss = 0.8539
<BLANKLINE>
asyncio, email, multiprocessing, unittest, xml: ... snippets to train on, ... held out
hidden layers   right
            0   ... %
            1   ... %
            3   ... %
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.examples._words import encode, vocabulary, words_of
from gpugrad.models import BagOfWords, BagOfWordsConfig
from gpugrad.optim import SGD, Adam
from gpugrad.text import stdlib_files

PACKAGES = ("asyncio", "email", "multiprocessing", "unittest", "xml")
SIZE, LENGTH = 1500, 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the worked numbers, then how many snippets each depth sorts right."""
    picture = parse_picture(__doc__, arguments)
    duck_duck_goose()
    print()
    learned = sort_snippets()

    if picture is not None:
        figure = new_figure(10.0, 4.0)
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for depth, (losses, _) in learned.items():
            left.plot(np.convolve(losses, np.ones(10) / 10, "valid"), label=f"{depth} hidden")
        left.axhline(np.log(len(PACKAGES)), color="gray", linestyle="--", label="chance")
        left.set(xlabel="step", ylabel="loss of the last 10 batches, nats")
        left.legend()
        shares = learned[0][1]
        right.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(shares.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            right.text(
                column, row, f"{shares[row, column]:.0%}", ha="center", va="center", color=color
            )
        right.set_xticks(range(len(PACKAGES)), PACKAGES, rotation=30, ha="right")
        right.set_yticks(range(len(PACKAGES)), PACKAGES)
        right.set(xlabel="taken for", ylabel="package", title="held out, no hidden layer")
        save(figure, picture)


def duck_duck_goose() -> None:
    """Print the forward pass, the gradients of the words, and the loss after a step."""
    model = BagOfWords(
        BagOfWordsConfig(2, 2, n_embd=2, hidden=(2,), head_bias=False, dtype="float64")
    )
    weights = {
        "words.weight": [[0.05, -1.5], [-0.1, -0.9]],  # duck, goose
        "hidden.0.weight": [[0.9, 1.0], [0.7, -0.3]],
        "hidden.0.bias": [0.0, 0.0],
        "head.weight": [[0.0, -0.5], [-0.9, 0.3]],
    }
    model.load_state_dict({name: np.array(value) for name, value in weights.items()})
    text, target = [[0, 0, 1]], [0]
    logits, _ = model(text, target)
    mean, probabilities = model.encode(text), gg.nn.functional.softmax(logits)
    print(f"duck duck goose: mean = {shown(mean)}, logits = {shown(logits)}")
    print(f"p = {shown(probabilities)}, loss = {model.loss(text, target).item():.4f}")
    ((duck, goose),) = gg.grad(model.loss(text, target), [model.words.weight])
    print(f"dloss/dduck = {shown(duck)}, dloss/dgoose = {shown(goose)}")
    model.loss(text, target).backward()
    SGD(model.parameters(), lr=1e-2).step()
    print(f"after one step: loss = {model.loss(text, target).item():.4f}")


def shown(x: gg.Tensor) -> list[float]:
    """Return the numbers with four digits, and no negative zero."""
    return [round(v, 4) + 0.0 for v in x.detach().numpy().ravel().tolist()]


def sort_snippets() -> dict[int, tuple[list[float], np.ndarray]]:
    """Train classifiers of several depths and print the share of held-out snippets sorted right.

    Returns for each depth the losses and the confusion matrix: rows are packages, columns what
    their snippets were taken for, in shares of the row.
    """
    halves: tuple[list, list] = ([], [])  # (the words of snippets, their class) of every file
    for number, path in enumerate(stdlib_files()):
        package = next((p for p in PACKAGES if p in path.parts), None)
        if package is not None:
            words = words_of(path.read_text(encoding="utf-8"))
            whole = words[: len(words) // LENGTH * LENGTH]
            halves[number % 2].append((whole, PACKAGES.index(package)))
    known = vocabulary([word for words, _ in halves[0] for word in words], SIZE)
    (x, y), (x_new, y_new) = (
        (
            encode([word for words, _ in half for word in words], known).reshape(-1, LENGTH),
            np.array([c for words, c in half for _ in range(len(words) // LENGTH)]),
        )
        for half in halves
    )
    print(f"{', '.join(PACKAGES)}: {len(x)} snippets to train on, {len(x_new)} held out")
    print("hidden layers   right")
    learned = {}
    for depth in (0, 1, 3):
        gg.manual_seed(0)
        model = BagOfWords(BagOfWordsConfig(SIZE, len(PACKAGES), n_embd=32, hidden=(32,) * depth))
        optimizer, rng = Adam(model.parameters(), lr=0.005), np.random.default_rng(0)
        losses = []
        for _ in range(200):
            some = rng.integers(0, len(x), 32)
            loss = model.loss(x[some], y[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with gg.no_grad():
            guesses = model.predict(x_new).numpy()
        print(f"{depth:13}   {100 * np.mean(guesses == y_new):.1f} %")
        taken = np.zeros((len(PACKAGES), len(PACKAGES)))
        np.add.at(taken, (y_new, guesses), 1)
        learned[depth] = losses, taken / taken.sum(1, keepdims=True)
    return learned


if __name__ == "__main__":
    main(sys.argv[1:])
