"""Grids in product order, draws that depend on the seed and their number alone, and their texts."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.train.space import Range, draw, grid, parse


def test_a_grid_is_the_product_in_order():
    found = grid({"a": [1, 2], "b": ["x", "y", "z"]})
    assert [tuple(settings.values()) for settings in found] == [
        (1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z"),
    ]  # fmt: skip
    assert list(found[0]) == ["a", "b"]
    assert grid({"a": [5]}) == [{"a": 5}]


def test_draws_are_the_seeds():
    space = {"lr": Range(1e-4, 1e-2, "log"), "n_layer": [2, 3, 4]}
    many = draw(space, 30, seed=7)
    assert many[:10] == draw(space, 10, seed=7)
    assert many[:10] != draw(space, 10, seed=8)
    assert len({settings["lr"] for settings in many}) == 30


def test_draws_are_even_on_their_scale():
    space = {
        "lr": Range(1e-4, 1e-2, "log"),
        "dropout": Range(0.1, 0.5),
        "n_layer": Range(2, 5),
        "n_head": [1, 2, 4],
    }
    found = draw(space, 4000)
    lr = np.array([settings["lr"] for settings in found])
    dropout = np.array([settings["dropout"] for settings in found])
    assert lr.min() >= 1e-4
    assert lr.max() < 1e-2
    # one standard deviation of a share of 4000 draws is at most 0.008
    assert (lr < 1e-3).mean() == pytest.approx(0.5, abs=0.03)
    assert (dropout < 0.2).mean() == pytest.approx(0.25, abs=0.03)
    for name, values in (("n_layer", [2, 3, 4, 5]), ("n_head", [1, 2, 4])):
        chosen = [settings[name] for settings in found]
        assert sorted(set(chosen)) == values
        assert all(type(value) is int for value in chosen)
        for value in values:
            assert chosen.count(value) / 4000 == pytest.approx(1 / len(values), abs=0.03)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-2,1e-3", ("lr", [1e-2, 1e-3])),
        ("n-layer=2,3", ("n_layer", [2, 3])),
        ("bias=true,false", ("bias", [True, False])),
        ("positions=learned, rotary", ("positions", ["learned", "rotary"])),
        ("lr=log:1e-4:1e-2", ("lr", Range(1e-4, 1e-2, "log"))),
        ("n_layer=uniform:2:6", ("n_layer", Range(2, 6))),
    ],
)
def test_parse(text, expected):
    assert parse(text, ranges=True) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "must be NAME=VALUE"),
        ("lr=", "must be NAME=VALUE"),
        ("n_layers=2", "did you mean 'n_layer'"),
        ("n_layer=2,x", "n_layer must be of type int, got 'x'"),
        ("bias=yes", "bias must be of type bool, got 'yes'"),
        ("lr=log:0:1", "low must be above 0 on a log scale"),
        ("lr=uniform:2:1", "low must be below high"),
        ("lr=log:1", "must be lr=log:LOW:HIGH"),
        ("positions=uniform:1:2", "positions is no number"),
    ],
)
def test_what_cannot_be_parsed(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, ranges=True)


def test_what_cannot_be_tried():
    with pytest.raises(ValueError, match=r"lr has the value 0\.1 twice"):
        grid({"lr": [0.1, 0.2, 0.1]})
    with pytest.raises(ValueError, match="lr needs a list of values"):
        grid({"lr": []})
    with pytest.raises(ValueError, match=r"lr needs a list of values, got 0\.1"):
        grid({"lr": 0.1})
    with pytest.raises(ValueError, match="tokenizer needs a list of values, got 'byte'"):
        draw({"tokenizer": "byte"}, 3)
    with pytest.raises(ValueError, match="trials must be at least 1"):
        draw({"lr": [0.1]}, 0)
    with pytest.raises(ValueError, match="scale must be"):
        Range(1, 2, "linear")
