"""The loss of a trained model on the whole dev part, or once on the test part.

Whoever chooses by a loss makes it too low for the chosen: the dev loss of the best of many trials
says less about new text the more trials there were. So a part of the text is left for one look at
the end, and a second look is refused.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..engine import no_grad
from ..models import GPT
from ..nn.module import evaluating
from ..text import atomic_write, fixed_windows
from ..text.files import parse_json, read_small
from .data import Ids, open_data
from .folder import RunFolder
from .sampling import load_run
from .seal import is_intact, sealed

SPLITS = ("dev", "test")


class Evaluation(NamedTuple):
    """A mean loss in nats per token over ``tokens`` targets, of the model after ``step`` updates.

    ``fresh`` is False for a test that was done before and is only told again.
    """

    split: str
    step: int
    loss: float
    tokens: int
    fresh: bool = True


def evaluate(
    path: str | os.PathLike[str],
    split: str = "dev",
    device: str = "auto",
    best: bool = False,
    again: bool = False,
) -> Evaluation:
    """Return the loss of a run's newest or best checkpoint on all of its dev or test part.

    A test is noted in the run's test.json. Asked for the same checkpoint it is told again; asked
    for another, of this run or of another trial of the same search, it is refused unless ``again``.
    Raises ValueError for that, for an unknown split, and where the run has no test part.
    """
    if split not in SPLITS:
        raise ValueError(f"evaluate: split must be dev or test, got {split!r}")
    run = load_run(path, device, best)
    folder, step = RunFolder(path), run.step
    data = open_data(run.config, folder)
    if split == "dev":
        return Evaluation(split, step, *_loss(run.model, data.val, run.config.batch_size))
    if not len(data.test):
        raise ValueError(
            f"{path} has no test part: all of its text was trained on or chosen by; train with "
            "--test-fraction"
        )
    known = _read(folder)
    if known is not None and known.step == step and not again:
        return known._replace(fresh=False)
    looked = [other for other in _same_search(folder) if other.test.exists()]
    if looked and not again:
        raise ValueError(
            f"the test part was looked at before, for {looked[0].path}; chosen by a second look, "
            "a test loss is no better than a dev loss. --again does it all the same"
        )
    found = Evaluation(split, step, *_loss(run.model, data.test, run.config.batch_size))
    with atomic_write(folder.test) as file:
        file.write(sealed({"step": step, "loss": found.loss, "tokens": found.tokens}))
    return found


def _loss(model: GPT, ids: Ids, batch: int) -> tuple[float, int]:
    """Return the mean loss over windows side by side, and the number of targets in them."""
    length = model.block_size
    x, y = fixed_windows(ids, length, (len(ids) - 1) // length)
    total = 0.0
    with no_grad(), evaluating():
        for start in range(0, len(x), batch):
            rows = slice(start, start + batch)
            total += float(model.loss(x[rows], y[rows])) * len(x[rows])
    return total / len(x), y.size


def _read(folder: RunFolder) -> Evaluation | None:
    if not folder.test.exists():
        return None
    try:
        data = read_small(folder.test)
        match found := parse_json(data):
            case {"step": int(step), "loss": float(loss), "tokens": int(tokens)}:
                if not is_intact(found, data):
                    raise ValueError("it was altered: its SHA-256 is another")
                return Evaluation("test", step, loss, tokens)
        raise ValueError("step, loss or tokens is missing or no number")
    except ValueError as error:
        raise ValueError(f"{folder.test} does not describe a test: {error!r}") from error


def _same_search(folder: RunFolder) -> list[RunFolder]:
    """Return the run and, if it is a trial, the other trials of its search, in order."""
    parent = folder.path.resolve().parent
    if not (parent / "search.json").exists():
        return [folder]
    return [RunFolder(path) for path in sorted(parent.iterdir()) if path.is_dir()]
