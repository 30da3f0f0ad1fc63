"""Cross-entropy: both kinds of target, weights, smoothing, reductions, extreme logits, errors."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import FUSED, cross_entropy

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(1, 1), (3, 1), (13,), (7, 13), (2, 3, 5), (5, 1023), (2, 65537), (0, 4)]
REDUCTIONS = ["none", "sum", "mean"]
KINDS = ["ids", "ignored", "probabilities"]
WEIGHT = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.1, 1.0])


def logits(shape, spread=3.0, seed=0):
    return gg.Tensor(np.random.default_rng(seed).normal(0, spread, shape), requires_grad=True)


def targets(kind, shape, seed=1):
    rng = np.random.default_rng(seed)
    if kind == "probabilities":
        p = rng.random(shape) ** 4
        return p / p.sum(-1, keepdims=True)
    ids = rng.integers(0, shape[-1], shape[:-1])
    return np.where(rng.random(shape[:-1]) < 0.4, -100, ids) if kind == "ignored" else ids


def by_hand(x, target, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """Return the loss as PyTorch documents it, one row after the other, exactly summed."""
    classes = x.shape[-1]
    w = np.ones(classes) if weight is None else weight
    losses, count = np.zeros(x.shape[:-1]), 0.0
    for row in np.ndindex(x.shape[:-1]):
        if target.dtype.kind == "i":
            if target[row] == ignore_index:
                continue
            t = np.eye(classes)[target[row]]
            count += w[target[row]]
        else:
            t = target[row]
            count += 1
        shifted = x[row] - x[row].max()
        log_p = shifted - math.log(math.fsum(np.exp(shifted)))
        losses[row] = -math.fsum(
            w * ((1 - label_smoothing) * t + label_smoothing / classes) * log_p
        )
    if reduction == "none":
        return losses
    return losses.sum() / (count if reduction == "mean" else 1)


def obeys_the_tolerance_rule(x, target, dtype, weight=None, scale=0.0, **statics):
    """Check value and gradient against the spec, that nothing warns, and that bits repeat."""
    statics = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean", **statics}

    def spec(x):
        wide = "float64" if x.dtype == gg.float64 else "float32"
        t = target if target.dtype.kind == "i" else target.astype(wide)
        w = None if weight is None else gg.Tensor(weight.astype(wide))
        return FUSED["cross_entropy"].spec(x, gg.Tensor(t), w, **statics)

    fast = functools.partial(cross_entropy, target=target, weight=weight, **statics)
    with np.errstate(all="raise", under="ignore"):
        fast(x.astype(dtype))
    scale = 1e3 if dtype == "float64" else scale  # the float64 spec is its own reference
    testing.assert_implements(fast, spec, [x], dtype, scale=scale)
    assert bits(fast, x, dtype) == bits(fast, x, dtype)


def bits(function, x, dtype):
    t = gg.Tensor(x.data.astype(dtype), requires_grad=True)
    out = function(t)
    out.backward(gg.Tensor(np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype)))
    return out.data.tobytes() + t.grad.data.tobytes()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_by_hand(kind, weight, smoothing, reduction):
    x = logits((2, 3, 7))
    target = targets(kind, x.shape)
    given = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    out = cross_entropy(x, target, **given)
    np.testing.assert_allclose(out.data, by_hand(x.data, target, **given), rtol=1e-13, atol=1e-13)
    testing.gradcheck(lambda x: cross_entropy(x, target, **given), [x])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_dtypes(shape, kind, dtype):
    obeys_the_tolerance_rule(logits(shape), targets(kind, shape), dtype, reduction="none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_smoothing_and_reductions(kind, reduction, dtype):
    x = logits((37, 7))
    given = {"weight": WEIGHT, "label_smoothing": 0.1, "reduction": reduction}
    given["scale"] = 0.0 if reduction == "none" else 5.0  # of a loss: one sum is exact by luck
    obeys_the_tolerance_rule(x, targets(kind, x.shape), dtype, **given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [1e-6, 30.0, 1e4, 1e30])
def test_small_and_huge_logits(spread, kind):
    x = logits((5, 37), spread)
    obeys_the_tolerance_rule(x, targets(kind, x.shape), "float32", reduction="none")


def test_the_largest_numbers_do_not_overflow():
    x = gg.tensor([[3e38, -3e38], [1e4, 1e4 - 1]], requires_grad=True)
    out = cross_entropy(x, [0, 1], reduction="none")
    np.testing.assert_allclose(out.data, [0, math.log1p(math.e)], rtol=1e-6)
    out.sum().backward()
    p = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(x.grad.data, [[0, 0], [p, -p]], rtol=1e-6)


def test_the_implementation_is_launched_once(launching):
    x = logits((3, 5))
    with launching("cross_entropy"):
        cross_entropy(x, [0, 1, 2]).backward()
    with launching("cross_entropy", times=0):  # a gradient of the target is for the spec
        cross_entropy(x, gg.Tensor(targets("probabilities", (3, 5)), requires_grad=True))


@pytest.mark.parametrize("kind", KINDS)
def test_upstream_gradients_count_row_by_row(kind):
    x = logits((3, 4, 7))
    target = targets(kind, x.shape)
    upstream = np.random.default_rng(2).standard_normal((3, 4))
    upstream[1] = 0
    (whole,) = gg.grad(cross_entropy(x, target, reduction="none"), x, gg.Tensor(np.ones((3, 4))))
    (scaled,) = gg.grad(cross_entropy(x, target, reduction="none"), x, gg.Tensor(upstream))
    np.testing.assert_allclose(scaled.data, whole.data * upstream[..., None], rtol=1e-14)
    assert (scaled.data[1] == 0).all()


def test_gradient_is_softmax_minus_target():
    x = logits((6, 9))
    target = targets("ids", x.shape)
    cross_entropy(x, target, reduction="sum").backward()
    expected = gg.fused.softmax(x).data - np.eye(9)[target]
    np.testing.assert_allclose(x.grad.data, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivative(kind, smoothing):
    target = targets(kind, (2, 7))
    given = {"weight": WEIGHT, "label_smoothing": smoothing}
    testing.gradgradcheck(lambda x: cross_entropy(x, target, **given), [logits((2, 7), 1.0)])


def test_targets_and_weights_have_gradients_too():
    x, p = logits((4, 7)), gg.Tensor(targets("probabilities", (4, 7)), requires_grad=True)
    w = gg.Tensor(WEIGHT, requires_grad=True)
    testing.gradcheck(lambda x, p, w: cross_entropy(x, p, w, label_smoothing=0.1), [x, p, w])
    testing.gradcheck(lambda x, w: cross_entropy(x, np.array([1, 0, 3, -100]), w), [x, w])


# Conventions


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["equal", "weighted"])
@pytest.mark.parametrize(("reduction", "expected"), [("mean", math.nan), ("sum", 0.0)])
def test_all_ignored_is_nan_in_the_mean_with_gradient_zero(reduction, expected, weight):
    x = logits((3, 7))
    loss = cross_entropy(x, np.full(3, -100), weight, reduction=reduction)
    np.testing.assert_array_equal(loss.data, expected)
    loss.backward()
    assert (x.grad.data == 0).all()


@pytest.mark.parametrize("kind", ["ids", "probabilities"])
@pytest.mark.parametrize(("reduction", "expected"), [("mean", math.nan), ("sum", 0.0)])
def test_no_rows(reduction, expected, kind):
    x = logits((0, 7))
    loss = cross_entropy(x, targets(kind, (0, 7)), reduction=reduction)
    np.testing.assert_array_equal(loss.data, expected)
    loss.backward()
    assert x.grad.shape == (0, 7)


def test_an_ignored_row_contributes_nothing_whatever_it_holds():
    x = np.random.default_rng(0).standard_normal((4, 5))
    expected = cross_entropy(x[:2], [3, 1]).item()
    x[2:] = [[math.nan] * 5, [math.inf] * 5]
    for create_graph in (False, True):
        t = gg.Tensor(x, requires_grad=True)
        loss = cross_entropy(t, [3, 1, -100, -100])
        assert loss.item() == pytest.approx(expected, rel=1e-15)
        (g,) = gg.grad(loss, t, create_graph=create_graph)
        assert (g.data[2:] == 0).all()
        assert np.isfinite(g.data).all()


def test_ignore_index_may_be_a_class():
    x = logits((3, 5))
    loss = cross_entropy(x, [2, 0, 2], ignore_index=2, reduction="none")
    assert (loss.data[[0, 2]] == 0).all()
    assert loss.data[1] > 0


@pytest.mark.parametrize("kind", ["ids", "probabilities"])
def test_classes_masked_with_minus_infinity(kind):
    x = np.random.default_rng(0).standard_normal((3, 6))
    masked = x.copy()
    masked[:, 4:] = -math.inf
    target = np.array([0, 3, 1]) if kind == "ids" else np.eye(6)[[0, 3, 1]]
    a, b = (gg.Tensor(v, requires_grad=True) for v in (masked, x[:, :4]))
    loss = cross_entropy(a, target)
    loss.backward()
    cut = cross_entropy(b, target if kind == "ids" else target[:, :4])
    cut.backward()
    np.testing.assert_allclose(loss.data, cut.data, rtol=1e-15)
    np.testing.assert_allclose(a.grad.data[:, :4], b.grad.data, rtol=1e-13, atol=1e-16)
    assert (a.grad.data[:, 4:] == 0).all()


def test_a_masked_class_without_weight_costs_nothing():
    x = gg.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, 2.0]], requires_grad=True)
    loss = cross_entropy(x, [0, 1], [1.0, 1.0, 0.0], label_smoothing=0.3, reduction="none")
    loss.sum().backward()
    assert np.isfinite(loss.data).all()
    assert np.isfinite(x.grad.data).all()


def test_an_impossible_target_costs_infinity():
    x = gg.tensor([[0.0, -math.inf], [-math.inf, -math.inf]], requires_grad=True)
    loss = cross_entropy(x, [1, 0], reduction="none")
    np.testing.assert_array_equal(loss.data, [math.inf, math.inf])
    loss.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[1, -1], [-1, 0]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["ids", "probabilities"])
def test_nan_and_infinity_spoil_their_row_only(kind, bad):
    x = logits((3, 7))
    x.data[1, 2] = bad
    loss = cross_entropy(x, targets(kind, (3, 7)), reduction="none")
    loss.sum().backward()
    assert np.isnan(loss.data).tolist() == [False, True, False]
    assert np.isfinite(x.grad.data[[0, 2]]).all()
    assert np.isnan(x.grad.data[1]).all()


def test_the_loss_of_reduced_precision_is_float32():
    x = logits((3, 5))
    for dtype in ("float16", "bfloat16"):
        half = gg.Tensor(x.data.astype(dtype), requires_grad=True)
        loss = cross_entropy(half, [0, 1, 2])
        loss.backward()
        assert loss.dtype == gg.float32
        assert half.grad.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint64"])
def test_ids_of_any_integer_dtype(dtype):
    x, target = logits((5, 7)), targets("ids", (5, 7))
    a, b = (cross_entropy(x, t) for t in (target, target.astype(dtype)))
    assert a.item() == b.item()
    a, b = (gg.grad(loss, x)[0].data for loss in (a, b))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_layout_does_not_change_a_bit(kind, layout):
    x, target = logits((4, 5, 7)).data, targets(kind, (4, 5, 7))
    results = []
    for name in ("contiguous", layout):
        t = gg.Tensor(dict(testing.layouts(x))[name], requires_grad=True)
        loss = cross_entropy(t, dict(testing.layouts(target))[name])
        loss.backward()
        results.append(loss.data.tobytes() + t.grad.data.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_threads_change_no_bit(kind, splits):
    x = logits((100, 19))
    target = targets(kind, x.shape)
    results = []
    for _ in splits:
        results.append(bits(functools.partial(cross_entropy, target=target), x, "float32"))
    assert all(r == results[0] for r in results)


# Errors


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([[0, 5, 1]], r"target\[0, 1\] is 5, but the number of classes is 5: .* \[0, 5\)"),
        ([[0, 1, -1]], r"target\[0, 2\] is -1, .* or ignore_index=-100"),
    ],
)
def test_an_id_out_of_range_is_refused_with_its_position(target, message):
    with pytest.raises(IndexError, match=message):
        cross_entropy(logits((1, 3, 5)), target)


@pytest.mark.parametrize(
    ("x", "target", "given", "error", "message"),
    [
        (np.ones((2, 3), int), [0, 1], {}, TypeError, "logits must be floating, got int64"),
        (np.ones((2, 3)), [True, False], {}, TypeError, r"integer ids, got bool\[2\]"),
        (np.ones((2, 3)), [0, 1, 2], {}, ValueError, r"shape \(3,\), but logits \(2, 3\)"),
        (np.ones((2, 3)), [0.5, 0.5], {}, ValueError, "float32.2. holds probabilities"),
        (np.ones((2, 3)), [[0, 1, 0]] * 2, {}, ValueError, r"ids have shape \(2, 3\)"),
        (np.ones(()), 0, {}, ValueError, "no classes"),
        (np.ones((2, 0)), [0, 0], {}, ValueError, "no classes"),
        (np.ones((2, 3)), [0, 1], {"weight": [1.0, 2.0]}, ValueError, "weight .* 3 classes"),
        (np.ones((2, 3)), [0, 1], {"weight": [1, 2, 3]}, ValueError, "weight must be floating"),
        (np.ones((2, 3)), [0, 1], {"reduction": "max"}, ValueError, "got 'max'"),
        (np.ones((2, 3)), [0, 1], {"label_smoothing": 1.5}, ValueError, "got 1.5"),
        (np.ones((2, 3)), np.ones((2, 3)), {"ignore_index": 1}, ValueError, "ignore_index=1"),
    ],
)
def test_bad_arguments(x, target, given, error, message):
    with pytest.raises(error, match=f"cross_entropy: .*{message}"):
        cross_entropy(x, target, **given)
