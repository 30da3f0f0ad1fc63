from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 7, 3), (0, 3)], ids=str)
def test_linear(shape, bias, check_gradients) -> None:
    layer = nn.Linear(3, 4, bias=bias, dtype="float64")
    x = gg.random.normal(size=shape, dtype="float64")
    expected = x.numpy() @ layer.weight.numpy().T
    if bias:
        expected = expected + layer.bias.numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-14)
    check_gradients(layer, x)


@pytest.mark.parametrize("n", [1, 4, 400])
def test_initial_values_are_pytorch_s(n) -> None:
    layer = nn.Linear(n, 1000)
    bound = 1 / np.sqrt(n)
    for parameter in layer.parameters():
        values = parameter.numpy()
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.98 * bound
        assert abs(values.std() - bound / np.sqrt(3)) < 0.05 * bound


def test_equal_seeds_give_equal_layers() -> None:
    layers = []
    for _ in range(2):
        gg.manual_seed(5)
        layers.append(nn.Linear(3, 4))
    assert layers[0].weight.tolist() == layers[1].weight.tolist()
    assert layers[0].bias.tolist() == layers[1].bias.tolist()


def test_layer_without_inputs_is_its_bias() -> None:
    layer = nn.Linear(0, 2)
    assert layer(gg.zeros(3, 0)).tolist() == [layer.bias.tolist()] * 3


@pytest.mark.parametrize("shape", [(4,), (3, 4), (), (0,)], ids=str)
def test_wrong_width_is_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"Linear\(in_features=3.*\(\.\.\., 3\), got float32"):
        nn.Linear(3, 2)(gg.zeros(shape))


def test_numpy_input() -> None:
    assert nn.Linear(3, 2)(np.ones((4, 3), np.float32)).shape == (4, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype(dtype) -> None:
    layer = nn.Linear(3, 2, dtype=dtype)
    out = layer(gg.ones(3, dtype=dtype))
    out.sum().backward()
    assert out.dtype == layer.weight.grad.dtype == dtype


def test_flatten() -> None:
    x = gg.random.normal(size=(2, 3, 4, 5))
    assert nn.Flatten()(x).shape == (2, 60)
    assert nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    assert nn.Flatten()(gg.zeros(0, 3, 4)).shape == (0, 12)
    assert repr(nn.Flatten()) == "Flatten(start_dim=1, end_dim=-1)"


def test_identity() -> None:
    x = gg.ones(2)
    assert nn.Identity()(x) is x
