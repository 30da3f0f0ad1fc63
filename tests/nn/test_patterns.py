"""Freezing by name: what a pattern fits, and that frozen parameters cost and learn nothing."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.nn.patterns import fits


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("blocks.0.mlp.up.weight", "blocks.0", True),
        ("blocks.0.mlp.up.weight", "*.mlp", True),
        ("blocks.0.mlp.up.weight", "*.weight", True),
        ("blocks.0.mlp.up.weight", "blocks.0.mlp.up.weight", True),
        ("blocks.10.mlp.up.weight", "blocks.1", False),
        ("blocks.1.mlp.up.weight", "blocks.[0-1]", True),
        ("blocks.0.mlp.up.weight", "mlp", False),
        ("head.weight", "Head", False),
        ("head.weight", "", False),
    ],
)
def test_fits(name, pattern, expected):
    assert fits(name, pattern) is expected


def trained(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def layers():
    return nn.Sequential({"a": nn.Linear(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 2)})


def test_freeze_and_unfreeze():
    model = layers()
    assert nn.freeze(model, "a", "*.bias") is model
    assert trained(model) == ["b.weight", "c.weight"]
    nn.unfreeze(model, "a.bias")
    assert trained(model) == ["a.bias", "b.weight", "c.weight"]
    nn.freeze(model)
    assert trained(model) == []
    nn.unfreeze(model)
    assert len(trained(model)) == 6


def test_a_pattern_that_fits_nothing_changes_nothing():
    model = layers()
    with pytest.raises(ValueError, match=r"no parameter of Sequential fits 'd'; they are called a"):
        nn.freeze(model, "a", "d")
    with pytest.raises(TypeError, match=r"patterns are strings, one .*; got \['a', 'b'\]"):
        nn.freeze(model, ["a", "b"])
    assert len(trained(model)) == 6


def test_a_tied_parameter_has_several_names():
    model = layers()
    model[1].weight = nn.Parameter(gg.ones((4, 4)))
    model.append(nn.Linear(4, 4))
    model[3].weight = model[1].weight
    nn.freeze(model, "3.weight")
    assert not model[1].weight.requires_grad


def test_frozen_parameters_get_no_gradient_and_stay():
    model = layers()
    x = gg.random.normal(size=(5, 3))
    model(x).sum().backward()
    nn.freeze(model, "a", "b")
    assert model[0].weight.grad is None  # an old gradient is not taken for a new one
    before = [p.numpy().copy() for p in model.parameters()]
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    hidden = model[1](model[0](x))
    assert not hidden.requires_grad  # nothing is recorded below what is trained
    model(x).sum().backward()
    optimizer.step()
    moved = [
        not np.array_equal(p.numpy(), b) for p, b in zip(model.parameters(), before, strict=True)
    ]
    assert moved == [False] * 4 + [True] * 2
