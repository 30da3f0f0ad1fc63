"""Settings: types, limits, presets, files, and what may change on resuming."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from gpugrad.models import PRESETS as SHAPES
from gpugrad.train.config import FIELDS, TrainConfig, nearest, resolve, resumed
from gpugrad.train.config_file import read_config_file
from gpugrad.train.presets import PRESETS

EXAMPLE = {"n_layer": 2, "lr": 1e-3, "bias": True, "data": "a b.txt", "schedule": "linear"}
FILES = {
    ".json": '{"n-layer": 2, "lr": 1e-3, "bias": true, "data": "a b.txt", "schedule": "linear"}',
    ".toml": 'n_layer = 2\nlr = 1e-3\nbias = true\ndata = "a b.txt"\nschedule = "linear"\n',
    ".yaml": "n_layer: 2\nlr: 1e-3\nbias: true\ndata: a b.txt\nschedule: linear\n",
    ".yml": "{n-layer: 2, lr: 0.001, bias: yes, data: a b.txt, schedule: linear}",
}


def test_every_field_says_what_it_is_and_defaults_are_valid():
    for name, field in FIELDS.items():
        assert field.metadata["help"], name
        assert field.type in ("int", "float", "bool", "str"), name
    assert TrainConfig() == resolve({})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_hold_differences_only(name):
    config = resolve({"preset": name})
    assert config.preset == name
    assert config.out.endswith(name)
    assert set(PRESETS[name]) <= set(FIELDS)


@pytest.mark.parametrize("name", sorted(PRESETS.keys() & SHAPES.keys()))
def test_presets_have_the_shape_of_the_model_preset_of_that_name(name):
    shape = SHAPES[name].config
    assert resolve({"preset": name}).model(shape.vocab_size) == shape


def test_nanogpt_cpu_is_nanogpts_configuration():
    config = resolve({"preset": "nanogpt-cpu"})
    wanted = {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 12,
        "max_steps": 2000,
        "lr": 1e-3,
        "min_lr": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 100,
        "beta2": 0.99,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "dropout": 0.0,
        "bias": False,
        "tokenizer": "char",
        "train_fraction": 0.9,
    }
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_flags_go_before_the_file_and_the_file_before_the_preset():
    file = {"n_layer": 3, "n_head": 4, "preset": "tiny"}
    config = resolve({"n_layer": 5, "out": "here"}, file)
    assert (config.n_layer, config.n_head, config.n_embd) == (5, 4, 32)
    assert (config.preset, config.out) == ("tiny", "here")
    assert resolve({"preset": "default"}, file).n_embd == TrainConfig().n_embd


@pytest.mark.parametrize("suffix", FILES)
def test_files(tmp_path, suffix):
    path = tmp_path / f"settings{suffix}"
    path.write_text(FILES[suffix])
    config = resolve({}, read_config_file(path))
    assert {name: getattr(config, name) for name in EXAMPLE} == EXAMPLE


def test_an_empty_yaml_file_changes_nothing(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing yet\n")
    assert resolve({}, read_config_file(path)) == TrainConfig()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json: "),
        ("a.toml", "n_layer", "a.toml: "),
        ("a.yaml", "{", "a.yaml: not YAML"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "a.yaml: not YAML"),
        ("a.json", "[1]", "expected names and values, got a list"),
        ("a.yaml", "words", "expected names and values, got a str"),
        ("a.ini", "", r"suffix '.ini' is unknown; use .toml, .json, .yaml"),
        ("a", "", r"suffix '' is unknown"),
    ],
    ids=["json", "toml", "yaml", "yaml tag", "list", "text", "ini", "no suffix"],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config_file(tmp_path / name)


def test_yaml_without_pyyaml_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "a.yaml").write_text("lr: 1")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gpugrad\[yaml\]"'):
        read_config_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("values", "near"),
    [
        ({"n_layers": 4}, "'n_layers'; did you mean 'n_layer'"),
        ({"learning_rate": 4}, "'learning_rate'"),
        ({"blocksize": 4}, "'blocksize'; did you mean 'block_size'"),
        ({"model": {"n_layer": 3}}, "unknown setting 'model'"),
        ({"dtype": "float64"}, "unknown setting 'dtype'; it is called 'precision' now"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_unknown_settings_are_refused_with_the_nearest(values, near):
    with pytest.raises(ValueError, match=near):
        resolve({}, values)
    with pytest.raises(ValueError, match=near):
        resolve(values)


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset 'gpt-2' is unknown; did you mean 'gpt2'"):
        resolve({"preset": "gpt-2"})


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"n_layer": 0}, ValueError, "n_layer must be at least 1, got 0"),
        ({"n_layer": 2.0}, TypeError, "n_layer must be an int, got 2.0"),
        ({"n_layer": True}, TypeError, "n_layer must be an int, got True"),
        ({"n_layer": "two"}, TypeError, "n_layer must be an int, got 'two'"),
        ({"n_layer": None}, TypeError, "n_layer must be an int, got None"),
        ({"bias": 1}, TypeError, "bias must be a bool, got 1"),
        ({"bias": "no"}, TypeError, "bias must be a bool, got 'no'"),
        ({"data": 3}, TypeError, "data must be a str, got 3"),
        ({"lr": float("nan")}, ValueError, "lr must be a finite number, got nan"),
        ({"lr": -1.0}, ValueError, "lr must be at least 0, got -1.0"),
        ({"dropout": 1.0}, ValueError, "dropout must be below 1, got 1.0"),
        ({"train_fraction": 0.0}, ValueError, "train_fraction must be above 0, got 0.0"),
        ({"seed": 2**64}, ValueError, "seed must be below 18446744073709551616"),
        ({"keep": 1}, ValueError, "keep must be at least 2, got 1"),
        ({"schedule": "cosin"}, ValueError, "schedule must be one of cosine, linear"),
        ({"precision": "half"}, ValueError, "precision must be one of float32, bfloat16, float16"),
        ({"n_head": 3}, ValueError, "n_embd 128 does not divide into n_head 3"),
        ({"positions": "rotary", "n_embd": 12}, ValueError, "head_size|odd"),
        (
            {"min_lr": 0.1},
            ValueError,
            r"min_lr must be at most lr, 0.003 \(--min-lr 0 .*\), got 0.1",
        ),
        ({"warmup_steps": 1500}, ValueError, "warmup_steps must be below max_steps, 1500"),
        ({"schedule": "exponential", "min_lr": 0.0}, ValueError, "min_lr must be above 0"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_values_are_named(values, error, message):
    values = {"max_steps": 1500, "lr": 3e-3, "min_lr": 0.0, "n_embd": 128, **values}
    with pytest.raises(error, match=message):
        resolve(values)


@pytest.mark.parametrize(
    ("name", "value", "wanted"), [("lr", 1, 1.0), ("lr", "1e-4", 1e-4), ("n_layer", "3", 3)]
)
def test_numbers_are_converted(name, value, wanted):
    found = getattr(resolve({"min_lr": 0.0, name: value}), name)
    assert (type(found), found) == (type(wanted), wanted)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_what_is_not_given_follows_what_is(preset):
    usual = resolve({"preset": preset})
    for share in (1.0, 0.5, 1e-3):
        config = resolve({"preset": preset, "lr": str(usual.lr * share)})
        assert config.min_lr == pytest.approx(usual.min_lr * share, rel=1e-11)
    assert resolve({"preset": preset, "lr": usual.lr}).min_lr == usual.min_lr
    for steps in (1, 9, 20, usual.max_steps, 2 * usual.max_steps):
        config = resolve({"preset": preset}, {"max_steps": steps})
        assert config.warmup_steps == min(usual.warmup_steps, steps // 10)
    given = {"preset": preset, "lr": 1e-5, "min_lr": 1e-5, "max_steps": 20, "warmup_steps": 19}
    config = resolve(given)
    assert (config.min_lr, config.warmup_steps) == (1e-5, 19)
    saved = usual.to_dict()
    assert resumed(saved, {"lr": usual.lr, "max_steps": usual.max_steps}) == usual
    config = resumed(saved, {"lr": usual.lr / 100, "max_steps": 20})
    assert (config.min_lr, config.warmup_steps) == (pytest.approx(usual.min_lr / 100), 2)


def test_a_rate_that_follows_is_a_plain_number():
    assert [resolve({"lr": lr}).min_lr for lr in (1, 0.7, 1e-4, 0, 1e308)] == [
        *(0.1, 0.07, 1e-5, 0.0, 1e307),
    ]
    assert resumed(resolve({"lr": 0.0}).to_dict(), {"lr": 1e-3}).min_lr == 0
    rate = 0.1234567890127  # whose twelve digits are more than it
    assert resumed(resolve({"lr": 1.0, "min_lr": 1.0}).to_dict(), {"lr": rate}).min_lr == rate


def test_a_run_keeps_what_its_changes_do_not_contradict():
    chosen = {"lr": 1e-3, "min_lr": 5e-4, "max_steps": 500, "warmup_steps": 400}
    saved = resolve(chosen).to_dict()
    config = resumed(saved, {"lr": 6e-4, "max_steps": 401})
    assert (config.min_lr, config.warmup_steps) == (5e-4, 400)
    config = resumed(saved, {"lr": 4e-4, "max_steps": 400})
    assert (config.min_lr, config.warmup_steps) == (2e-4, 40)


def test_constant_schedule_needs_no_lower_rate():
    assert resolve({"schedule": "constant", "lr": 1e-9, "max_steps": 1}).lr == 1e-9


def test_settings_survive_json():
    config = resolve({"preset": "tiny", "lr": 0.1 + 0.2, "seed": 2**64 - 1})
    assert resumed(json.loads(json.dumps(config.to_dict())), {}) == config


def test_an_older_run_says_dtype():
    saved = {**TrainConfig().to_dict(), "dtype": "float64"}
    del saved["precision"]
    assert resumed(saved, {}).precision == "float64"
    with pytest.raises(ValueError, match="precision is 'float64' in this run and cannot become"):
        resumed(saved, {"precision": "bfloat16"})


def test_resuming_may_change_what_is_not_in_the_state():
    saved = TrainConfig().to_dict()
    changed = resumed(saved, {"max_steps": 9999, "device": "cpu", "patience": 3, "out": "moved"})
    assert (changed.max_steps, changed.patience, changed.out) == (9999, 3, "moved")


FIXED = [name for name, field in FIELDS.items() if field.metadata["fixed"]]


@pytest.mark.parametrize("name", [*FIXED, "preset"])
def test_resuming_may_not_change_what_is_in_the_state(name):
    config = TrainConfig()
    others = {"bias": True, "data": "x", "precision": "float64", "positions": "learned"}
    others |= {"tokenizer": "char", "activation": "gelu", "preset": "tiny", "n_head": 2}
    others |= {"norm": "rms", "mlp_ratio": 2.0}
    others |= {"norm_first": False, "tied_head": False, "n_embd": 256, "train_fraction": 0.5}
    others |= {"init_from": "runs/other", "fresh": "head", "freeze": "tokens"}
    others |= {"lora_targets": "*.up", "lr_scales": "norm=2"}
    old = getattr(config, name)
    new = others[name] if name in others else old + 1 if type(old) is int else old / 2 + 0.01
    with pytest.raises(ValueError, match=f"{name} is .* cannot become .* on resuming"):
        resumed(config.to_dict(), {name: new})
    assert dataclasses.replace(config, **{name: new}) != config


def test_naming_a_fixed_setting_without_changing_it_is_fine():
    config = TrainConfig()
    assert resumed(config.to_dict(), {"n_layer": config.n_layer}) == config


@pytest.mark.parametrize(
    ("name", "names", "wanted"),
    [
        ("cosin", ["cosine", "linear"], "; did you mean 'cosine'?"),
        ("zzz", ["cosine", "linear"], "; choose one of cosine, linear"),
        ("zzz", [str(i) for i in range(11)], ""),
    ],
)
def test_nearest(name, names, wanted):
    assert nearest(name, names) == wanted
