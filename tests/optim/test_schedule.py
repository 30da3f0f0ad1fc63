from __future__ import annotations

import math

import pytest

import gpugrad as gg
from gpugrad.optim import SGD, LRScheduler, discriminative_groups
from gpugrad.optim.schedule import constant, cosine, exponential, linear

SCHEDULES = {
    "constant": lambda warmup: constant(0.5, warmup=warmup),
    "linear": lambda warmup: linear(0.5, steps=100, warmup=warmup, final=0.1),
    "cosine": lambda warmup: cosine(0.5, steps=100, warmup=warmup, final=0.1),
    "exponential": lambda warmup: exponential(0.5, 0.9, warmup=warmup, final=0.1),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 9])
def test_warm_up_rises_to_the_full_rate(make, warmup) -> None:
    schedule = make(warmup)
    for step in range(warmup):
        assert schedule(step) == pytest.approx(0.5 * (step + 1) / (warmup + 1), rel=1e-15)
    assert schedule(warmup) == 0.5
    rates = [schedule(step) for step in range(warmup, 150)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_is_a_pure_function(make) -> None:
    schedule = make(5)
    rates = [schedule(step) for step in range(30)]
    assert [schedule(step) for step in reversed(range(30))] == rates[::-1]
    assert rates == [make(5)(step) for step in range(30)]


@pytest.mark.parametrize("make", [linear, cosine])
def test_ends_at_final_and_stays(make) -> None:
    schedule = make(1e-3, steps=2000, warmup=100, final=1e-4)
    assert schedule(1999) > 1e-4
    for step in (2000, 2001, 10**9):
        assert schedule(step) == pytest.approx(1e-4, rel=1e-15)
    assert schedule(1050) == pytest.approx(5.5e-4, rel=1e-12)


def test_values() -> None:
    assert cosine(1.0, steps=4)(1) == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-15)
    assert linear(1.0, steps=4)(1) == 0.75
    assert exponential(1.0, 0.5, warmup=2)(5) == 0.125
    assert exponential(1.0, 0.5, final=0.3)(5) == 0.3
    assert constant(0.25)(10**6) == 0.25
    assert cosine(0.0, steps=3)(1) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-1.0), "constant: lr must be a finite number >= 0, got -1.0"),
        (lambda: constant(math.nan), "constant: lr must be"),
        (lambda: linear(1.0, steps=10, final=math.inf), "linear: final must be"),
        (lambda: cosine(1.0, steps=10, final=2.0), "cosine: final 2.0 is above lr 1.0"),
        (lambda: cosine(1.0, steps=10, warmup=10), "steps must be more than warmup 10, got 10"),
        (lambda: linear(1.0, steps=0), "steps must be more than warmup 0, got 0"),
        (lambda: constant(1.0, warmup=-1), "warmup must be a number of steps >= 0, got -1"),
        (lambda: exponential(1.0, 1.5), r"decay must be in \(0, 1\], got 1.5"),
        (lambda: exponential(1.0, 0.0), r"decay must be in \(0, 1\], got 0.0"),
        (lambda: cosine(1.0, steps=10)(-1), "steps count from 0, got -1"),
    ],
)
def test_refuses_settings(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def optimizer_of_two_groups() -> SGD:
    return SGD([{"params": [gg.ones(1).requires_grad_()]} for _ in range(2)], lr=9.0)


def test_scheduler_sets_the_rate_of_every_group() -> None:
    optimizer = optimizer_of_two_groups()
    scheduler = LRScheduler(optimizer, linear(1.0, steps=4))
    seen = [scheduler.get_last_lr()]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [[rate] * 2 for rate in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0)]


def test_scheduler_per_group_and_its_state() -> None:
    optimizer = optimizer_of_two_groups()
    scheduler = LRScheduler(optimizer, [constant(0.5), linear(1.0, steps=4)])
    scheduler.step()
    other = LRScheduler(optimizer_of_two_groups(), [constant(0.5), linear(1.0, steps=4)])
    other.load_state_dict(scheduler.state_dict())
    assert other.get_last_lr() == scheduler.get_last_lr() == [0.5, 0.75]


def test_scheduler_scales_the_rate_of_discriminative_groups() -> None:
    a, b = gg.ones(2, requires_grad=True), gg.ones(2, requires_grad=True)
    groups = [{"params": [("a.weight", a), ("b.weight", b)]}]
    optimizer = SGD(discriminative_groups(groups, {"a": 0.5}, lr=1.0), lr=1.0)
    scheduler = LRScheduler(optimizer, linear(1.0, steps=4))
    assert scheduler.get_last_lr() == [0.5, 1.0]
    scheduler.step()
    assert scheduler.get_last_lr() == [0.375, 0.75]


def test_scheduler_wants_one_schedule_per_group() -> None:
    with pytest.raises(ValueError, match="3 schedules for 2 parameter groups"):
        LRScheduler(optimizer_of_two_groups(), [constant(1.0)] * 3)
