"""Searches: what they leave, how they go on after a stop, what they note and what they refuse."""

from __future__ import annotations

import csv
import signal

import pytest

from gpugrad.cli import main
from gpugrad.train import Search, begin, draw, grid
from gpugrad.train import loop as training
from gpugrad.train.folder import RunFolder
from gpugrad.train.loop import DivergedError, Trainer
from gpugrad.train.space import Range

from .conftest import SMALL

TRIALS = grid({"n_layer": [1, 2], "lr": [1e-2, 1e-3]})


@pytest.fixture
def settings(text):
    return {**SMALL, "data": str(text), "min_lr": 1e-3, "sample_tokens": 0}


@pytest.fixture(autouse=True)
def python_handles_sigint():
    """Tests may run in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def weights(found):
    return [
        (RunFolder(t.config.out).checkpoints / "step-00000012/tensors.safetensors").read_bytes()
        for t in found.trials
    ]


def count_updates(monkeypatch, then=lambda count: None):
    """Count the updates of all trainers from now on, calling then after each."""
    original, counted = Trainer.update, []

    def update(self):
        original(self)
        counted.append(self.step)
        then(len(counted))

    monkeypatch.setattr(Trainer, "update", update)
    return counted


def test_a_stopped_search_goes_on_bit_for_bit_and_repeats_nothing(settings, tmp_path, monkeypatch):
    straight = Search(tmp_path / "straight", TRIALS, settings)
    assert straight.run() is None
    with monkeypatch.context() as patch:
        count_updates(patch, lambda n: signal.raise_signal(signal.SIGINT) if n == 17 else None)
        stopped = Search(tmp_path / "stopped", TRIALS, settings)
        assert stopped.run() == signal.SIGINT
    assert [trial.status for trial in stopped.trials] == ["done", "", "", ""]
    with monkeypatch.context() as patch:
        counted = count_updates(patch)
        again = Search(tmp_path / "stopped", TRIALS, settings)
        assert again.run() is None
    assert counted == [*range(6, 13), *range(1, 13), *range(1, 13)]
    assert weights(again) == weights(straight)
    assert [t.loss for t in again.trials] == [t.loss for t in straight.trials]
    with monkeypatch.context() as patch:
        counted = count_updates(patch)
        assert Search(tmp_path / "stopped", TRIALS, settings).run() is None
    assert counted == []


def test_a_killed_trial_is_resumed_from_its_checkpoint(settings, tmp_path, monkeypatch):
    def kill(count):
        if count == 18:  # the sixth step of the second trial; its last checkpoint is the fourth
            raise SystemExit

    with monkeypatch.context() as patch:
        count_updates(patch, kill)
        with pytest.raises(SystemExit):
            Search(tmp_path / "killed", TRIALS[:2], settings).run()
    counted = count_updates(monkeypatch)
    found = Search(tmp_path / "killed", TRIALS[:2], settings)
    assert found.run() is None
    assert counted == list(range(5, 13))
    straight = Search(tmp_path / "straight", TRIALS[:2], settings)
    assert straight.run() is None
    assert weights(found) == weights(straight)


def test_ranking_table_and_files(settings, tmp_path, capsys):
    found = Search(tmp_path / "found", TRIALS, settings)
    seen = []
    assert found.run(lambda trial: seen.append(trial.name)) is None
    assert capsys.readouterr().out == ""
    assert seen == ["trial-001", "trial-002", "trial-003", "trial-004"]
    losses = [trial.loss for trial in found.ranking]
    assert losses == sorted(losses)
    assert found.best is found.ranking[0]
    lines = [line.split() for line in found.table().splitlines()]
    assert [line[0] for line in lines] == ["trial", *(trial.name for trial in found.ranking)]
    assert lines[1][1:4] == ["2", "0.01", f"{found.best.loss:.4f}"]
    with open(found.results, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["dev_loss"]) for row in rows] == losses
    assert [float(row["lr"]) for row in rows] == [t.settings["lr"] for t in found.ranking]
    log = RunFolder(found.best.config.out).log.read_text()
    assert f"best      validation loss {found.best.loss:.4f}" in log


def test_more_trials_continue_a_search(settings, tmp_path, monkeypatch):
    space = {"lr": Range(1e-3, 1e-2, "log")}
    assert Search(tmp_path / "found", draw(space, 2), settings).run() is None
    counted = count_updates(monkeypatch)
    more = Search(tmp_path / "found", draw(space, 3), settings)
    assert more.run() is None
    assert counted == list(range(1, 13))
    assert len(more.ranking) == 3
    with pytest.raises(ValueError, match="holds 3 trials; choose another folder"):
        Search(tmp_path / "found", draw(space, 2), settings)
    with pytest.raises(ValueError, match="holds another search: trial-001 has"):
        Search(tmp_path / "found", draw(space, 3, seed=1), settings)
    with pytest.raises(ValueError, match="holds a search with n_embd = 16, not 32"):
        Search(tmp_path / "found", draw(space, 3), {**settings, "n_embd": 32})
    Search(tmp_path / "found", draw(space, 3), {**settings, "threads": 2})  # the machine's affair


def test_what_fails_is_noted_and_the_search_goes_on(settings, tmp_path, monkeypatch, capsys):
    original = Trainer.update

    def update(self):
        if self.config.lr == 1e-2:
            raise (DivergedError if self.config.n_layer == 1 else MemoryError)("too much")
        original(self)

    monkeypatch.setattr(training.Trainer, "update", update)
    found = Search(tmp_path / "found", TRIALS, settings)
    assert found.run() is None
    statuses = [trial.status for trial in found.trials]
    assert statuses == ["diverged", "done", "out of memory", "done"]
    assert [trial.loss is None for trial in found.ranking] == [False, False, True, True]
    assert found.best.settings["lr"] == 1e-3
    again = Search(tmp_path / "found", TRIALS, settings)
    assert [trial.status for trial in again.trials] == statuses
    flags = ["--grid", "n_layer=1,2", "--grid", "lr=1e-2"]
    rest = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items() if k != "n_layer"]
    assert main(["search", "--out", str(tmp_path / "all"), *flags, *rest]) == 1
    assert "no trial came to an end" in capsys.readouterr().err


def test_a_trial_that_cannot_begin_is_noted_and_may_be_corrected(settings, tmp_path, monkeypatch):
    path, trials = tmp_path / "found", grid({"block_size": [16, 20000, 8]})
    found = Search(path, trials, settings)
    assert found.run() is None
    assert [trial.status.split(":")[0] for trial in found.trials] == ["done", "refused", "done"]
    assert "block_size + 1 = 20001" in found.table()
    assert not (path / "trial-002").exists()
    counted = count_updates(monkeypatch)
    again = Search(path, trials, settings)
    assert len(again.ranking) == 2
    assert again.run() is None
    assert again.trials[1].status == found.trials[1].status
    assert counted == []
    corrected = Search(path, grid({"block_size": [16, 4, 8]}), settings)
    assert corrected.run() is None
    assert counted == list(range(1, 13))
    assert [trial.status for trial in corrected.trials] == ["done"] * 3
    for sizes, message in ([16, 20000, 8], "trial-002 has"), ([16], "holds 3 trials"):
        with pytest.raises(ValueError, match=message):
            Search(path, grid({"block_size": sizes}), settings)
    last = grid({"block_size": [16, 20000]})
    assert Search(tmp_path / "last", last, settings).run() is None
    assert len(Search(tmp_path / "last", last[:1], settings).ranking) == 1


def test_a_damaged_trial_is_an_error(settings, tmp_path):
    found = Search(tmp_path / "found", TRIALS[:1], settings)
    found.path.mkdir()
    with begin(found.trials[0].config):
        pass
    RunFolder(found.trials[0].config.out).tokenizer.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        found.run()


def test_half_of_what_is_held_out_is_for_the_test(settings, tmp_path):
    assert Search(tmp_path / "a", TRIALS, settings).trials[0].config.test_fraction == 0.05
    fraction = {**settings, "train_fraction": 0.8}
    assert Search(tmp_path / "b", TRIALS, fraction).trials[3].config.test_fraction == 0.1
    own = {**settings, "test_fraction": 0.0}
    assert Search(tmp_path / "c", TRIALS, own).trials[0].config.test_fraction == 0.0
    assert not list(tmp_path.glob("?"))  # nothing is written before it runs


def test_what_cannot_be_searched(settings, tmp_path, make_config):
    with pytest.raises(ValueError, match="trials is empty"):
        Search(tmp_path / "found", [], settings)
    with pytest.raises(ValueError, match="out is no setting to search over"):
        Search(tmp_path / "found", [{"out": "a"}, {"out": "b"}], settings)
    with pytest.raises(ValueError, match="standard input can be read once"):
        Search(tmp_path / "found", TRIALS, {**settings, "data": "-"})
    with pytest.raises(ValueError, match="each trial must set lr"):
        Search(tmp_path / "found", [{"lr": 0.1}, {"n_layer": 2}], settings)
    with pytest.raises(ValueError, match="n_embd 16 does not divide into n_head 3"):
        Search(tmp_path / "found", grid({"n_head": [2, 3]}), settings)
    with pytest.warns(RuntimeWarning, match="losses of trials with different tokenizer"):
        Search(tmp_path / "found", grid({"tokenizer": ["char", "byte"]}), settings)
    (tmp_path / "found").mkdir()
    (tmp_path / "found/search.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe a search"):
        Search(tmp_path / "found", TRIALS, settings)
    search = Search(tmp_path / "other", TRIALS, settings)
    search.path.mkdir()
    search._write()
    file = search.path / "search.json"
    good = file.read_bytes()
    for position in range(0, len(good), 7):
        file.write_bytes(bytes([*good[:position], good[position] ^ 1, *good[position + 1 :]]))
        with pytest.raises(ValueError, match=r"search\.json"):
            Search(search.path, TRIALS, settings)
    RunFolder(tmp_path / "run").path.mkdir()
    RunFolder(tmp_path / "run").write_config({})
    with pytest.raises(FileExistsError, match="holds a run"):
        Search(tmp_path / "run", TRIALS, settings)


def test_presets_that_read_the_text_otherwise_do_not_compare(text, tmp_path):
    settings = {"data": str(text), "eval_windows": 10, "max_chars": 0}
    with pytest.warns(RuntimeWarning) as told:
        Search(tmp_path / "found", grid({"preset": ["default", "nanogpt-cpu"]}), settings)
    found = [str(one.message) for one in told]
    assert found == ["losses of trials with different tokenizer do not compare"]
    shared = {**settings, "tokenizer": "byte"}
    Search(tmp_path / "found", grid({"preset": ["default", "nanogpt-cpu"]}), shared)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --grid NAME=VALUE,... or --random"),
        (["--grid", "lr=1", "--random", "lr=1"], "one of the two kinds"),
        (["--grid", "lr=1", "--trials", "3"], "belong to --random"),
        (["--grid", "lr=1", "--grid", "lr=2"], "a setting is given twice"),
        (["--random", "lr=log:1:2", "--trials", "0"], "trials must be at least 1"),
    ],
)
def test_wrong_flags(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["search", *flags]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
