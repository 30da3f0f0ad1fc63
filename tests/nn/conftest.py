from __future__ import annotations

from collections.abc import Callable

import pytest

import gpugrad as gg
from gpugrad import nn, testing


def _check(module: nn.Module, *inputs: gg.Tensor, order: int = 1) -> None:
    """Compare the gradients of all parameters and inputs with finite differences."""
    owners = dict(module.named_modules())
    names = [name for name, _ in module.named_parameters()]

    def run(*args: gg.Tensor) -> gg.Tensor | tuple[gg.Tensor, ...]:
        for name, value in zip(names, args, strict=False):
            owner, _, leaf = name.rpartition(".")
            vars(owners[owner])[leaf] = value
        return module(*args[len(names) :])

    args = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    args += [x.requires_grad_() if x.dtype == gg.float64 else x for x in inputs]
    check = testing.gradcheck if order == 1 else testing.gradgradcheck
    assert check(run, args)


@pytest.fixture
def check_gradients() -> Callable[..., None]:
    return _check
