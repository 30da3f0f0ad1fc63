"""gg.compile: a step without a backward pass says that gradients end at its results."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim

pytestmark = pytest.mark.usefixtures("launched")
ONES = np.ones((5, 3), np.float32)
WORDS = r"gg.compile: .* without a backward pass: its results have no graph"


def test_a_compiled_module_warns_once_for_each_recording():
    model = gg.compile(nn.Linear(3, 4))
    for given in (ONES, ONES[:2]):
        with pytest.warns(UserWarning, match="gg.compile: Linear is recorded") as caught:
            model(given)
        assert [one.filename for one in caught] == [__file__]
        model(given)
    assert model.recordings == 2


def test_the_error_of_a_backward_pass_from_its_result_names_it():
    with pytest.warns(UserWarning, match=WORDS):
        loss = gg.compile(nn.Linear(3, 1))(ONES[:1]).sum()
    with pytest.raises(RuntimeError, match=r"by a step of gg\.compile"):
        loss.backward()


@pytest.mark.parametrize("nest", [lambda y: [y], lambda y: (0, {"y": y}), lambda y: [[], (y,)]])
def test_results_in_containers(nest):
    model = nn.Linear(3, 4)
    with pytest.warns(UserWarning, match=WORDS):
        gg.compile(lambda x: nest(model(x)))(ONES)


def test_gradients_that_are_only_forgotten():
    model = nn.Linear(3, 4)

    def step(x):
        model.zero_grad()
        return model(x).sum()

    with pytest.warns(UserWarning, match=WORDS):
        gg.compile(step)(ONES)


def backward(model, optimizer, x):
    loss = model(x).sum()
    loss.backward()
    return loss, loss * 2


def backward_and_step(model, optimizer, x):
    loss = model(x).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def gradients(model, optimizer, x):
    loss = model(x).sum()
    return loss, *gg.grad(loss, [*model.parameters()])


def evaluation(model, optimizer, x):
    with gg.no_grad():
        return model(x)


def detached(model, optimizer, x):
    return model(x).detach()


def nothing(model, optimizer, x):
    model(x)


def an_argument(model, optimizer, x):
    return x * 2


@pytest.mark.parametrize(
    "step", [backward, backward_and_step, gradients, evaluation, detached, nothing, an_argument]
)
def test_a_step_whose_results_need_no_graph_is_silent(step):
    model = nn.Linear(3, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    run = gg.compile(lambda x: step(model, optimizer, x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            run(ONES)


def test_calls_under_no_grad_are_silent():
    model = gg.compile(nn.Linear(3, 4))
    with warnings.catch_warnings(), gg.no_grad():
        warnings.simplefilter("error")
        model(ONES)
