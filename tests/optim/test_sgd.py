from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.optim import SGD


def reference(x, gradients, lr, momentum, dampening, weight_decay, nesterov):
    """PyTorch's documented algorithm, step by step in float64."""
    x = np.array(x, np.float64)
    buffer = None
    for g in gradients:
        d = g + weight_decay * x
        if momentum:
            buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
            d = d + momentum * buffer if nesterov else buffer
        x = x - lr * d
    return x


@pytest.mark.parametrize("weight_decay", [0.0, 0.25], ids=["plain", "decay"])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.0, True), (0.5, 0.3, False)],
    ids=["sgd", "momentum", "nesterov", "dampened"],
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1023,), (33, 65)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 2e-6)])
def test_follows_the_formula(
    shape, momentum, dampening, nesterov, weight_decay, dtype, tolerance
) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=shape).astype(dtype)
    gradients = [rng.normal(size=shape).astype(dtype) for _ in range(4)]
    settings = {
        "lr": 0.1,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
    }
    parameter = gg.tensor(x, requires_grad=True)
    optimizer = SGD([parameter], **settings)
    for g in gradients:
        parameter.grad = gg.tensor(g)
        optimizer.step()
        np.testing.assert_array_equal(parameter.grad.numpy(), g)
    expected = reference(x, gradients, **settings)
    np.testing.assert_allclose(parameter.numpy(), expected, rtol=tolerance, atol=tolerance)
    assert parameter.dtype == dtype


def test_minimises_a_quadratic() -> None:
    x = gg.tensor([3.0, -2.0], requires_grad=True)
    optimizer = SGD([x], lr=0.1, momentum=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        (x * x).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(x.numpy(), 0, atol=1e-6)


def test_momentum_can_be_switched_on_later() -> None:
    x = gg.zeros(1, dtype="float64").requires_grad_()
    optimizer = SGD([x], lr=1.0)
    for momentum in (0.0, 0.5, 0.5):
        optimizer.param_groups[0]["momentum"] = momentum
        x.grad = gg.ones(1, dtype="float64")
        optimizer.step()
    assert x.item() == -(1 + 1 + 1.5)


@pytest.mark.parametrize("first", [0.0, 0.25])
@pytest.mark.parametrize("saved_after", range(6))
def test_a_state_saved_around_a_change_of_momentum_goes_on(saved_after: int, first: float) -> None:
    """Set after a step, momentum has or needs an array that the step before it had not."""

    def run(resumed: bool) -> list[float]:
        x = gg.zeros(2, dtype="float64").requires_grad_()
        optimizer = SGD([x], lr=0.5, momentum=first)
        for i, momentum in enumerate((0.5, 0.0, 0.0, 0.75, 0.0, 0.9)):
            x.grad = gg.tensor([1.0, -3.0 + i], "float64")
            optimizer.step()
            optimizer.param_groups[0]["momentum"] = momentum
            if resumed and i == saved_after:
                state = optimizer.state_dict()
                optimizer = SGD([x], lr=9.0)
                optimizer.load_state_dict(state)
                assert optimizer.state_dict()["state"]["0"].keys() == state["state"]["0"].keys()
        x.grad = gg.ones(2, dtype="float64")
        optimizer.step()
        return x.tolist()

    assert run(resumed=True) == run(resumed=False)


def test_without_momentum_there_is_no_state() -> None:
    x = gg.ones(3).requires_grad_()
    x.grad = gg.ones(3)
    optimizer = SGD([x])
    optimizer.step()
    assert optimizer.state_dict()["state"] == {"0": {"step": 1}}


def test_defaults_are_pytorchs() -> None:
    assert SGD([gg.ones(1).requires_grad_()]).defaults == {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr must be a number >= 0, got -0.1"),
        ({"momentum": -0.9}, "momentum must be"),
        ({"weight_decay": float("inf")}, "weight_decay must be"),
        ({"nesterov": True}, "nesterov needs momentum > 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs"),
    ],
    ids=str,
)
def test_refuses_settings(settings, message) -> None:
    with pytest.raises(ValueError, match=f"SGD: {message}"):
        SGD([gg.ones(2).requires_grad_()], **settings)
