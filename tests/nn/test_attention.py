from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def reference(layer: nn.MultiHeadAttention, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Attention head by head and query by query; mask (T, T) is added to the scores."""
    p = {name: value.numpy() for name, value in layer.named_parameters()}
    packed = x @ p["in_proj.weight"].T + p.get("in_proj.bias", 0)
    c, d = layer.embed_dim, layer.embed_dim // layer.num_heads
    merged = np.zeros_like(x)
    for b in range(len(x)):
        for start in range(0, c, d):
            q, k, v = (packed[b, :, i * c + start : i * c + start + d] for i in range(3))
            for t in range(x.shape[1]):
                scores = k @ q[t] / np.sqrt(d) + mask[t]
                weights = np.exp(scores - scores.max())
                merged[b, t, start : start + d] = weights @ v / weights.sum()
    return merged @ p["out_proj.weight"].T + p.get("out_proj.bias", 0)


def perturb(module: nn.Module) -> None:
    with gg.no_grad():
        for p in module.parameters():
            p += gg.random.normal(scale=0.3, size=p.shape, dtype=p.dtype)


def causal_mask(t: int) -> np.ndarray:
    return np.where(np.tri(t, dtype=bool), 0.0, -np.inf)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("num_heads", [1, 2, 6])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_formula(causal, num_heads, bias) -> None:
    layer = nn.MultiHeadAttention(6, num_heads, bias=bias, causal=causal, dtype="float64")
    perturb(layer)
    x = gg.random.normal(size=(2, 5, 6), dtype="float64")
    mask = causal_mask(5) if causal else np.zeros((5, 5))
    np.testing.assert_allclose(
        layer(x).detach().numpy(), reference(layer, x.numpy(), mask), atol=1e-13
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_gradients(causal, check_gradients) -> None:
    layer = nn.MultiHeadAttention(4, 2, causal=causal, dtype="float64")
    check_gradients(layer, gg.random.normal(size=(2, 3, 4), dtype="float64"))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_mask_and_causality_combine(kind, causal) -> None:
    layer = nn.MultiHeadAttention(6, 2, causal=causal, dtype="float64")
    perturb(layer)
    x = gg.random.normal(size=(2, 5, 6), dtype="float64")
    if kind == "boolean":
        allowed = gg.random.uniform(size=(5, 5)).numpy() < 0.5
        np.fill_diagonal(allowed, True)
        given, added = allowed, np.where(allowed, 0.0, -np.inf)
    else:
        given = added = gg.random.normal(size=(5, 5), dtype="float64").numpy()
    expected = reference(layer, x.numpy(), added + (causal_mask(5) if causal else 0))
    np.testing.assert_allclose(layer(x, given).detach().numpy(), expected, atol=1e-13)


def test_causal_output_ignores_the_future() -> None:
    layer = nn.MultiHeadAttention(8, 2, causal=True)
    x = gg.random.normal(size=(1, 6, 8))
    changed = x.numpy().copy()
    changed[:, 4:] += 1
    before, after = layer(x).detach().numpy(), layer(changed).detach().numpy()
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1), (3, 1, 1), (2, 3)], ids=str)
def test_cached_keys_give_the_same_output(pieces) -> None:
    layer = nn.MultiHeadAttention(8, 2, causal=True, dtype="float64")
    x = gg.random.normal(size=(2, 5, 8), dtype="float64")
    keys, values = [], []

    def remember(q, k, v):
        keys.append(k)
        values.append(v)
        return q, gg.concat(keys, axis=2), gg.concat(values, axis=2)

    with gg.no_grad():
        whole = layer(x).numpy()
        start, outs = 0, []
        for n in pieces:
            outs.append(layer(x[:, start : start + n], heads=remember).numpy())
            start += n
    np.testing.assert_allclose(np.concatenate(outs, 1), whole, atol=1e-13)


def test_heads_may_be_rotated() -> None:
    layer = nn.MultiHeadAttention(4, 2, dtype="float64")
    x = gg.random.normal(size=(1, 3, 4), dtype="float64")
    shapes = []

    def turn(q, k, v):
        shapes.extend(t.shape for t in (q, k, v))
        return -q, -k, v  # the same rotation of both leaves their products

    out = layer(x, heads=turn)
    assert shapes == [(1, 2, 3, 2)] * 3
    np.testing.assert_allclose(out.detach().numpy(), layer(x).detach().numpy(), atol=1e-14)


def test_dropout_acts_in_training_only() -> None:
    layer = nn.MultiHeadAttention(4, 2, dropout=0.5)
    x = gg.random.normal(size=(1, 9, 4))
    assert layer(x).tolist() != layer(x).tolist()
    layer.eval()
    assert layer(x).tolist() == layer(x).tolist()


def test_initial_values_are_pytorch_s() -> None:
    layer = nn.MultiHeadAttention(64, 4)
    assert not layer.in_proj.bias.any()
    assert not layer.out_proj.bias.any()
    bound = np.sqrt(6 / (64 + 192))
    assert 0.98 * bound < np.abs(layer.in_proj.weight.numpy()).max() <= bound
    assert np.abs(layer.out_proj.weight.numpy()).max() <= 1 / 8
    assert [name for name, _ in layer.named_parameters()] == [
        "in_proj.weight",
        "in_proj.bias",
        "out_proj.weight",
        "out_proj.bias",
    ]


@pytest.mark.parametrize("num_heads", [3, 0, 5])
def test_heads_must_divide(num_heads) -> None:
    with pytest.raises(ValueError, match=f"embed_dim 4 does not divide into {num_heads} heads"):
        nn.MultiHeadAttention(4, num_heads)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 3), (4,)], ids=str)
def test_wrong_shape_is_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"(?s)MultiHeadAttention\(.*\(B, T, 4\), got float32"):
        nn.MultiHeadAttention(4, 2)(gg.zeros(shape))
