"""The loss on a whole part of the text, and that the test part is looked at once."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.cli import main
from gpugrad.train import Search, begin, evaluate, go_on, grid, load_model
from gpugrad.train.data import open_data
from gpugrad.train.folder import RunFolder

from .conftest import SMALL


def trained(config):
    with begin(config) as run:
        run.train()
    return open_data(config, RunFolder(config.out))


def test_the_parts_follow_each_other_and_share_nothing(make_config, make_data):
    whole = make_data(make_config(train_fraction=0.7))
    data = make_data(make_config(train_fraction=0.7, test_fraction=0.1))
    assert len(whole.test) == 0
    np.testing.assert_array_equal(whole.train, data.train)
    np.testing.assert_array_equal(whole.val, np.concatenate([data.val, data.test]))
    count = len(whole.train) + len(whole.val)
    assert len(data.test) == int(count * 0.1)


def test_training_does_not_depend_on_the_test_part(make_config, text):
    config = make_config(train_fraction=0.7, test_fraction=0.1)
    trained(config)
    first = load_model(config.out)[0].state_dict()
    content = text.read_text()
    cut = int(len(content) * 0.9) + 1
    text.write_text(content[:cut] + content[cut:][::-1])
    with begin(config, overwrite=True) as run:
        run.train()
    for name, tensor in load_model(config.out)[0].state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), first[name].numpy())


def test_a_loss_on_the_whole_part(make_config):
    config = make_config(test_fraction=0.05)
    data = trained(config)
    for split, ids in (("dev", data.val), ("test", data.test)):
        found = evaluate(config.out, split)
        model = load_model(config.out)[0]
        length = config.block_size
        count = (len(ids) - 1) // length
        starts = np.linspace(0, len(ids) - length - 1, count).astype(int)
        x = np.stack([ids[s : s + length] for s in starts]).astype(np.int64)
        y = np.stack([ids[s + 1 : s + length + 1] for s in starts]).astype(np.int64)
        model.eval()
        with gg.no_grad():
            expected = model(x, y)[1].item()
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert (found.split, found.step, found.tokens) == (split, 12, count * length)


def test_a_second_look_is_told_or_refused(make_config, capsys):
    config = make_config(test_fraction=0.05)
    trained(config)
    first = evaluate(config.out, "test")
    assert first.fresh
    assert evaluate(config.out, "test") == first._replace(fresh=False)
    with go_on(config.out, {"max_steps": 16}) as run:
        run.train()
    with pytest.raises(ValueError, match="the test part was looked at before"):
        evaluate(config.out, "test")
    assert evaluate(config.out, "test", again=True).step == 16
    capsys.readouterr()
    assert main(["evaluate", config.out, "--split", "test"]) == 0
    assert "after step 16; as it was found before" in capsys.readouterr().out
    assert evaluate(config.out, "dev").fresh  # as often as one likes
    noted = RunFolder(config.out).test
    noted.write_bytes(noted.read_bytes().replace(b'"loss": 2', b'"loss": 1'))
    with pytest.raises(ValueError, match=r"test\.json .* was altered"):
        evaluate(config.out, "test")


def test_a_run_that_went_wrong_is_evaluated_too(make_config, capsys):
    """Its perplexity is more than a float holds, and the look at the test part counts."""
    settings = {"lr": 1e4, "schedule": "constant", "weight_decay": 0.0, "tied_head": False}
    config = make_config(test_fraction=0.05, **settings)
    trained(config)
    capsys.readouterr()
    for _ in range(2):
        assert main(["evaluate", config.out, "--split", "test"]) == 0
        assert ", perplexity inf, on " in capsys.readouterr().out
    assert main(["sample", config.out, "--score", "3 times"]) == 0
    assert ", perplexity inf per token (7)" in capsys.readouterr().out


def test_trials_of_one_search_share_one_look(text, tmp_path):
    settings = {**SMALL, "data": str(text), "max_steps": 4, "sample_tokens": 0}
    found = Search(tmp_path / "found", grid({"n_layer": [1, 2]}), settings)
    assert found.run() is None
    one, other = (trial.config.out for trial in found.trials)
    assert evaluate(one, "test", best=True).fresh
    with pytest.raises(ValueError, match=r"looked at before, for .*trial-001"):
        evaluate(other, "test", best=True)


def test_what_cannot_be_evaluated(make_config):
    config = make_config()
    trained(config)
    with pytest.raises(ValueError, match="has no test part"):
        evaluate(config.out, "test")
    with pytest.raises(ValueError, match="split must be dev or test, got 'train'"):
        evaluate(config.out, "train")
    with pytest.raises(ValueError, match="something is left for validation"):
        make_config(test_fraction=0.1)
    with (
        pytest.raises(ValueError, match=r"the test part of .* too few"),
        begin(make_config(test_fraction=0.0005, out=config.out + "2")),
    ):
        pass
