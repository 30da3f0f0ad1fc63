from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def perturb(module: nn.Module) -> None:
    """Move weights away from ones and biases from zeros."""
    with gg.no_grad():
        for p in module.parameters():
            p += gg.random.normal(size=p.shape, dtype=p.dtype)


def layer_norm(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + eps)


def rms_norm(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + eps)


FORMULAS = {nn.LayerNorm: layer_norm, nn.RMSNorm: rms_norm}


@pytest.mark.parametrize("layer", FORMULAS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize(
    ("shape", "normalized"),
    [((4,), 4), ((3, 4), 4), ((2, 3, 4), (4,)), ((2, 3, 4), (3, 4)), ((2, 1), 1)],
    ids=str,
)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_formula(layer, shape, normalized, affine, check_gradients) -> None:
    norm = layer(normalized, eps=0.1, elementwise_affine=affine, dtype="float64")
    perturb(norm)
    axes = tuple(range(-len(norm.normalized_shape), 0))
    x = gg.random.normal(size=shape, dtype="float64")
    expected = FORMULAS[layer](x.numpy(), axes, 0.1)
    for name, p in norm.named_parameters():
        expected = expected * p.numpy() if name == "weight" else expected + p.numpy()
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-13)
    check_gradients(norm, x)


@pytest.mark.parametrize("layer", FORMULAS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("normalized", [4, (3, 4)], ids=str)
def test_residual_is_added_first(layer, normalized, check_gradients) -> None:
    norm = layer(normalized, dtype="float64")
    perturb(norm)
    x, residual = (gg.random.normal(size=(2, 3, 4), dtype="float64") for _ in range(2))
    out, total = norm(x, residual)
    np.testing.assert_allclose(total.detach().numpy(), x.numpy() + residual.numpy(), atol=1e-15)
    np.testing.assert_allclose(
        out.detach().numpy(), norm(x + residual).detach().numpy(), atol=1e-13
    )
    check_gradients(norm, x, residual)


def test_starts_as_the_plain_norm() -> None:
    norm = nn.LayerNorm(3)
    assert norm.weight.tolist() == [1, 1, 1]
    assert norm.bias.tolist() == [0, 0, 0]
    assert list(norm.state_dict()) == ["weight", "bias"]
    assert nn.LayerNorm(3, bias=False).bias is None
    assert list(nn.RMSNorm(3).state_dict()) == ["weight"]


@pytest.mark.parametrize(
    ("dtype", "eps"), [("float64", 2.0**-52), ("float32", 2.0**-23), ("float16", 2.0**-23)]
)
def test_rms_norm_default_eps_is_that_of_the_computation(dtype, eps) -> None:
    x = np.array([3e-4, 4e-4], dtype)
    expected = rms_norm(x.astype("float64"), (-1,), eps)
    np.testing.assert_allclose(nn.RMSNorm(2, dtype=dtype)(x).detach().numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("layer", FORMULAS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("shape", [(3,), (4, 5), ()], ids=str)
def test_wrong_shape_is_refused(layer, shape) -> None:
    with pytest.raises(ValueError, match=rf"{layer.__name__}\(\(4,\).*\(\.\.\., 4\), got float32"):
        layer(4)(gg.zeros(shape))


@pytest.mark.parametrize("layer", FORMULAS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("eps", [math.nan, -1e-5])
def test_eps_that_is_none_is_refused(layer, eps) -> None:
    with pytest.raises(ValueError, match=f"{layer.__name__}: eps must not be negative, got {eps}"):
        layer(4, eps=eps)


def test_repr() -> None:
    assert repr(nn.LayerNorm((2, 3))) == "LayerNorm((2, 3), eps=1e-05, elementwise_affine=True)"
    assert repr(nn.RMSNorm(4)) == "RMSNorm((4,), eps=None, elementwise_affine=True)"
