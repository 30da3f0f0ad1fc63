"""Fine-tuning runs: where they start, what stays, how fast the rest learns, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.cli import main
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import lora
from gpugrad.train import Session, begin, go_on, load_model, resolve
from gpugrad.train.folder import RunFolder

from .conftest import SMALL


@pytest.fixture
def pretrained(make_config, tmp_path):
    """The folder of a run that is done."""
    config = make_config(out=str(tmp_path / "pretrained"), n_layer=2)
    with begin(config) as run:
        run.train()
    return config.out


@pytest.fixture
def settings(text, tmp_path, pretrained):
    """Settings to start from it: neither shape nor tokenizer."""
    shape = ("tokenizer", "n_layer", "n_head", "n_embd", "block_size")
    rest = {name: value for name, value in SMALL.items() if name not in shape}
    return {**rest, "data": str(text), "out": str(tmp_path / "tuned"), "init_from": pretrained}


def weights(model: GPT) -> dict[str, np.ndarray]:
    return {name: p.numpy().copy() for name, p in model.named_parameters()}


def begun(settings) -> tuple[Session, dict[str, np.ndarray]]:
    """Return a session and the weights it starts with, after the run."""
    with begin(resolve(settings)) as run:
        start = weights(run.trainer.model)
        run.train()
    return run, start


def test_a_run_starts_with_the_best_weights_of_another(settings, pretrained, capsys):
    config = resolve(settings)
    assert (config.n_layer, config.n_embd, config.tokenizer) == (
        2,
        16,
        f"{pretrained}/tokenizer.json",
    )
    run, start = begun(settings)
    source = weights(load_model(pretrained, best=True)[0])
    assert start.keys() == source.keys()
    for name, array in source.items():
        np.testing.assert_array_equal(start[name], array)
    assert f"start     {pretrained}" in capsys.readouterr().out
    assert all(group["lr"] < 1e-2 for group in run.trainer.optimizer.param_groups)
    assert run.trainer.optimizer.state_dict()["state"]["0"]["step"] == 12  # a new optimiser


def test_a_resumed_run_does_not_need_where_it_began(settings, pretrained, tmp_path):
    with begin(resolve(settings)):
        pass  # stopped before its first checkpoint
    with go_on(settings["out"], {"max_steps": 4}) as run:
        np.testing.assert_array_equal(
            weights(run.trainer.model)["norm.weight"],
            weights(load_model(pretrained, best=True)[0])["norm.weight"],
        )
        run.train()
    (tmp_path / "pretrained").rename(tmp_path / "elsewhere")
    with go_on(settings["out"], {"max_steps": 6}) as run:
        run.train()
    assert load_model(settings["out"])[0].config.n_layer == 2


def test_from_a_folder_of_hugging_face(settings, text, tmp_path):
    model = GPT(GPTConfig(vocab_size=256, block_size=16, n_layer=1, n_head=2, n_embd=16))
    model.save_pretrained(tmp_path / "model")
    settings["init_from"] = str(tmp_path / "model")
    config = resolve(settings)
    assert (config.positions, config.bias, config.tokenizer) == ("learned", True, "byte")
    _, start = begun(settings)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(start[name], p.numpy())
    other = GPT(
        GPTConfig(vocab_size=256, block_size=16, n_layer=1, n_head=2, n_embd=16, norm_eps=1e-3)
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"other has norm_eps 0\.001; a run of gpugrad train has 1e-05"
    ):
        resolve({**settings, "init_from": str(tmp_path / "other")})


def test_frozen_parameters_stay(settings, capsys):
    run, start = begun({**settings, "freeze": "tokens, blocks.0"})
    end = weights(run.trainer.model)
    for name in start:
        stays = name.startswith(("tokens.", "blocks.0."))
        assert np.array_equal(start[name], end[name]) is stays, name
    trained = sum(
        a.size for name, a in end.items() if not name.startswith(("tokens.", "blocks.0."))
    )
    assert (
        f"trained   {trained:,} parameters, the others stay as they are" in capsys.readouterr().out
    )


def test_fresh_parameters_for_another_vocabulary(settings, pretrained):
    other = {**settings, "tokenizer": "byte"}
    with pytest.raises(
        ValueError, match=r"tokens.weight is \(\d+, 16\) in .* and \(256, 16\) here;"
    ):
        begun(other)
    assert not RunFolder(settings["out"]).path.exists()
    run, start = begun({**other, "fresh": "tokens", "freeze": "blocks"})
    source, end = weights(load_model(pretrained, best=True)[0]), weights(run.trainer.model)
    assert start["tokens.weight"].shape == (256, 16)
    for name in source:
        if name.startswith("blocks"):
            np.testing.assert_array_equal(end[name], source[name])
    assert not np.array_equal(start["tokens.weight"], end["tokens.weight"])
    run, _ = begun({**settings, "out": settings["out"] + "2", "tied_head": False, "fresh": "head"})
    assert run.trainer.model.head is not None


def test_learning_rates_by_layer_and_name(settings):
    scaled = {**settings, "layer_decay": 0.5, "lr_scales": "norm=4, *.bias=1", "bias": True}
    with pytest.raises(ValueError, match=r"is absent in .* here \(and"):
        begun(scaled)
    run, _ = begun({**settings, "layer_decay": 0.5, "lr_scales": "norm=4", "schedule": "constant"})
    rates = {
        name: group["lr"] / run.config.lr
        for group in run.trainer.optimizer.param_groups
        for name in group["param_names"]
    }
    for name, rate in rates.items():
        layer = {"tokens": 0.25, "blocks.0": 0.5, "blocks.1": 1.0, "norm": 4.0}
        assert rate == next(r for prefix, r in layer.items() if name.startswith(prefix))
    frozen = {**settings, "freeze": "tokens,blocks.0", "layer_decay": 0.5}
    begun({**frozen, "out": settings["out"] + "2"})  # what is frozen needs no rate


def test_adapters(settings, pretrained, capsys):
    adapters = {"lora_rank": 2, "lora_alpha": 4.0, "lora_targets": "*.in_proj,*.mlp", "lr": 1e-2}
    run, start = begun({**settings, **adapters})
    source, end = weights(load_model(pretrained, best=True)[0]), weights(run.trainer.model)
    for name in source:
        np.testing.assert_array_equal(start[name], source[name])
        np.testing.assert_array_equal(end[name], source[name])
    assert any(end[name].any() for name in end if name.endswith("lora_b"))
    assert len(lora.layers(run.trainer.model)) == 6
    ids = np.arange(8)[None]
    adapted = run.trainer.model.eval()(ids)[0].numpy()
    merged, _ = load_model(settings["out"])
    assert not lora.layers(merged)
    assert all(p.requires_grad for p in merged.parameters())
    np.testing.assert_allclose(merged(ids)[0].numpy(), adapted, atol=1e-5)
    assert main(["sample", settings["out"], "--max-new-tokens", "3"]) == 0
    with go_on(settings["out"], {"max_steps": 16}) as run:
        run.train()
    again = {**settings, "init_from": settings["out"], "out": settings["out"] + "2"}
    begun(again)  # with the adapters merged


def test_the_command_line(settings, capsys):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    assert main(["train", *flags, "--lora-rank", "2"]) == 0
    assert main(["train", *flags, "--n-head", "4", "--overwrite"]) == 1
    assert "n_head is 2 in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, "nowhere holds neither a run nor a model"),
        ({"fresh": "haed"}, "fresh: no parameter fits 'haed'"),
        ({"freeze": "block"}, "no parameter of GPT fits 'block'"),
        ({"freeze": "*"}, r"freeze '\*' leaves no parameter to train"),
        ({"lora_rank": 17}, r"rank must be an integer in 1\.\.16"),
        ({"lora_rank": 2, "lora_targets": "*.q"}, r"'\*\.q' fits none of the linear layers"),
        ({"lr_scales": "norm"}, "lr_scales must be PATTERN=FACTOR"),
        ({"lr_scales": "hed=2"}, "no parameter that is trained fits 'hed'"),
        ({"positions": "learned"}, "positions is 'rotary' in .* and cannot become 'learned'"),
        ({"n_layer": 3}, r"blocks\.2\.attention\.in_proj\.weight is absent in .* \(and 5 more\)"),
        ({"n_layer": 1}, r"blocks\.1\.attention\.in_proj\.weight is .* and absent here"),
        ({"init_from": "", "fresh": "head"}, "fresh needs init_from"),
        ({"init_from": "", "lora_rank": 2}, "lora_rank needs init_from"),
    ],
)
def test_what_is_refused_leaves_nothing(settings, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        begun({**settings, **changes})
    folder = RunFolder(settings["out"])
    assert not folder.path.exists()
    begun(settings)
    before = sorted(folder.path.rglob("*"))
    with (
        pytest.raises((ValueError, FileNotFoundError), match=message),
        begin(resolve({**settings, **changes}), overwrite=True),
    ):
        pass
    assert sorted(folder.path.rglob("*")) == before
    assert folder.read_config() == resolve(settings).to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "", "freeze": "tokens"}, "freeze 'tokens' without init_from: .* random"),
        ({"lora_targets": "*.up", "lora_alpha": 2.0}, "lora_alpha, lora_targets without lora_rank"),
    ],
)
def test_what_is_rarely_meant_is_warned_of(settings, changes, message):
    with pytest.warns(RuntimeWarning, match=message):
        begun({**settings, **changes})


def test_a_run_is_not_overwritten_by_what_starts_from_it(settings, pretrained):
    with pytest.raises(ValueError, match="out must be another folder than init_from"):
        resolve({**settings, "out": pretrained + "/"})


def test_a_recorded_step_of_a_fine_tuning_run(settings):
    """Frozen parameters, adapters and scaled rates in a step that is recorded once."""
    changes = {"lora_rank": 2, "layer_decay": 0.5, "max_steps": 3, "eval_interval": 3}
    losses = []
    with gg.emulator.enabled("plain"):
        for number, compile in enumerate((True, False)):
            run, _ = begun(
                {**settings, **changes, "compile": compile, "out": settings["out"] + str(number)}
            )
            losses.append(run.trainer.patience.best)
            if compile:
                assert run.trainer._take.recordings == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
