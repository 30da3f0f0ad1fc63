from __future__ import annotations

import inspect

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F

STREAM = "*, residual=None, paired=False"
ATTENTION = "attn_mask=None, dropout_p=0.0, is_causal=False, scale=None"
CLASSES = "ignore_index=-100, reduction='mean'"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (F.linear, "input, weight, bias=None"),
        (F.embedding, "input, weight, padding_idx=None"),
        (F.one_hot, "tensor, num_classes=-1"),
        (F.relu, "input"),
        (F.gelu, "input, approximate='none'"),
        (F.silu, "input"),
        (F.swiglu, "gate, input"),
        (F.sigmoid, "input"),
        (F.tanh, "input"),
        (F.softmax, "input, dim=None, dtype=None, *, axis=None"),
        (F.log_softmax, "input, dim=None, dtype=None, *, axis=None"),
        (F.dropout, "input, p=0.5, training=True"),
        (F.layer_norm, f"input, normalized_shape, weight=None, bias=None, eps=1e-05, {STREAM}"),
        (F.rms_norm, "input, normalized_shape, weight=None, eps=None, *, residual=None"),
        (
            F.scaled_dot_product_attention,
            f"query, key, value, {ATTENTION}, *, enable_gqa=False, offset=0",
        ),
        (
            F.cross_entropy,
            f"input, target, weight=None, *, {CLASSES}, label_smoothing=0.0",
        ),
        (F.nll_loss, f"input, target, weight=None, *, {CLASSES}"),
        (F.mse_loss, "input, target, *, reduction='mean'"),
        (
            F.binary_cross_entropy_with_logits,
            "input, target, weight=None, *, reduction='mean', pos_weight=None",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_are_pytorch_s(function, parameters) -> None:
    plain = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    assert str(inspect.Signature(plain)) == f"({parameters})"
    assert function.__name__ in F.__all__


def test_linear_weight_is_out_by_in() -> None:
    x, weight, bias = np.ones((2, 3)), np.arange(12.0).reshape(4, 3), np.ones(4)
    assert F.linear(x, weight, bias).tolist() == (x @ weight.T + 1).tolist()
    with pytest.raises(ValueError, match=r"linear: input \(2, 4\) and weight \(4, 3\)"):
        F.linear(np.ones((2, 4)), weight)
    with pytest.raises(ValueError, match=r"linear: bias \(3,\) and weight \(4, 3\)"):
        F.linear(x, weight, np.ones(3))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_axis_is_dim(name, axis) -> None:
    x, f = gg.random.normal(size=(2, 3, 4)), getattr(F, name)
    assert f(x, axis).tolist() == f(x, dim=axis).tolist() == f(x, axis=axis).tolist()
    total = f(x, axis) if name == "softmax" else gg.exp(f(x, axis))
    np.testing.assert_allclose(total.sum(axis=axis).numpy(), 1, rtol=1e-6)
    with pytest.raises(TypeError, match=f"{name}: dim and axis are two names"):
        f(x, dim=axis, axis=axis)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_dtype_is_converted_to_first(name) -> None:
    x = gg.random.normal(size=(5,), dtype="float16")
    out = getattr(F, name)(x, -1, "float64")
    assert out.dtype == gg.float64
    assert out.tolist() == getattr(F, name)(x.astype("float64")).tolist()


@pytest.mark.parametrize(
    ("classes", "count", "expected"),
    [
        ([1, 2], -1, [[0, 1, 0], [0, 0, 1]]),
        ([[0], [1]], 2, [[[1, 0]], [[0, 1]]]),
        (1, 3, [0, 1, 0]),
        ([], 2, []),
    ],
    ids=["counted", "given", "scalar", "empty"],
)
def test_one_hot(classes, count, expected) -> None:
    out = F.one_hot(np.array(classes, np.int64), count)
    assert out.dtype == gg.int64
    assert out.tolist() == expected


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint64"])
def test_one_hot_of_narrow_ids(dtype) -> None:
    out = F.one_hot(np.array([3, 0, 127], dtype), 70_000)
    assert [row.nonzero()[0].tolist() for row in out.numpy()] == [[3], [0], [127]]


@pytest.mark.parametrize(
    ("classes", "count", "error", "message"),
    [
        (np.array([0, 3]), 3, IndexError, r"tensor\[1\] is 3, .* \[0, 3\)"),
        (np.array([0, -1]), -1, IndexError, r"tensor\[1\] is -1, .* \[0, 1\)"),
        (np.array([0.5]), 2, TypeError, "must be integer ids, got float64"),
        (np.zeros(0, int), -1, ValueError, "give num_classes"),
        (np.array([0, 3]), -3, ValueError, "num_classes must be >= 0, or -1 to infer, got -3"),
        (np.array([0, 3]), 4.5, TypeError, "integer"),
    ],
    ids=["too-large", "negative", "float", "empty", "count-negative", "count-float"],
)
def test_one_hot_refuses(classes, count, error, message) -> None:
    with pytest.raises(error, match=f"one_hot: .*{message}"):
        F.one_hot(classes, count)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_normalisation_refuses_a_weight_in_the_place_of_the_shape(name) -> None:
    for weight in (gg.ones(4), np.ones(4)):
        with pytest.raises(TypeError, match=rf"{name}: normalized_shape is .*\[4\]; pass weight="):
            getattr(F, name)(gg.ones((3, 4)), weight)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_normalisation_names_what_does_not_fit(name) -> None:
    f = getattr(F, name)
    with pytest.raises(ValueError, match=rf"{name}: the shape of input, \(2, 3\), .* \(4,\)"):
        f(gg.zeros(2, 3), 4)
    with pytest.raises(ValueError, match=rf"{name}: weight has shape \(2,\), expected \(3,\)"):
        f(gg.zeros(2, 3), (3,), gg.ones(2))
    with pytest.raises(ValueError, match=rf"{name}: residual has shape \(3,\), .*\(2, 3\)"):
        f(gg.zeros(2, 3), (3,), residual=gg.ones(3))


def test_attention_passes_everything_on() -> None:
    q, k, v = (gg.random.normal(size=(2, 3, 4), dtype="float64") for _ in range(3))
    scores = q.numpy() @ k.numpy().swapaxes(-1, -2) * 0.3
    scores = np.where(np.tri(3, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v.numpy()
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-14)
    masked = F.scaled_dot_product_attention(q, k, v, np.tri(3, dtype=bool), scale=0.3)
    np.testing.assert_allclose(masked.numpy(), expected, atol=1e-14)
    last = F.scaled_dot_product_attention(q[:, 1:], k, v, is_causal=True, scale=0.3, offset=1)
    np.testing.assert_allclose(last.numpy(), expected[:, 1:], atol=1e-14)


def test_dropout_out_of_training_is_the_input() -> None:
    x = gg.random.normal(size=(9,))
    assert F.dropout(x, 0.5, False).tolist() == x.tolist()
    assert F.dropout(x, 1.0).tolist() == [0.0] * 9
