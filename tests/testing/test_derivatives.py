"""gradcheck and gradgradcheck: what they find, how they say it, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing import gradcheck, gradgradcheck
from gpugrad.testing.derivatives import DENSE


def leaf(*shape: int, seed: int = 0) -> gg.Tensor:
    return gg.tensor(np.random.default_rng(seed).uniform(0.5, 2, shape), requires_grad=True)


class Sine(gg.Function):
    """Right, or with a backward that is wrong by a factor or in its own derivative."""

    factor = 1.0
    constant = False

    @classmethod
    def forward(cls, ctx: Any, x: gg.Tensor) -> gg.Tensor:
        ctx.save_for_backward(x)
        return gg.sin(x)

    @classmethod
    def backward(cls, ctx: Any, g: gg.Tensor) -> gg.Tensor:
        (x,) = ctx.saved_tensors
        return g * gg.cos(x.detach() if cls.constant else x) * cls.factor


class WrongSine(Sine):
    factor = 1.001


class ConstantSine(Sine):
    constant = True


SHAPES = [(), (3,), (2, 3), (DENSE,), (0,)]  # whole Jacobian, and random projections


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_right_gradients_pass(shape: tuple[int, ...]) -> None:
    assert gradcheck(Sine.apply, leaf(*shape)) is True
    assert gradgradcheck(Sine.apply, leaf(*shape)) is True


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_a_gradient_wrong_by_a_thousandth_fails(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        AssertionError, match=r"^gradcheck: apply .* by backward but .* by finite differences"
    ):
        gradcheck(WrongSine.apply, leaf(*shape))


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_a_wrong_second_derivative_fails(shape: tuple[int, ...]) -> None:
    gradcheck(ConstantSine.apply, leaf(*shape))
    with pytest.raises(AssertionError, match=r"gradgradcheck: the gradient of apply"):
        gradgradcheck(ConstantSine.apply, leaf(*shape))


def spoiled(x: gg.Tensor, weight: gg.Tensor) -> gg.Tensor:
    """x * weight, whose gradient forgets one element of weight."""
    keep = np.ones(weight.shape)
    keep.reshape(-1)[5] = 0.0
    return x * (weight * keep + weight.detach() * (1 - keep))


@pytest.mark.parametrize("shape", [(2, 3), (40, 50)], ids=str)
def test_the_message_names_operand_index_and_both_numbers(shape: tuple[int, ...]) -> None:
    x, weight = leaf(*shape), leaf(*shape, seed=1)
    index = list(np.unravel_index(5, shape))
    with pytest.raises(AssertionError) as error:
        gradcheck(spoiled, [x, weight])
    message = str(error.value)
    where = f"weight (input 1)[{', '.join(str(int(i)) for i in index)}]"
    assert message.startswith("gradcheck: spoiled (last operation: multiply): d ")
    assert where in message
    assert " 0.0 by backward" in message
    if x.size < DENSE:
        assert f"{x.tolist()[1][2]:.5f}" in message


def test_one_wrong_element_among_many_is_found() -> None:
    x, weight = leaf(20_000), leaf(20_000, seed=1)
    with pytest.raises(AssertionError, match=r"weight \(input 1\)\[5\]"):
        gradcheck(spoiled, [x, weight])


def test_several_inputs_and_outputs() -> None:
    def f(x: gg.Tensor, n: int, y: gg.Tensor, index: gg.Tensor) -> tuple[gg.Tensor, ...]:
        return x**n + y, index, (x * y).sum()

    x, y, index = leaf(2, 3), leaf(3), gg.tensor([1, 2])
    gradcheck(f, [x, 2, y, index])
    gradgradcheck(f, [x, 3, y, index])


def test_an_output_that_forgets_its_input_fails() -> None:
    with pytest.raises(AssertionError, match=r"is 0\.0 by backward but 1\.99"):
        gradcheck(lambda x: x.detach() * 2.0, gg.tensor([1.0], gg.float64, requires_grad=True))


def test_a_recorded_gradient_that_differs_fails() -> None:
    class Split(Sine):
        @classmethod
        def backward(cls, ctx: Any, g: gg.Tensor) -> gg.Tensor:
            (x,) = ctx.saved_tensors
            return g * gg.cos(x) * (1.001 if x.requires_grad else 1.0)

    gradcheck(Split.apply, leaf(3))
    with pytest.raises(AssertionError, match=r"with create_graph=True but .* without"):
        gradgradcheck(Split.apply, leaf(3))


def test_nan_is_no_gradient() -> None:
    x = gg.tensor([0.0, 1.0], gg.float64, requires_grad=True)

    def f(x: gg.Tensor) -> gg.Tensor:
        return gg.where(x > 0, gg.log(gg.maximum(x, 0.5)), x * 0.0) + x * (x - x) / (x - x + 1.0)

    gradcheck(f, x + 0.25)
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match="nan"):
        gradcheck(lambda x: x / x, x)


# Refused


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_float32_is_refused(check: Any) -> None:
    x = gg.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match=r"float32\[3\]; finite differences .*astype\(gg.float64\)"):
        check(gg.exp, x)
    with pytest.raises(TypeError, match="output 0 of <lambda> is float32"):
        check(lambda x: x.astype(gg.float32), leaf(2))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_nothing_to_check_is_refused(check: Any) -> None:
    with pytest.raises(ValueError, match="none of the inputs is a tensor that requires grad"):
        check(gg.exp, [gg.ones(3, dtype=gg.float64), 2.0])
    with pytest.raises(TypeError, match="must return tensors, got 3"):
        check(lambda x: 3, leaf(2))


def test_results_without_gradient_are_refused() -> None:
    with pytest.raises(ValueError, match="returns nothing floating"):
        gradcheck(lambda x: gg.argmax(x), leaf(2))
    with pytest.raises(ValueError, match=r"no result of .* requires grad"):
        gradgradcheck(lambda x: x.detach(), leaf(2))


def test_a_function_that_changes_its_mind_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="gives another result when called again"):
        gradcheck(lambda x: x * rng.standard_normal(), leaf(2))


def test_a_gradient_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pullback = gg.registry.OPS["exp"].pullback((0,))
    (rule, *rest), *_ = pullback.steps
    monkeypatch.setattr(pullback, "steps", [(lambda g, out: rule(g, out)[:1], *rest)])
    with pytest.raises(AssertionError, match=r"the gradient of .* is float64\[1\] but the input"):
        gradcheck(gg.exp, leaf(3))


def test_inputs_are_left_alone() -> None:
    x = leaf(3)
    before = x.numpy().copy()
    gradcheck(gg.exp, x)
    np.testing.assert_array_equal(x.numpy(), before)
    assert x.grad is None


@pytest.mark.parametrize("layout", ["transposed", "reversed", "broadcast"])
def test_inputs_of_any_layout(layout: str) -> None:
    array = np.random.default_rng(0).uniform(0.5, 2.0, (4, 3))
    view = {
        "transposed": array.T,
        "reversed": array[::-1, ::-1],
        "broadcast": np.broadcast_to(array[:1], (4, 3)),
    }[layout]
    gradcheck(lambda x: gg.exp(x).sum(axis=0), gg.Tensor(view, requires_grad=True))
