from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import emulator, nn, testing

REDUCTIONS = ["none", "sum", "mean"]
LAYOUTS = [(7,), (4, 7), (2, 7, 3), (2, 7, 3, 2)]  # of C = 7 classes


def label_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) == 1 else (shape[0], *shape[2:])


def rows(x: np.ndarray) -> np.ndarray:
    """(N, C, d1, ...) as (N * d1 * ..., C)."""
    return (x if x.ndim == 1 else np.moveaxis(x, 1, -1)).reshape(-1, 7)


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def reduced(losses: np.ndarray, weights: np.ndarray, shape: tuple[int, ...], reduction: str):
    if reduction == "none":
        return losses.reshape(label_shape(shape))
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


def labels(shape: tuple[int, ...]) -> np.ndarray:
    target = gg.random.integers(0, 7, size=label_shape(shape)).numpy().copy()
    if target.size > 1:
        target.flat[1] = -100
    return target


def normal(shape: tuple[int, ...], scale: float = 1.0) -> gg.Tensor:
    return gg.random.normal(scale=scale, size=shape, dtype="float64", requires_grad=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_class_numbers(name, shape, weighted, reduction) -> None:
    x, target = normal(shape), labels(shape)
    weight = gg.random.uniform(0.5, 2.0, size=7, dtype="float64") if weighted else None
    flat, wanted = rows(x.detach().numpy()), target.reshape(-1)
    flat = log_softmax(flat) if name == "cross_entropy" else flat
    valid = wanted >= 0
    known = np.where(valid, wanted, 0)
    weights = valid * (weight.numpy()[known] if weighted else 1.0)
    expected = reduced(-flat[np.arange(len(flat)), known] * weights, weights, shape, reduction)

    def loss(x: gg.Tensor) -> gg.Tensor:
        return getattr(F, name)(x, target, weight, reduction=reduction)

    np.testing.assert_allclose(loss(x).detach().numpy(), expected, atol=1e-13)
    assert testing.gradcheck(loss, x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_probabilities(shape, reduction) -> None:
    x = normal(shape)
    axis = 0 if len(shape) == 1 else 1
    target = np.exp(normal(shape).detach().numpy())
    target /= target.sum(axis, keepdims=True)
    losses = -(log_softmax(rows(x.detach().numpy())) * rows(target)).sum(-1)
    expected = reduced(losses, np.ones(len(losses)), shape, reduction)

    def loss(x: gg.Tensor) -> gg.Tensor:
        return F.cross_entropy(x, target, reduction=reduction)

    np.testing.assert_allclose(loss(x).detach().numpy(), expected, atol=1e-13)
    assert testing.gradcheck(loss, x)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_label_smoothing_mixes_with_uniform(shape) -> None:
    x, target = normal(shape), np.abs(labels(shape)) % 7
    axis = 0 if len(shape) == 1 else 1
    one_hot = np.moveaxis(np.eye(7)[target], -1, axis)
    smooth = F.cross_entropy(x, target, label_smoothing=0.3).item()
    mixed = F.cross_entropy(x, 0.7 * one_hot + 0.3 / 7).item()
    assert abs(smooth - mixed) < 1e-13


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_other_ignore_index(name) -> None:
    x = normal((3, 7))
    full, part = np.array([1, 6, 2]), np.array([1, 2])
    expected = getattr(F, name)(x[np.array([0, 2])], part)
    actual = getattr(F, name)(x, full, ignore_index=6)
    assert abs(actual.item() - expected.item()) < 1e-14


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_nothing_to_learn_from_is_nan_and_changes_nothing(name) -> None:
    x = normal((2, 7))
    loss = getattr(F, name)
    assert math.isnan(loss(x, np.array([-100, -100])).item())
    total = loss(x, np.array([-100, -100]), reduction="sum")
    total.backward()
    assert total.item() == 0
    assert not x.grad.any()
    assert loss(gg.zeros(0, 7), np.zeros(0, int), reduction="none").shape == (0,)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64"])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_class_numbers_of_any_integer_dtype(name, dtype) -> None:
    x, target = normal((3, 300)), gg.tensor([0, 127, 5])
    loss = getattr(F, name)(x, target.astype(dtype), ignore_index=5)
    assert loss.item() == getattr(F, name)(x, target, ignore_index=5).item()
    assert math.isfinite(getattr(F, name)(x, target.astype(dtype)).item())


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_more_targets_than_half_precision_counts(name, dtype) -> None:
    x = gg.full((70_000, 2), -1.0, dtype=dtype, requires_grad=True)
    loss = getattr(F, name)(x, np.zeros(70_000, np.uint8))
    loss.backward()
    assert (loss.dtype, x.grad.dtype) == (gg.float32, dtype)
    assert abs(loss.item() - (math.log(2) if name == "cross_entropy" else 1.0)) < 1e-6


def test_ignored_row_may_hold_infinities() -> None:
    x = gg.tensor([[0.0, -math.inf], [-1.0, -2.0]], requires_grad=True)
    loss = F.nll_loss(x, gg.tensor([-100, 1]))
    loss.backward()
    assert loss.item() == 2
    assert x.grad.tolist() == [[0, 0], [0, -1]]


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("bad", [7, -1])
def test_unknown_class_is_refused(name, bad) -> None:
    with pytest.raises(IndexError, match=rf"{name}: .*{bad}\b"):
        getattr(F, name)(gg.zeros(2, 7), gg.tensor([0, bad]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bad", [7, -1])
def test_unknown_class_that_nobody_checked_gives_nan(bad, reduction, monkeypatch) -> None:
    monkeypatch.setattr(nn.loss, "refuse_out_of_range", lambda *given: None)
    x, target = normal((4, 7)), gg.tensor([0, bad, -100, 6])
    losses = F.nll_loss(x, target, reduction=reduction)
    losses.sum().backward()
    rows = [False, True, False, False]
    assert np.isnan(losses.data).tolist() == (rows if reduction == "none" else True)
    assert np.isnan(x.grad.data).any(1).tolist() == rows


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("shape", "target"),
    [((4, 7), (3,)), ((4, 7), (4, 1)), ((2, 7, 3), (2, 7)), ((), ()), ((7,), (7,))],
    ids=str,
)
def test_shapes_that_do_not_fit_are_named(name, shape, target) -> None:
    x, y = gg.zeros(shape), gg.zeros(target, dtype="int64")
    with pytest.raises(ValueError, match=rf"{name}: input float32\[.*target int64\["):
        getattr(F, name)(x, y)


def test_nll_loss_needs_class_numbers() -> None:
    with pytest.raises(TypeError, match="target must be integer ids, got float32"):
        F.nll_loss(gg.zeros(2, 7), gg.zeros(2, 7))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\)"):
        F.nll_loss(gg.zeros(2, 7), gg.tensor([0, 1]), gg.ones(3))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_mse(shape, reduction) -> None:
    x, y = normal(shape), normal(shape)
    squares = (x.detach().numpy() - y.detach().numpy()) ** 2
    expected = squares if reduction == "none" else getattr(squares, reduction)()

    def loss(x: gg.Tensor, y: gg.Tensor) -> gg.Tensor:
        return F.mse_loss(x, y, reduction=reduction)

    np.testing.assert_allclose(loss(x, y).detach().numpy(), expected, atol=1e-15)
    assert testing.gradcheck(loss, [x, y])


@pytest.mark.parametrize("kernels", [False, True], ids=["numpy", "emulated"])
@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy_with_logits", "dpo_loss"])
def test_half_precision_is_computed_in_float32(name, reduction, dtype, kernels) -> None:
    count = 4 if name == "dpo_loss" else 2
    given = [gg.random.uniform(0, 400, (33,)).astype(dtype).requires_grad_() for _ in range(count)]
    with emulator.enabled("plain") if kernels else contextlib.nullcontext():
        loss = getattr(F, name)(*given, reduction=reduction)
        loss.sum().backward()
    exact = [x.detach().astype("float64").requires_grad_() for x in given]
    expected = getattr(F, name)(*exact, reduction=reduction)
    expected.sum().backward()
    assert loss.dtype == gg.float32
    np.testing.assert_allclose(loss.data, expected.data, rtol=1e-5)
    for x, wide in zip(given, exact, strict=True):
        assert x.grad.dtype == dtype
        rounding = 2.0**-10 if dtype == gg.float16 else 2.0**-7
        np.testing.assert_allclose(x.grad.numpy().astype("f8"), wide.grad.data, rounding, 1e-7)


@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy_with_logits"])
def test_broadcasting_targets_is_refused(name) -> None:
    with pytest.raises(ValueError, match=rf"{name}: input \(3, 1\) and target \(3,\)"):
        getattr(F, name)(gg.zeros(3, 1), gg.zeros(3))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos_weight", [None, (3,), ()], ids=str)
@pytest.mark.parametrize("weight", [None, (3,), (2, 3)], ids=str)
def test_binary_cross_entropy(weight, pos_weight, reduction) -> None:
    x, y = normal((2, 3)), gg.random.uniform(size=(2, 3), dtype="float64")
    w, p = (
        None if s is None else gg.random.uniform(0.5, 2.0, size=s, dtype="float64")
        for s in (weight, pos_weight)
    )
    s = 1 / (1 + np.exp(-x.detach().numpy()))
    positive = y.numpy() * (1 if p is None else p.numpy())
    losses = -(positive * np.log(s) + (1 - y.numpy()) * np.log(1 - s))
    losses = losses * (1 if w is None else w.numpy())
    expected = losses if reduction == "none" else getattr(losses, reduction)()

    def loss(x: gg.Tensor) -> gg.Tensor:
        return F.binary_cross_entropy_with_logits(x, y, w, reduction=reduction, pos_weight=p)

    np.testing.assert_allclose(loss(x).detach().numpy(), expected, atol=1e-13)
    assert testing.gradcheck(loss, x)


@pytest.mark.parametrize(
    ("x", "y", "loss", "g"),
    [
        (1000.0, 1.0, 0.0, 0.0),
        (1000.0, 0.0, 1000.0, 1.0),
        (-1000.0, 0.0, 0.0, 0.0),
        (-1000.0, 1.0, 1000.0, -1.0),
        (-20.0, 0.0, math.log1p(math.exp(-20)), 1 / (1 + math.exp(20))),
    ],
)
def test_binary_cross_entropy_of_huge_scores(x, y, loss, g) -> None:
    score = gg.tensor([x], requires_grad=True)
    out = F.binary_cross_entropy_with_logits(score, gg.tensor([y]))
    out.backward()
    np.testing.assert_allclose(out.item(), loss, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(score.grad.item(), g, rtol=1e-5)


X, CLASSES = np.linspace(-1, 1, 12).reshape(4, 3), np.array([0, 2, 1, 2])
WEIGHT = np.array([1.0, 2.0, 0.5])


@pytest.mark.parametrize(
    ("module", "function", "target"),
    [
        (nn.CrossEntropyLoss(), lambda x, y: F.cross_entropy(x, y), CLASSES),
        (
            nn.CrossEntropyLoss(WEIGHT, ignore_index=1, reduction="sum", label_smoothing=0.1),
            lambda x, y: F.cross_entropy(
                x, y, WEIGHT, ignore_index=1, reduction="sum", label_smoothing=0.1
            ),
            CLASSES,
        ),
        (
            nn.NLLLoss(WEIGHT, ignore_index=2, reduction="none"),
            lambda x, y: F.nll_loss(x, y, WEIGHT, ignore_index=2, reduction="none"),
            CLASSES,
        ),
        (nn.MSELoss(reduction="sum"), lambda x, y: F.mse_loss(x, y, reduction="sum"), X**2),
        (
            nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT),
            lambda x, y: F.binary_cross_entropy_with_logits(x, y, WEIGHT, pos_weight=WEIGHT),
            X**2,
        ),
    ],
    ids=["CrossEntropy", "CrossEntropy-all", "NLL", "MSE", "BCEWithLogits"],
)
def test_modules_call_their_functions(module, function, target) -> None:
    assert module(X, target).tolist() == function(X, target).tolist()


def test_weights_are_buffers() -> None:
    loss = nn.BCEWithLogitsLoss(np.ones(3), pos_weight=np.ones(3)).to(gg.float16)
    assert {name: b.dtype.name for name, b in loss.named_buffers()} == {
        "weight": "float16",
        "pos_weight": "float16",
    }
    assert list(nn.CrossEntropyLoss().state_dict()) == []


@pytest.mark.parametrize("module", [nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss])
def test_unknown_reduction_is_refused(module) -> None:
    with pytest.raises(ValueError, match=f"{module.__name__}: reduction must be .* got 'avg'"):
        module(reduction="avg")


@pytest.mark.parametrize("smoothing", [-1, 1.5, math.nan])
def test_label_smoothing_is_refused_when_the_module_is_made(smoothing) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\], got"):
        nn.CrossEntropyLoss(label_smoothing=smoothing)
