from __future__ import annotations

import copy

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def test_is_a_leaf_that_requires_grad() -> None:
    parameter = nn.Parameter(gg.ones(2, 3))
    assert isinstance(parameter, gg.Tensor)
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert not nn.Parameter(gg.ones(2), requires_grad=False).requires_grad


def test_shares_memory_with_its_array() -> None:
    array = np.zeros(3, np.float32)
    parameter = nn.Parameter(array)
    array[1] = 5
    assert parameter.tolist() == [0, 5, 0]


@pytest.mark.parametrize(
    "operation",
    [lambda p: p + 1, lambda p: p[0], lambda p: p.T, lambda p: p.detach(), lambda p: p.sum()],
    ids=["add", "index", "transpose", "detach", "sum"],
)
def test_results_are_plain_tensors(operation) -> None:
    assert type(operation(nn.Parameter(gg.ones(2, 3)))) is gg.Tensor


def test_gradient_is_a_plain_tensor() -> None:
    parameter = nn.Parameter(gg.ones(3))
    (parameter * 2).sum().backward()
    assert type(parameter.grad) is gg.Tensor
    assert parameter.grad.tolist() == [2, 2, 2]


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        nn.Parameter(gg.arange(3))
    assert nn.Parameter(gg.arange(3), requires_grad=False).dtype == gg.int64


def test_deep_copy_is_a_parameter_of_its_own() -> None:
    parameter = nn.Parameter(gg.ones(3))
    copied = copy.deepcopy(parameter)
    with gg.no_grad():
        copied.zero_()
    assert type(copied) is nn.Parameter
    assert copied.requires_grad
    assert parameter.tolist() == [1, 1, 1]


def test_repr_says_what_it_is() -> None:
    assert repr(nn.Parameter(gg.ones(2))).startswith("Parameter containing:\ntensor([1., 1.]")
