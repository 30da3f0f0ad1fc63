"""Whole runs in a folder: what they leave, how they go on, what they refuse."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gpugrad.train import begin, checkpoint, go_on, load_model, session
from gpugrad.train.folder import RunFolder
from gpugrad.train.loop import DivergedError, Trainer
from gpugrad.train.metrics import read_metrics
from gpugrad.train.sampling import load_run


def train(config, **options):
    with begin(config, **options) as run:
        return run.train()


def resume(config, **changes):
    with go_on(config.out, changes) as run:
        return run.train()


def interrupt_after(monkeypatch, step):
    """Send SIGINT to this process once the step is done."""
    original = Trainer.update

    def update(self):
        original(self)
        if self.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", update)


@pytest.fixture(autouse=True)
def python_handles_sigint():
    """Tests may run in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def timeless(path):
    return [
        {key: value for key, value in record.items() if key != "tokens_per_second"}
        for record in read_metrics(path)
    ]


def tensors(config, step):
    folder = RunFolder(config.out).checkpoints / f"step-{step:08d}"
    return (folder / checkpoint.TENSORS).read_bytes()


def test_a_run_leaves_what_it_promises(make_config, capsys):
    config = make_config()
    assert train(config) is None
    folder = RunFolder(config.out)
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "curve.svg",
        "metrics.jsonl",
        "sample.txt",
        "tokenizer.json",
        "tokens.bin",
    ]
    records = read_metrics(folder.metrics)
    by_kind = {
        kind: [r["step"] for r in records if r["kind"] == kind] for kind in ("train", "validation")
    }
    assert records[0]["kind"] == "baseline"
    assert by_kind == {"train": [3, 6, 9, 12], "validation": [0, 4, 8, 12]}
    assert checkpoint.steps(folder.checkpoints) == [8, 12]
    assert folder.read_config() == config.to_dict()
    assert ET.parse(folder.curve).getroot().findall("{*}polyline")
    text = folder.sample.read_text()
    out = capsys.readouterr().out
    for part in (text, "bigram", "unigram", "validation loss", "all 12 steps are done", config.out):
        assert part in out


def test_equal_settings_give_equal_files(make_config, tmp_path):
    first, second = make_config(), make_config(out=str(tmp_path / "again"))
    train(first)
    train(second)
    assert tensors(first, 12) == tensors(second, 12)
    assert timeless(RunFolder(first.out).metrics) == timeless(RunFolder(second.out).metrics)
    assert RunFolder(first.out).sample.read_text() == RunFolder(second.out).sample.read_text()


@pytest.mark.parametrize("step", [2, 4, 6, 9], ids=["early", "evaluated", "reported", "late"])
def test_an_interrupted_run_ends_like_one_that_was_not(
    make_config, tmp_path, monkeypatch, capsys, step
):
    straight, config = make_config(out=str(tmp_path / "straight")), make_config(dropout=0.0)
    train(straight)
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        assert train(config) is signal.SIGINT
    out = capsys.readouterr().out
    assert f"Stopped by SIGINT after step {step}; saved" in out
    assert f"gpugrad train --resume --out {config.out}" in out
    assert checkpoint.steps(RunFolder(config.out).checkpoints)[-1] == step
    assert resume(config) is None
    assert f"from step {step}" in capsys.readouterr().out
    assert tensors(config, 12) == tensors(straight, 12)
    assert timeless(RunFolder(config.out).metrics) == timeless(RunFolder(straight.out).metrics)
    assert RunFolder(config.out).sample.read_text() == RunFolder(straight.out).sample.read_text()


@pytest.mark.parametrize("step", [8, 12])
def test_an_interrupted_evaluation_is_done_again(make_config, tmp_path, monkeypatch, step):
    straight, config = make_config(out=str(tmp_path / "straight")), make_config()
    train(straight)
    original = Trainer.evaluate

    def evaluate(self):
        if self.step == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate)
        assert train(config) is signal.SIGTERM
    assert checkpoint.steps(RunFolder(config.out).checkpoints)[-1] == step
    resume(config)
    ended, expected = (RunFolder(c.out).latest().state for c in (config, straight))
    assert (ended["evaluated"], ended["patience"]) == (12, expected["patience"])
    assert timeless(RunFolder(config.out).metrics) == timeless(RunFolder(straight.out).metrics)


def test_a_killed_run_goes_on_from_its_last_checkpoint(make_config, tmp_path, monkeypatch):
    straight, config = make_config(out=str(tmp_path / "straight")), make_config()
    train(straight)
    original = Trainer.update

    def update(self):
        if self.step == 7:
            raise MemoryError
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(MemoryError):
            train(config)
    resume(config)
    assert tensors(config, 12) == tensors(straight, 12)
    assert timeless(RunFolder(config.out).metrics) == timeless(RunFolder(straight.out).metrics)


def test_a_run_killed_before_its_first_checkpoint_starts_again(make_config, monkeypatch):
    config = make_config()

    def evaluate(self):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate)
        with pytest.raises(MemoryError):
            train(config)
    assert resume(config) is None


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(make_config, tmp_path):
    straight, config = make_config(out=str(tmp_path / "straight")), make_config()
    train(straight)
    train(config)
    newest = RunFolder(config.out).checkpoints / "step-00000012" / checkpoint.TENSORS
    os.truncate(newest, newest.stat().st_size // 2)
    with pytest.warns(RuntimeWarning, match="step-00000012 is damaged.*using step 8 instead"):
        resume(config)
    assert tensors(config, 12) == tensors(straight, 12)
    assert timeless(RunFolder(config.out).metrics) == timeless(RunFolder(straight.out).metrics)


def test_resuming_needs_no_corpus_any_more_and_the_folder_may_move(make_config, text, tmp_path):
    config = make_config()
    train(config)
    text.unlink()
    moved = tmp_path / "moved"
    os.rename(config.out, moved)
    with go_on(str(moved), {"max_steps": 16}) as run:
        run.train()
    assert run.config.out == str(moved)
    assert checkpoint.steps(moved / "checkpoints")[-1] == 16
    assert json.loads((moved / "config.json").read_text())["config"]["max_steps"] == 16


def test_a_finished_run_says_so_again(make_config, capsys):
    config = make_config()
    train(config)
    before = timeless(RunFolder(config.out).metrics)
    capsys.readouterr()
    resume(config)
    assert "all 12 steps are done" in capsys.readouterr().out
    assert timeless(RunFolder(config.out).metrics) == before


def test_what_cannot_change_is_refused_and_the_run_stays(make_config):
    config = make_config()
    train(config)
    before = RunFolder(config.out).config.read_bytes()
    with pytest.raises(ValueError, match="n_layer is 1 in this run and cannot become 2"):
        resume(config, n_layer=2)
    assert RunFolder(config.out).config.read_bytes() == before


def test_no_line_of_the_log_keeps_a_run_from_going_on(make_config, tmp_path):
    straight, config = make_config(out=str(tmp_path / "straight")), make_config()
    for each in (straight, config):
        train(each)
    resume(straight, max_steps=16)
    path = RunFolder(config.out).metrics
    strange = [b"{", b'{"a": 1}', b'{"kind": "train", "step": 3, "lxss": 1e9}', b"\xff"]
    with open(path, "ab") as file:
        file.writelines(line + b"\n" for line in strange)
    with pytest.warns(RuntimeWarning, match=r"metrics\.jsonl: no record of a run is on line"):
        resume(config, max_steps=16)
    assert timeless(path) == timeless(RunFolder(straight.out).metrics)
    assert set(strange) <= set(path.read_bytes().split(b"\n"))


def test_fewer_steps_than_are_done_are_refused_and_the_run_stays(make_config):
    config = make_config()
    train(config)
    before = {p: p.read_bytes() for p in RunFolder(config.out).path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"max_steps must be at least 12, .* has done, got 9"):
        resume(config, max_steps=9)
    assert {p: p.read_bytes() for p in before} == before


def test_patience_ends_a_run_and_the_best_checkpoint_stays(make_config, monkeypatch, capsys):
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.5])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    config = make_config(patience=3, max_steps=100)
    train(config)
    out = capsys.readouterr().out
    assert "no progress in 3 evaluations" in out
    assert "validation loss 2.0000 after step 4" in out
    assert f"gpugrad sample {config.out} --best" in out
    assert checkpoint.steps(RunFolder(config.out).checkpoints) == [4, 12, 16]


def test_small_changes_end_a_run(make_config, capsys):
    config = make_config(min_change=1e9, warmup_steps=5)
    train(config)
    assert "moved the parameters by only" in capsys.readouterr().out
    assert checkpoint.steps(RunFolder(config.out).checkpoints)[-1] == 6


def test_divergence_leaves_sound_checkpoints(make_config, monkeypatch):
    original = Trainer.update

    def update(self):
        if self.step == 6:
            self.model.tokens.weight.data[...] = np.nan
        original(self)

    monkeypatch.setattr(Trainer, "update", update)
    config = make_config()
    with pytest.raises(DivergedError, match="validation loss is nan at step 8"):
        train(config)
    state = RunFolder(config.out).latest().state
    assert state["step"] == 4
    assert all(np.isfinite(array).all() for array in state["model"].values())


@pytest.mark.parametrize(("interval", "newest"), [(1, 5), (3, 3), (6, 0), (99, 0)])
def test_a_run_without_finite_gradients_goes_back_ahead_of_them(
    make_config, monkeypatch, capsys, interval, newest
):
    original = Trainer.update

    def update(self):
        """Find no gradient from step 6 on, unless the learning rate is lower."""
        weight = self.model.tokens.weight.data
        before = weight.copy()
        if self.step >= 6 and self.config.lr > 1e-3:
            weight[0, 0] = np.nan
        try:
            original(self)
        finally:
            if self.guard.in_a_row:
                weight[...] = before

    monkeypatch.setattr(Trainer, "update", update)
    config = make_config(eval_interval=interval, max_steps=30)
    with pytest.raises(DivergedError, match="not finite in 10 steps in a row, up to step 16"):
        train(config)
    saved = RunFolder(config.out).checkpoints
    assert checkpoint.steps(saved)[-1] == newest
    aside = [step for step in range(6, 16) if step % interval == 0]
    assert [int(path.name.split("-")[1]) for path in sorted(saved.glob("diverged-*"))] == aside
    assert capsys.readouterr().out.count("diverged  a checkpoint, now called") == len(aside)
    with go_on(config.out, {"lr": 1e-3}) as run:
        assert run.trainer.step == newest
        run.train()
    assert checkpoint.steps(saved)[-1] == 30


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"max_chars": 20}, ValueError, "too few for a window"),
        ({"device": "tpu"}, ValueError, "'tpu' is not a device"),
        ({"tokenizer": "words"}, ValueError, "tokenizer 'words'"),
    ],
    ids=["data", "short", "device", "tokenizer"],
)
def test_nothing_is_written_when_something_is_wrong(make_config, settings, error, message):
    config = make_config(**settings)
    with pytest.raises(error, match=message):
        train(config)
    assert not os.path.exists(config.out)


@pytest.mark.parametrize("notes", [False, True])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_run_that_never_began_leaves_nothing(make_config, monkeypatch, tmp_path, notes, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(session, "Trainer", fail)
    if notes:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(error):
        train(make_config())
    assert sorted(path.name for path in tmp_path.rglob("*")) == (
        ["input.txt", "notes.txt", "run"] if notes else ["input.txt"]
    )


def test_the_best_of_a_run_that_goes_on_meanwhile(make_config, monkeypatch):
    """Behind the look at the newest checkpoint training goes on, and removes the one to be read."""
    config = make_config()
    train(config)
    older = checkpoint.steps(RunFolder(config.out).checkpoints)[0]
    latest, looks = checkpoint.latest, []

    def look(folder):
        found = latest(folder)
        looks.append(found)
        if len(looks) == 1:
            found.state["patience"]["best_step"] = older
            resume(config, max_steps=40)
        return found

    monkeypatch.setattr(checkpoint, "latest", look)
    found = load_run(config.out, best=True)
    assert older not in checkpoint.steps(RunFolder(config.out).checkpoints)
    assert found.step == looks[-1].state["patience"]["best_step"] > older
    kept = latest(RunFolder(config.out).checkpoints)
    kept.state["patience"]["best_step"] = older
    monkeypatch.setattr(checkpoint, "latest", lambda folder: kept)
    with pytest.raises(checkpoint.CheckpointError, match=f"step-{older:08d}"):
        load_run(config.out, best=True)


def test_png_needs_matplotlib_before_anything_is_written(make_config, monkeypatch):
    def missing():
        raise ModuleNotFoundError('pip install "gpugrad[plot]"')

    monkeypatch.setattr(session.curve, "require_matplotlib", missing)
    config = make_config(png=True)
    with pytest.raises(ModuleNotFoundError, match="plot"):
        train(config)
    assert not os.path.exists(config.out)


def test_a_run_is_overwritten_only_when_told_so_and_when_the_new_one_can_start(make_config):
    config = make_config()
    train(config)
    before = tensors(config, 12)
    with pytest.raises(FileExistsError, match="--overwrite"):
        train(config)
    with pytest.raises(FileNotFoundError):
        train(make_config(data="nowhere"), overwrite=True)
    assert tensors(config, 12) == before
    train(make_config(seed=2), overwrite=True)
    assert tensors(config, 12) != before


def test_one_process_at_a_time(make_config):
    config = make_config()
    with (
        begin(config),
        pytest.raises(RuntimeError, match="another process is training"),
        go_on(config.out, {}),
    ):
        pass


def test_the_model_of_a_run(make_config, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    config = make_config()
    train(config)
    newest, tokenizer = load_model(config.out, "cpu")
    best, _ = load_model(config.out, "cpu", best=True)
    folder = RunFolder(config.out).checkpoints
    for model, step in ((newest, 12), (best, 4)):
        state = checkpoint.read(folder / f"step-{step:08d}").state["model"]
        for name, array in state.items():
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), array)
    assert tokenizer.decode(tokenizer.encode("3 times 3")) == "3 times 3"


def test_long_curves_are_averaged():
    points = [(float(i), float(i % 2)) for i in range(2001)]
    thinned = session._thinned(points)
    assert len(thinned) == 401
    assert thinned[0] == (2.0, 0.4)
    assert session._thinned(points[:500]) == points[:500]
