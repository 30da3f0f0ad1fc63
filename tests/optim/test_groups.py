from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad.optim import AdamW, decay_groups


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


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter is called '\*.wpe.weight'"):
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
