from __future__ import annotations

import numpy as np
import pytest

from gpugrad.models import LogisticRegression, LogisticRegressionConfig
from gpugrad.optim import SGD


def drawn(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 3))
    p = 1 / (1 + np.exp(-(x @ [1.5, -2.0, 0.5] + 0.3)))
    return x, (random.random(n) < p).astype(int)


def fitted(steps: int = 500) -> tuple[LogisticRegression, np.ndarray, np.ndarray]:
    x, y = drawn()
    model = LogisticRegression(LogisticRegressionConfig(3, dtype="float64"))
    optimizer = SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
    return model, x, y


def test_gradient_is_probability_minus_class_times_input():
    x, y = drawn(7)
    model = LogisticRegression(LogisticRegressionConfig(3, dtype="float64"))
    model.load_state_dict(
        {"linear.weight": np.array([[0.1, -0.2, 0.3]]), "linear.bias": np.array([0.5])}
    )
    model.loss(x, y).backward()
    p = 1 / (1 + np.exp(-(x @ [0.1, -0.2, 0.3] + 0.5)))
    np.testing.assert_allclose(model.probabilities(x).detach().numpy(), p, rtol=1e-12)
    np.testing.assert_allclose(model.linear.weight.grad.numpy()[0], (p - y) @ x / 7, rtol=1e-10)
    np.testing.assert_allclose(model.linear.bias.grad.numpy()[0], (p - y).mean(), rtol=1e-10)


def test_reaches_the_maximum_likelihood_that_newtons_method_finds():
    model, x, y = fitted()
    design = np.column_stack([x, np.ones(len(x))])
    w = np.zeros(4)
    for _ in range(20):
        p = 1 / (1 + np.exp(-design @ w))
        w -= np.linalg.solve((design.T * (p * (1 - p))) @ design, design.T @ (p - y))
    found = [*model.linear.weight.tolist()[0], *model.linear.bias.tolist()]
    np.testing.assert_allclose(found, w, atol=1e-6)
    right = (model.predict(x).numpy() == y).mean()
    assert right == ((design @ w > 0) == y).mean() > 0.7


def test_starts_undecided_and_huge_scores_do_not_overflow():
    model = LogisticRegression(LogisticRegressionConfig(2))
    assert model.probabilities([[5.0, -3.0]]).tolist() == [0.5]
    model.load_state_dict({"linear.weight": [[1e4, 0.0]], "linear.bias": [0.0]})
    loss = model.loss([[1.0, 0.0], [-1.0, 0.0]], [1, 1])
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert np.isfinite(model.linear.weight.grad.numpy()).all()


def test_save_and_load(tmp_path):
    model, x, _ = fitted(3)
    model.save(tmp_path / "m")
    assert LogisticRegression.load(tmp_path / "m")(x).tolist() == model(x).tolist()


def test_errors():
    model = LogisticRegression(LogisticRegressionConfig(2))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2\), got float64\[3, 4\]"):
        model(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"input \(3,\) and target \(2,\) differ"):
        model.loss(np.zeros((3, 2)), [0, 1])
    with pytest.raises(ValueError, match="n_features must be an integer >= 1, got 0"):
        LogisticRegressionConfig(0)


@pytest.mark.parametrize("y", [[-1, 1, 1], [0, 1, 3], [0.0, 1.0, float("nan")]], ids=str)
def test_other_classes_are_refused(y):
    model = LogisticRegression(LogisticRegressionConfig(2))
    with pytest.raises(ValueError, match=r"classes must be 0 and 1, or .* got .* to "):
        model.loss(np.ones((3, 2)), y)
