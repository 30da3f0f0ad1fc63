"""Grid search chooses a depth and a learning rate by dev loss, and tests the choice once.

Every combination of two depths and two learning rates trains a small GPT on the multiplication
tables. The one with the lowest loss on the dev part wins; its dev loss is flattered by the choice,
so it is measured once more, on a test part that nothing has looked at before. The same from the
command line: `gpugrad search --grid n_layer=1,2 --grid lr=1e-2,1e-3 --data tables.txt`.

    python -m gpugrad.examples.grid_search [--picture FILE.svg]

>>> main([])
trial      layers  rate   dev loss
trial-001  1       0.01   0.9...
trial-002  1       0.001  1.9...
trial-003  2       0.01   0.9...
trial-004  2       0.001  1...
best: trial-00..., dev loss 0.9..., test loss ...
a second look: the test part was looked at before
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.train import Search, evaluate, grid

LAYERS, RATES = [1, 2], [1e-2, 1e-3]
SETTINGS = {
    "device": "cpu",
    "tokenizer": "char",
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 8,
    "max_steps": 100,
    "schedule": "constant",
    "warmup_steps": 10,
    "eval_interval": 50,
    "eval_windows": 32,
    "sample_tokens": 0,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the four models in a temporary folder and print what came of them."""
    picture = parse_picture(__doc__, arguments)
    with tempfile.TemporaryDirectory() as folder:
        tables = Path(folder, "tables.txt")
        pairs = [(a, b) for a in range(1, 31) for b in range(1, 21)]
        tables.write_text("".join(f"{a} times {b} is {a * b}\n" for a, b in pairs))
        trials = grid({"n_layer": LAYERS, "lr": RATES})
        search = Search(Path(folder, "search"), trials, {**SETTINGS, "data": str(tables)})
        search.run()

        print("trial      layers  rate   dev loss")
        for trial in search.trials:
            layers, rate = trial.settings["n_layer"], trial.settings["lr"]
            print(f"{trial.name}  {layers:<6}  {rate:<5g}  {trial.loss:.4f}")

        best = search.best
        assert best is not None
        test = evaluate(best.config.out, "test", best=True)
        print(f"best: {best.name}, dev loss {best.loss:.4f}, test loss {test.loss:.4f}")
        other = search.ranking[1]
        try:
            evaluate(other.config.out, "test", best=True)
        except ValueError as error:
            print(f"a second look: {str(error).split(',')[0]}")

        if picture is not None:
            figure = new_figure(5.0, 4.0)
            axes = figure.subplots()
            losses = np.array([trial.loss for trial in search.trials], dtype=float)
            losses = losses.reshape(len(LAYERS), len(RATES))
            square = axes.imshow(losses, cmap="Blues")
            for (row, column), loss in np.ndenumerate(losses):
                color = "white" if loss > losses.mean() else "black"
                axes.text(column, row, f"{loss:.3f}", ha="center", va="center", color=color)
            row, column = divmod(search.trials.index(best), len(RATES))
            axes.plot(column, row - 0.25, "*", color="red", markersize=16)
            axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
            axes.set_yticks(range(len(LAYERS)), map(str, LAYERS))
            axes.set(xlabel="learning rate", ylabel="layers", title=f"test loss {test.loss:.3f}")
            figure.colorbar(square, label="dev loss")
            save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
