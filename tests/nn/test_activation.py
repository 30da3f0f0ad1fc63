from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn

_erf = np.vectorize(math.erf)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


CASES = [
    (nn.ReLU(), lambda x: np.maximum(x, 0)),
    (nn.GELU(), lambda x: x * (1 + _erf(x / np.sqrt(2))) / 2),
    (
        nn.GELU("tanh"),
        lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    (nn.SiLU(), lambda x: x / (1 + np.exp(-x))),
    (nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    (nn.Tanh(), np.tanh),
    (nn.Softmax(), lambda x: softmax(x, -1)),
    (nn.Softmax(dim=1), lambda x: softmax(x, 1)),
    (nn.Softmax(axis=0), lambda x: softmax(x, 0)),
    (nn.LogSoftmax(), lambda x: np.log(softmax(x, -1))),
    (nn.LogSoftmax(1), lambda x: np.log(softmax(x, 1))),
]


@pytest.mark.parametrize(("module", "formula"), CASES, ids=[repr(module) for module, _ in CASES])
def test_formula(module, formula, check_gradients) -> None:
    x = gg.random.normal(scale=2.0, size=(2, 3, 4), dtype="float64")
    np.testing.assert_allclose(module(x).numpy(), formula(x.numpy()), atol=1e-14, rtol=1e-13)
    check_gradients(module, x)


@pytest.mark.parametrize("module", [m for m, _ in CASES], ids=[repr(m) for m, _ in CASES])
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_huge_input_stays_finite(module, value) -> None:
    x = gg.full((1, 1, 3), value, dtype="float32", requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert np.isfinite(out.detach().numpy()).all()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize("layer", [nn.Softmax, nn.LogSoftmax])
def test_one_name_for_the_axis(layer) -> None:
    with pytest.raises(TypeError, match=f"{layer.__name__}: dim and axis"):
        layer(dim=0, axis=0)


def test_gelu_knows_two_kinds() -> None:
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'sigmoid'"):
        nn.GELU("sigmoid")
