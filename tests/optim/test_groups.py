from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.optim import AdamW, decay_groups, discriminative_groups, layer_scales


def parameter(*shape):
    return gg.ones(shape).requires_grad_()


NAMED = {
    "transformer.wte.weight": parameter(5, 4),
    "transformer.h.0.ln_1.weight": parameter(4),
    "transformer.h.0.attn.c_attn.weight": parameter(12, 4),
    "transformer.h.0.attn.c_attn.bias": parameter(12),
    "block.norm1.weight": parameter(3, 4),
    "final_norm.weight": parameter(2, 4),
    "ln_f.weight": parameter(2, 4),
    "head.bias": parameter(1, 5),
    "scale": parameter(),
    "gate": parameter(3),
    "planner.weight": parameter(2, 2),
}


def test_matrices_decay_and_nothing_else() -> None:
    decayed, rest = decay_groups(NAMED.items(), weight_decay=0.1)
    assert [name for name, _ in decayed["params"]] == [
        "transformer.wte.weight",
        "transformer.h.0.attn.c_attn.weight",
        "planner.weight",
    ]
    assert [name for name, _ in rest["params"]] == [
        n for n in NAMED if n not in dict(decayed["params"])
    ]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_patterns_add_to_the_undecayed() -> None:
    decayed, rest = decay_groups(NAMED.items(), undecayed=["*.wte.weight", "planner.*"])
    assert [name for name, _ in decayed["params"]] == ["transformer.h.0.attn.c_attn.weight"]
    assert len(rest["params"]) == len(NAMED) - 1


def test_patterns_fit_modules_as_those_of_freeze_do() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    decayed, rest = decay_groups(model, undecayed=["0"])
    assert [name for name, _ in decayed["params"]] == ["1.weight"]
    assert [name for name, _ in rest["params"]] == ["0.weight", "0.bias", "1.bias"]


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter fits '\*.wpe.weight'"):
        decay_groups(NAMED.items(), undecayed=["*.wpe.weight"])


def test_shared_and_frozen_parameters() -> None:
    shared, frozen = parameter(2, 2), gg.ones((2, 2))
    decayed, rest = decay_groups([("wte.weight", shared), ("head.weight", shared), ("f", frozen)])
    assert decayed["params"] == [("wte.weight", shared)]
    assert rest["params"] == []


def test_the_optimizer_takes_them() -> None:
    optimizer = AdamW(decay_groups(NAMED.items(), weight_decay=0.5), lr=1.0)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = gg.zeros_like(p)
    optimizer.step()
    assert NAMED["planner.weight"].numpy().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert NAMED["head.bias"].numpy().tolist() == [[1.0] * 5]


# Discriminative learning rates


def named_groups():
    return decay_groups(NAMED.items(), weight_decay=0.1)


def rates(groups):
    return {name: group["lr_scale"] for group in groups for name, _ in group["params"]}


def test_the_first_fitting_pattern_scales() -> None:
    scales = {"transformer.wte": 0.0, "transformer": 0.1, "head": 10.0, "*.bias": 5.0}
    groups = discriminative_groups(named_groups(), scales, lr=1e-2)
    assert rates(groups) == {
        name: 0.0
        if "wte" in name
        else 0.1
        if "transformer" in name
        else 10.0
        if "head" in name
        else 1.0
        for name in NAMED
    }
    assert all(group["lr"] == pytest.approx(1e-2 * group["lr_scale"]) for group in groups)
    decayed = {name for group in groups if group["weight_decay"] for name, _ in group["params"]}
    assert decayed == {name for name, _ in named_groups()[0]["params"]}
    again = discriminative_groups(groups, {"transformer": 0.5}, lr=1.0)  # factors multiply
    assert rates(again)["transformer.h.0.ln_1.weight"] == pytest.approx(0.05)
    assert rates(again)["head.bias"] == 10.0


def test_layers_learn_the_slower_the_lower_they_are() -> None:
    names = ["wte.weight", "h.0.a.weight", "h.0.a.bias", "h.1.a.weight", "h.10.weight", "ln.weight"]
    model = nn.Module()
    model.named_parameters = lambda: [(name, parameter(2, 2)) for name in names]
    assert layer_scales(model, 0.5) == {"wte.weight": 0.125, "h.0": 0.25, "h.1": 0.5, "h.10": 1.0}
    groups = discriminative_groups(decay_groups(model), layer_scales(model, 0.5))
    assert rates(groups) == dict(zip(names, (0.125, 0.25, 0.25, 0.5, 1.0, 1.0), strict=True))
    assert "lr" not in groups[0]


def test_a_step_moves_by_the_scaled_rate() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    groups = discriminative_groups(decay_groups(model, 0.0), {"0": 0.25}, lr=1e-2)
    optimizer = AdamW(groups)
    before = [p.numpy().copy() for p in model.parameters()]
    for p in model.parameters():
        p.grad = gg.ones(p.shape)
    optimizer.step()
    for p, b, rate in zip(model.parameters(), before, (2.5e-3, 2.5e-3, 1e-2, 1e-2), strict=True):
        np.testing.assert_allclose(b - p.numpy(), rate, rtol=1e-3)


def test_scales_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="no parameter that is trained fits 'wpe'"):
        discriminative_groups(named_groups(), {"transformer": 0.1, "wpe": 1.0})
    with pytest.raises(
        TypeError, match=r"pass groups and factors by pattern.* got Linear and float"
    ):
        discriminative_groups(nn.Linear(1, 1), 0.1)
    with pytest.raises(ValueError, match=r"the factor of 'head' must be a number >= 0, got -1"):
        discriminative_groups(named_groups(), {"head": -1})
    for decay in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="decay must be a number above 0"):
            layer_scales(nn.Sequential(nn.Linear(1, 1)), decay)
    with pytest.raises(ValueError, match="no name of Linear's parameters has a number in it"):
        layer_scales(nn.Linear(1, 1), 0.5)
