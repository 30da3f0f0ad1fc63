"""Test of the tests: for every row, a rule that is wrong by 0.1 % fails, at order 1 and at order 2.

At order 2 the gradient itself is right and only its derivative is wrong: what happens to a rule
that takes something for constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import gpugrad as gg
from gpugrad.registry import OPS, Op
from gpugrad.testing import gradcheck, gradgradcheck

CASES = [(op.name, argument) for op in OPS.values() if op.samples for argument in op.rules]
Rule = Callable[..., Any]


def wrong_at_first_order(rule: Rule) -> Rule:
    def wrong(*args: Any) -> Any:
        grad = rule(*args)
        return grad * 1.001 if grad.any() else grad + 0.001

    return wrong


def wrong_at_second_order(rule: Rule) -> Rule:
    def wrong(g: Any, *args: Any) -> Any:
        grad = rule(g, *args)
        if not isinstance(grad, gg.Tensor):
            return grad
        if not grad.requires_grad:  # a step: zero whatever g is
            grad = grad + g * 0.001 - g.detach() * 0.001
        return grad * 1.001 - grad.detach() * 0.001  # the same value, another derivative

    return wrong


def replace_rule(op: Op, argument: str, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange one pullback of an operation, keeping what it saves."""
    old = op.rules[argument]
    for wanted in [op.able, *((i,) for i in op.able)]:
        pullback = op.pullback(wanted)
        steps = [(rule if step[0] is old else step[0], *step[1:]) for step in pullback.steps]
        monkeypatch.setattr(pullback, "steps", steps)
    monkeypatch.setitem(op.rules, argument, rule)


@pytest.mark.parametrize(
    ("check", "spoil"),
    [(gradcheck, wrong_at_first_order), (gradgradcheck, wrong_at_second_order)],
    ids=["order-1", "order-2"],
)
@pytest.mark.parametrize(("name", "argument"), CASES)
def test_wrong_rule_is_found(
    name: str, argument: str, check: Rule, spoil: Any, monkeypatch: pytest.MonkeyPatch, rows_of: Any
) -> None:
    op = OPS[name]
    row = rows_of(name)[0]
    tensors = row.tensors(row.arrays())
    for i, t in enumerate(tensors):  # only the argument whose rule is wrong
        if t is not None and t.requires_grad and op.arguments[i] != argument:
            tensors[i] = t.detach()
    check(row, tensors)
    replace_rule(op, argument, spoil(op.rules[argument]), monkeypatch)
    operand = "the upstream gradient|" if check is gradgradcheck else ""
    message = f"^{check.__name__}: .*{name} .*/ d ({operand}{argument} .input)"
    with pytest.raises(AssertionError, match=message):
        check(row, tensors)
