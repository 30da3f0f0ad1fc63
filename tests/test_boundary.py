"""Errors at the edge of the package: named there, and left alone where they are somebody else's."""

from __future__ import annotations

from typing import Any

import pytest

import gpugrad as gg


def test_an_error_from_within_says_what_was_called_with_what() -> None:
    with pytest.raises(TypeError, match=r"^layer_norm: .*float32\[2, 3\]"):
        gg.nn.functional.layer_norm(gg.ones((2, 3)), object())  # type: ignore[arg-type]


class Missing(gg.nn.Module):
    def forward(self, x: Any) -> Any:
        return {}["missing"]


class Own(Exception):
    """Of the caller's module."""


@pytest.mark.parametrize("error", [KeyError("k"), AttributeError("a"), Own("o"), ValueError("v")])
def test_what_a_function_raises_that_was_handed_in_stays_as_it_is(error: Exception) -> None:
    def function(x: gg.Tensor) -> gg.Tensor:
        raise error

    x = gg.ones((2,), requires_grad=True)
    for call in (gg.value_and_grad(function), lambda x: gg.checkpoint(function, x)):
        with pytest.raises(type(error)) as caught:
            call(x)
        assert caught.value is error
    with pytest.raises(KeyError, match="missing"):
        gg.nn.Sequential(gg.nn.ReLU(), Missing())(x)


def test_an_error_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"^einsum") as caught:
        gg.einsum("ij,jk", gg.ones((2, 3)), gg.ones((2, 3)))
    assert str(caught.value).count("einsum") == 1
