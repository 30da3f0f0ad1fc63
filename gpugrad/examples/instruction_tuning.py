"""Instruction tuning: the loss counts the answers only, and the model learns to obey.

Three instructions about words of three letters: say the first letter, the last, or the word
backwards. An example is a question and its answer. Targets in questions and padding are ignored, so
nothing is spent on guessing what will be asked. Some words never occur in training.
Ouyang et al., "Training language models to follow instructions with human feedback" (2022).

    python -m gpugrad.examples.instruction_tuning

>>> main([])
Q: back dab
A: bad
the loss counts 4 of 18 targets: 'bad\\n'
step   0  loss 2...  new words answered right   0%
step 100  loss ...
step 200  loss ...
step 300  loss 0...  new words answered right ...%
first bed -> b
last dac -> c
back dab -> ...
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np

import gpugrad as gg
from gpugrad import optim
from gpugrad.examples._command import command
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import CharTokenizer, ChatTemplate

LETTERS = "abcde"
TASKS: dict[str, Callable[[str], str]] = {
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "back": lambda word: word[::-1],
}
TEMPLATE = ChatTemplate(user="Q: ", assistant="A: ", end="\n")
TOKENIZER = CharTokenizer("QA: \n" + LETTERS + "".join(TASKS))
BLOCK, BATCH, STEPS = 19, 24, 300


def conversation(task: str, word: str) -> list[tuple[str, str]]:
    """Return a question and its right answer."""
    return [("user", f"{task} {word}"), ("assistant", TASKS[task](word))]


def answers(model: GPT, tasks: list[tuple[str, str]]) -> list[str]:
    """Return what the model answers, up to the end of its turn."""
    prompts = [TEMPLATE.prompt(conversation(*task)[:1]) for task in tasks]
    texts = []
    for prompt in prompts:
        ids = TOKENIZER.encode(prompt)
        out = model.generate(ids, 4, greedy=True)
        texts.append(TOKENIZER.decode(np.asarray(out).ravel()[len(ids) :]).split("\n")[0])
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on most words and watch the answers about the others."""
    command(__doc__).parse_args(arguments)
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
        GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=BLOCK, n_layer=2, n_head=2, n_embd=32)
    )
    optimizer = optim.AdamW(optim.decay_groups(model), lr=1e-2)
    for step in range(STEPS + 1):
        rows = rng.integers(len(x), size=BATCH)
        loss = model.loss(x[rows], y[rows])
        if step % 100 == 0:
            given = answers(model, unseen)
            wanted = [TASKS[task](word) for task, word in unseen]
            right = np.mean([a == b for a, b in zip(given, wanted, strict=True)])
            print(f"step {step:3}  loss {float(loss):.3f}  new words answered right {right:4.0%}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
    for (task, word), answer in zip(unseen[:3], answers(model, unseen[:3]), strict=True):
        print(f"{task} {word} -> {answer}")


if __name__ == "__main__":
    main(sys.argv[1:])
