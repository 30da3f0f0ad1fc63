"""Any call of anything public is answered as NumPy does, or refused by a check of gpugrad's own."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpugrad as gg
from gpugrad.registry import OPS

from . import calls as drawn
from . import values
from .calls import calls, foreign, problem, refusal
from .fuzz import limits
from .surface import Target, targets
from .values import HOSTILE, build, described

MORE = os.environ.get("GPUGRAD_TEST_EXAMPLES")  # per function, at random; see CONTRIBUTING.md
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
TARGETS = list(targets())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.id)
def test_a_call_is_answered_or_refused(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parameter in target.parameters[target.is_method :]:
        if parameter.kind is not parameter.VAR_KEYWORD:
            values.of(target.id.partition(".")[2], parameter, ())  # LookupError: say what it takes

    @settings(max_examples=int(MORE or 12), derandomize=MORE is None, **QUIET)
    @given(calls(target))
    def check(arguments):
        assert problem(target, arguments) is None

    with limits():
        check()


def huge(*shape):
    return gg.Tensor(np.broadcast_to(np.float32(1), shape))


MANY = 2**31 + 1


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: gg.expand_dims(x, 0), (1, 2, MANY)),
        (lambda x: gg.reshape(x, (MANY, 2, 1)), (MANY, 2, 1)),
        (lambda x: gg.flip(x), (2, MANY)),
        (lambda x: gg.permute_dims(x, (1, 0)), (MANY, 2)),
        (lambda x: gg.swapaxes(x, 0, 1), (MANY, 2)),
        (lambda x: gg.moveaxis(x, 0, 1), (MANY, 2)),
        (lambda x: gg.split(x, 2)[1], (1, MANY)),
        (lambda x: gg.unstack(x)[1], (MANY,)),
        (lambda x: gg.diagonal(x), (2,)),
        (lambda x: gg.squeeze(x[:1]), (MANY,)),
        (lambda x: gg.broadcast_to(x, shape=(3, 2, MANY)), (3, 2, MANY)),
        (lambda x: x[:, -1], (2,)),
        (lambda x: gg.take(x, [2**31], axis=1), (2, 1)),
        (lambda x: gg.take(x, [MANY], axis=1), None),
        (lambda x: x + gg.ones((3, 1)), None),
        (lambda x: gg.where(x, x, gg.ones(3)), None),
        (lambda x: gg.maximum(x, gg.ones(3)), None),
        (lambda x: x @ x, None),
        (lambda x: gg.linear(x, gg.ones((4, 3))), None),
        (lambda x: gg.concat([x, gg.ones((2, 3, 4))]), None),
        (lambda x: gg.stack([x, gg.ones(3)]), None),
        (lambda x: gg.einsum("ij,jk->ik", x, gg.ones((3, 4))), None),
        (lambda x: gg.nn.functional.mse_loss(x, gg.ones((4, 2))), None),
        (lambda x: gg.nn.functional.layer_norm(x, (3,)), None),
        (lambda x: gg.nn.functional.cross_entropy(x, [0, 1, 2]), None),
        (lambda x: gg.nn.functional.scaled_dot_product_attention(x, gg.ones((1, 3)), x), None),
        (lambda x: gg.nn.Linear(3, 4)(x), None),
    ],
)
def test_more_than_2_31_elements(function, shape):
    x = huge(2, MANY)
    with limits():
        if shape is None:
            with pytest.raises((ValueError, IndexError), match=r"\w: |\): "):
                function(x)
        else:
            out = function(x)
            assert (out.shape, float(out[(-1,) * out.ndim])) == (shape, 1.0)


DIFFERENTIABLE = [
    pytest.param(op, sample, id=f"{op.name}-{number}")
    for op in OPS.values()
    for number, sample in enumerate(op.samples)
    if op.rules
]


def leaves_of(op, sample):
    """Return the arguments of a sample, and those among them that want a gradient."""
    drawn = sample.draw(np.random.default_rng(3))
    arguments = [a if a is None else gg.tensor(a) for a in drawn]
    wanted = [
        a.requires_grad_()
        for a, name in zip(arguments, op.arguments, strict=True)
        if a is not None and name in op.rules and a.dtype == gg.float64
    ]
    return arguments, wanted


@pytest.mark.parametrize(("op", "sample"), DIFFERENTIABLE)
def test_backward_twice_doubles_the_gradient_or_is_refused(op, sample):
    arguments, wanted = leaves_of(op, sample)
    out = op.function(*arguments, **sample.statics)
    seed = gg.ones_like(out)
    out.backward(seed)
    once = [x.grad.numpy().copy() for x in wanted]
    error = refusal(out.backward, seed)
    assert error is None or re.match(r"backward: what \w+ .* saved was freed", str(error))
    for x, g in zip(wanted, once, strict=True):
        np.testing.assert_array_equal(x.grad.numpy(), g if error else 2 * g)


@pytest.mark.parametrize(("op", "sample"), DIFFERENTIABLE)
def test_a_saved_array_changed_in_place_is_refused_or_was_not_needed(op, sample):
    arguments, wanted = leaves_of(op, sample)
    op.function(*arguments, **sample.statics).sum().backward()
    expected = [x.grad.numpy() for x in wanted]
    arguments, wanted = leaves_of(op, sample)
    total = op.function(*arguments, **sample.statics).sum()
    with gg.no_grad():
        for x in wanted:
            x += 1
    error = refusal(total.backward)
    assert error is None or "in-place add" in str(error)
    for x, g in zip(wanted, expected, strict=True):
        if error:
            assert x.grad is None
        else:
            np.testing.assert_array_equal(x.grad.numpy(), g)


@settings(max_examples=40, derandomize=True, **QUIET)
@given(
    st.sampled_from([gg.optim.SGD, gg.optim.Adam, gg.optim.AdamW]),
    st.sampled_from(["lr", "weight_decay", "betas", "eps", "momentum"]),
    HOSTILE,
)
def test_an_optimizer_is_what_it_was_after_an_error(kind, name, value):
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    optimizer = kind([x], lr=0.1)
    (x * x).sum().backward()
    optimizer.step()
    state, before = described(optimizer.state_dict()["state"]), described(x)
    optimizer.param_groups[0][name] = build(value)
    with np.errstate(all="ignore"):
        error = refusal(optimizer.step)
    if error is not None:
        assert (described(x), described(optimizer.state_dict()["state"])) == (before, state)
        assert foreign(error, Target(f"optim.{kind.__name__}", kind, ())) is None


@settings(max_examples=60, derandomize=True, **QUIET)
@given(st.dictionaries(st.sampled_from(["weight", "bias", "other", 1]), HOSTILE, max_size=3))
def test_a_module_is_what_it_was_after_an_error(state):
    module = gg.nn.Linear(3, 2)
    before = described(module.state_dict())
    with np.errstate(all="ignore"):
        error = refusal(module.load_state_dict, build(state))
    if error is not None:
        assert described(module.state_dict()) == before
        assert foreign(error, Target("nn.Linear", gg.nn.Linear, ())) is None


@settings(max_examples=60, derandomize=True, **QUIET)
@given(st.dictionaries(st.sampled_from(["seed", "offset", "other"]), HOSTILE, max_size=3) | HOSTILE)
def test_the_generator_is_what_it_was_after_an_error(state):
    before = gg.random.get_state()
    error = refusal(gg.random.set_state, build(state))
    assert error is None or gg.random.get_state() == before
    gg.random.normal(size=3)
    gg.random.set_state(before)


def _raises_elsewhere(x):
    np.zeros(-1)


def _names_nothing(x):
    raise ValueError("no")


def _changes_what_it_was_given(x):
    x[...] = 7
    raise ValueError("_changes_what_it_was_given: no")


def _draws_and_fails(x):
    gg.random.normal()
    raise ValueError("_draws_and_fails: no")


def _asks_for_too_much(x):
    raise MemoryError


def _is_inexact(x):
    return gg.tensor(x) + 1e-3 * (x.dtype == np.float32)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_raises_elsewhere, "does not name|raised in"),
        (_names_nothing, "does not name"),
        (_changes_what_it_was_given, "an argument changed"),
        (_draws_and_fails, "random numbers were drawn"),
        (_asks_for_too_much, "MemoryError"),
        (_is_inexact, "where float64 in C order gives"),
    ],
)
def test_what_is_wrong_is_seen(monkeypatch, function, message):
    monkeypatch.setattr(drawn, "PACKAGE", __file__)
    target = Target(f"test.{function.__name__}", function, ())
    arguments = [values.Array((3, 4), kind="array")], {}
    with limits():
        assert re.search(message, problem(target, arguments) or "")
