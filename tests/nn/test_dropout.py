from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def test_drops_a_share_and_scales_the_rest() -> None:
    out = nn.Dropout(0.25)(gg.ones(400, 100)).numpy()
    kept = out != 0
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(out[kept], 1 / 0.75, rtol=1e-6)


def test_gradient_takes_the_same_way() -> None:
    x = gg.ones(1023, requires_grad=True)
    out = nn.Dropout(0.5)(x)
    out.sum().backward()
    assert x.grad.tolist() == out.tolist()


def test_seed_decides() -> None:
    dropout, outs = nn.Dropout(0.5), []
    for seed in (3, 3, 4):
        gg.manual_seed(seed)
        outs.append(dropout(gg.ones(100)).tolist())
    assert outs[0] == outs[1] != outs[2]


def test_calls_differ() -> None:
    dropout, x = nn.Dropout(0.5), gg.ones(100)
    assert dropout(x).tolist() != dropout(x).tolist()


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_eval_changes_nothing(p) -> None:
    x = gg.random.normal(size=(7,))
    assert nn.Dropout(p).eval()(x).tolist() == x.tolist()


def test_a_residual_is_added() -> None:
    dropout, x, residual = nn.Dropout(0.5), gg.ones(100), gg.random.normal(size=(100,))
    gg.manual_seed(3)
    expected = residual + dropout(x)
    gg.manual_seed(3)
    assert dropout(x, residual=residual).tolist() == expected.tolist()
    assert dropout.eval()(x, residual=residual).tolist() == (residual + x).tolist()


@pytest.mark.parametrize(("p", "expected"), [(0.0, [1.0] * 5), (1.0, [0.0] * 5)])
def test_extremes(p, expected) -> None:
    assert nn.Dropout(p)(gg.ones(5)).tolist() == expected


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_is_checked(p) -> None:
    with pytest.raises(ValueError, match="Dropout: p is a probability"):
        nn.Dropout(p)


def test_repr() -> None:
    assert repr(nn.Dropout(0.1)) == "Dropout(p=0.1)"
