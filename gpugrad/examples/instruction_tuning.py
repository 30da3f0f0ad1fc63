"""Instruction tuning: the loss counts the answers only, and the model learns to obey.

Three instructions about words of three letters: say the head, the last letter, or the whole word
backwards. An example is a question and its answer. Targets in questions and padding are ignored, so
nothing is spent on guessing what will be asked. Some words never occur in training.
Ouyang et al., "Training language models to follow instructions with human feedback" (2022).

    python -m gpugrad.examples.instruction_tuning [--picture FILE.svg]

>>> main([])
Q: back dab
A: bad
the loss counts 4 of 18 targets: 'bad\\n'
step   0  loss 2...  new words answered right   0%
step  50  loss ...
step 100  loss ...
step 150  loss ...
step 200  loss 0...
step 250  loss 0...
step 300  loss 0...  new words answered right ...%
head bed -> b
last dac -> c
back dab -> bad
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np

import gpugrad as gg
from gpugrad import optim
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import CharTokenizer, ChatTemplate

LETTERS = "abcde"
TASKS: dict[str, Callable[[str], str]] = {
    "head": lambda word: word[0],
    "last": lambda word: word[-1],
    "back": lambda word: word[::-1],
}
TEMPLATE = ChatTemplate(user="Q: ", assistant="A: ", end="\n")
TOKENIZER = CharTokenizer("QA: \n" + LETTERS + "".join(TASKS))
BLOCK, BATCH, STEPS = 18, 24, 300


def conversation(task: str, word: str) -> list[tuple[str, str]]:
    """Return a question and its right answer."""
    return [("user", f"{task} {word}"), ("assistant", TASKS[task](word))]


def answers(model: GPT, tasks: list[tuple[str, str]]) -> list[str]:
    """Return what the model answers, up to the end of its turn."""
    questions = [TEMPLATE.prompt(conversation(*task)[:1]) for task in tasks]
    prompts = np.stack([TOKENIZER.encode(question) for question in questions])  # equally long
    given = model.generate(prompts, 4, greedy=True).numpy()[:, prompts.shape[1] :]
    return [TOKENIZER.decode(ids).split("\n")[0] for ids in given]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on most words and watch the answers about the others."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(0)
    rng = np.random.default_rng(0)
    words = rng.permutation(["".join(w) for w in itertools.product(LETTERS, repeat=3)]).tolist()
    known, new = words[:-20], words[-20:]
    seen = [(task, word) for task in TASKS for word in known]
    unseen = [(task, word) for task, word in zip(itertools.cycle(TASKS), new)]
    x, y = TEMPLATE.batch(TOKENIZER, [conversation(*task) for task in seen], BLOCK)

    example = conversation("back", "dab")
    print(TEMPLATE.text(example), end="")
    _, targets = TEMPLATE.batch(TOKENIZER, [example], BLOCK)
    counted = targets[targets != -100]
    total = len(TOKENIZER.encode(TEMPLATE.text(example))) - 1
    print(f"the loss counts {len(counted)} of {total} targets: {TOKENIZER.decode(counted)!r}")

    model = GPT(
        GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=BLOCK, n_layer=1, n_head=4, n_embd=64)
    )
    optimizer = optim.AdamW(optim.decay_groups(model), lr=5e-3, betas=(0.9, 0.95))
    scheduler = optim.LRScheduler(optimizer, optim.schedule.cosine(5e-3, STEPS))
    for step in range(STEPS + 1):
        rows = rng.integers(len(x), size=BATCH)
        loss = model.loss(x[rows], y[rows])
        if step % 50 == 0:
            given = answers(model, unseen)
            wanted = [TASKS[task](word) for task, word in unseen]
            right = np.mean([a == b for a, b in zip(given, wanted, strict=True)])
            print(f"step {step:3}  loss {float(loss):.3f}  new words answered right {right:4.0%}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        scheduler.step()
    for (task, word), answer in zip(unseen[:3], answers(model, unseen[:3]), strict=True):
        print(f"{task} {word} -> {answer}")

    if picture is not None:
        text = TEMPLATE.text(example)
        ids = TOKENIZER.encode(text)
        with gg.no_grad():
            scores = gg.nn.functional.log_softmax(model(ids[None, :-1])[0][0]).numpy()
        surprise = -scores[np.arange(len(scores)), ids[1:]]
        counts = targets[0, : len(surprise)] != -100
        figure = new_figure(9.0, 4.0)
        axes = figure.subplots()
        places = np.arange(1, len(ids))
        axes.bar(places[~counts], surprise[~counts], color="lightgray", label="ignored")
        axes.bar(places[counts], surprise[counts], color="C0")
        start, end = places[counts][[0, -1]] + [-0.5, 0.5]
        axes.axvspan(start, end, color="C0", alpha=0.2, label="counted in the loss")
        axes.set_xticks(range(len(ids)), [repr(c)[1:-1].replace(" ", "␣") for c in text])
        axes.set(xlabel="the conversation", ylabel="-log p of the character, nats")
        axes.legend()
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
