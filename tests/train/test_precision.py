"""Runs in half precision: near the float32 run, exactly resumable, and float16 scales its loss."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.cli import main
from gpugrad.models import GPT
from gpugrad.train import DivergedError, Trainer, begin, checkpoint, go_on, load_model, loop
from gpugrad.train.folder import RunFolder
from gpugrad.train.metrics import read_metrics

HALVES = ["bfloat16", "float16"]
halves = pytest.mark.parametrize("precision", HALVES)


@pytest.fixture
def make_trainer(make_config, make_data):
    """Return a trainer with such settings."""

    def make(**settings) -> Trainer:
        config = make_config(**settings)
        return Trainer(config, make_data(config))

    return make


@pytest.fixture
def huge_scale(monkeypatch):
    """Let the loss be scaled so much at first that float16 overflows a few times."""
    scaler = functools.partial(gg.optim.LossScaler, 2.0**26, growth_interval=5)
    monkeypatch.setattr(loop, "LossScaler", scaler)


def losses(trainer: Trainer, steps: int) -> np.ndarray:
    found = []
    for _ in range(steps):
        trainer.update()
        found.append(trainer.report().loss)
    return np.array(found)


@halves
def test_training_follows_float32(make_trainer, precision):
    """Within 0.05 nats at every step, 0.02 on average: rounding moves the run, not what it learns.

    A parameter has 8 or 11 bits; what an update of 1e-3 changes is kept in the master copies.
    """
    settings = {"n_embd": 32, "n_layer": 2, "max_steps": 60, "lr": 1e-2}
    straight = losses(make_trainer(**settings), 60)
    trainer = make_trainer(**settings, precision=precision)
    found = losses(trainer, 60)
    assert found.dtype == np.float64
    assert found[-5:].mean() < found[0] - 1
    assert np.abs(found - straight).max() < 0.05
    assert abs((found - straight).mean()) < 0.02
    assert (found != straight).any()
    assert trainer.evaluate() == pytest.approx(losses_of(trainer), abs=1e-3)


def losses_of(trainer: Trainer) -> float:
    """Return the validation loss of the parameters at hand, computed in float32."""
    config = trainer.config.model(trainer.model.config.vocab_size)
    wide = GPT(type(config)(**{**vars(config), "dtype": "float32"}), "cpu")
    wide.load_state_dict(trainer.model.state_dict())
    wide.eval()
    with gg.no_grad():
        return wide(*trainer.held_out)[1].item()


@halves
def test_parameters_are_narrow_and_what_they_are_updated_from_is_not(
    make_trainer, tmp_path, precision
):
    trainer = make_trainer(precision=precision)
    losses(trainer, 3)
    state = checkpoint.read(trainer.snapshot(tmp_path / "checkpoints")()).state
    assert {a.dtype.name for a in state["model"].values()} == {precision}
    numbered = state["optimizer"]["state"]
    for key, (p, mine) in enumerate(trainer.optimizer._states.items()):
        saved = numbered[str(key)]
        assert {saved[name].dtype for name in ("master", "exp_avg", "exp_avg_sq")} == {gg.float32}
        np.testing.assert_array_equal(saved["master"].ravel(), mine.arrays["master"])
        np.testing.assert_array_equal(p.numpy(), saved["master"].astype(p.dtype))
        assert (saved["master"] != saved["master"].astype(p.dtype).astype("float32")).any()
    assert (state["scaler"] is None) == (precision == "bfloat16")


def test_a_scale_that_is_too_large_shrinks_and_the_run_goes_on(make_trainer, huge_scale):
    trainer = make_trainer(precision="float16", max_steps=30, min_change=1e-9, warmup_steps=0)
    reports = []
    for _ in range(20):
        trainer.update()
        assert trainer.finished == ""  # an update that was left out is no sign of rest
        reports.append(trainer.report())
    assert reports[0].skipped == 1
    assert reports[0].norm is None
    assert reports[0].loss_scale == 2.0**25
    skipped = reports[-1].skipped
    assert 1 < skipped < 15
    assert all(math.isfinite(r.norm) for r in reports[-3:] if r.norm is not None)
    assert {state.step for state in trainer.optimizer._states.values()} == {20 - skipped}
    assert reports[-1].loss < reports[0].loss
    assert make_trainer().report() is None


def test_without_clipping_the_loss_is_scaled_too(make_trainer, huge_scale):
    trainer = make_trainer(precision="float16", grad_clip=0.0)
    losses(trainer, 3)
    assert trainer.report() is None
    assert trainer.scaler.skipped >= 1
    assert all(np.isfinite(p.numpy()).all() for p in trainer.model.parameters())


def test_a_gradient_that_overflows_at_any_scale_is_a_divergence(make_trainer, monkeypatch):
    scaler = functools.partial(gg.optim.LossScaler, 1.0)
    monkeypatch.setattr(loop, "LossScaler", scaler)
    trainer = make_trainer(precision="float16")
    original = trainer.optimizer.step

    def step(**how):
        next(iter(trainer.model.parameters())).grad.data[0, 0] = math.inf
        return original(**how)

    monkeypatch.setattr(trainer.optimizer, "step", step)
    for call in (trainer.update, trainer.report, trainer.state_dict):
        with pytest.raises(
            DivergedError, match=r"overflows float16 at step 1 .* by 0\.5; 1 update"
        ):
            call()


def tensors(out: str, step: int) -> bytes:
    return (RunFolder(out).checkpoints / f"step-{step:08d}" / checkpoint.TENSORS).read_bytes()


@halves
def test_a_run_from_the_command_line_to_hugging_faces_files(
    make_config, tmp_path, capsys, huge_scale, precision
):
    straight = make_config(precision=precision, out=str(tmp_path / "straight"), max_steps=24)
    with begin(straight) as run:
        run.train()
    config = make_config(precision=precision)  # 12 steps
    with begin(config) as run:
        run.train()
    with (
        pytest.raises(ValueError, match=f"precision is '{precision}' in this run"),
        go_on(config.out, {"precision": "float32"}),
    ):
        pass
    out = capsys.readouterr().out
    assert f"parameters, {precision} on CPU" in out
    assert ("with a gradient that was not finite" in out) == (precision == "float16")
    records = [r for r in read_metrics(RunFolder(straight.out).metrics) if r["kind"] == "train"]
    counts = [r["skipped"] for r in records]
    assert (counts[-1] is not None and counts[-1] > 0) == (precision == "float16")
    assert {type(r["loss_scale"]) for r in records} == (
        {float} if precision == "float16" else {type(None)}
    )

    assert main(["sample", config.out, "--max-new-tokens", "20", "--greedy"]) == 0
    assert len(capsys.readouterr().out) > 20
    model, tokenizer = load_model(config.out, "cpu")
    assert {p.dtype for p in model.parameters()} == {backend.as_dtype(precision)}
    model.save_pretrained(tmp_path / "hf")
    again = GPT.from_pretrained(tmp_path / "hf", device="cpu")
    wide = GPT.from_pretrained(tmp_path / "hf", dtype="float32", device="cpu")
    ids = tokenizer.encode("3 times 3 is")[None]
    with gg.no_grad():
        expected = model(ids)[0].numpy()
        np.testing.assert_array_equal(again(ids)[0].numpy(), expected)
        np.testing.assert_allclose(wide(ids)[0].numpy(), expected.astype(float), atol=0.05)


@halves
def test_an_interrupted_run_ends_like_one_that_was_not(make_trainer, huge_scale, precision):
    """Also where updates were left out, before the cut and after."""
    settings = {"precision": precision, "max_steps": 24, "accumulate": 2}
    straight, early, late = (make_trainer(**settings) for _ in range(3))
    expected = losses(straight, 24)
    first = losses(early, 12)
    late.load_state_dict(early.state_dict())
    np.testing.assert_array_equal([*first, *losses(late, 12)], expected)
    one, two = straight.state_dict(), late.state_dict()
    assert one["scaler"] == two["scaler"]
    for name, array in one["model"].items():
        assert array.tobytes() == two["model"][name].tobytes()
    for key, saved in one["optimizer"]["state"].items():
        for name, value in saved.items():
            np.testing.assert_array_equal(value, two["optimizer"]["state"][key][name])
    if precision == "float16":
        assert early.scaler.skipped < late.scaler.skipped


@pytest.mark.parametrize("memory", [{"recompute": "block"}, {"head_chunk": 7}], ids=str)
def test_settings_that_save_memory_change_nothing_else(make_trainer, memory):
    straight = make_trainer(precision="float64")
    trainer = make_trainer(precision="float64", **memory)
    np.testing.assert_allclose(losses(trainer, 3), losses(straight, 3), rtol=1e-12)
    assert trainer.evaluate() == pytest.approx(straight.evaluate(), rel=1e-12)
