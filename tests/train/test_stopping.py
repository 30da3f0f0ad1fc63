"""Early stopping: patience on validation loss, and how far an update moves the parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.train.stopping import Movement, Patience


def test_patience_counts_evaluations_without_a_new_best():
    stopping = Patience(patience=2)
    seen = [(stopping.update(loss, i), stopping.exhausted) for i, loss in enumerate([3, 2, 2, 2.5])]
    assert seen == [(True, False), (True, False), (False, False), (False, True)]
    assert (stopping.best, stopping.best_step) == (2, 1)


def test_min_delta_is_the_least_improvement():
    stopping = Patience(patience=1, min_delta=0.5)
    assert stopping.update(3.0, 0)
    assert not stopping.update(2.5, 1)
    assert stopping.exhausted
    assert stopping.update(2.4, 2)
    assert not stopping.exhausted


def test_without_patience_it_never_stops_and_nan_is_no_best():
    stopping = Patience()
    assert not stopping.update(math.nan, 0)
    assert stopping.update(1.0, 1)
    for step in range(100):
        assert not stopping.update(math.nan, step)
    assert not stopping.exhausted
    assert stopping.best == 1.0


def test_state_goes_on_where_it_was():
    first, second = Patience(3), Patience(3)
    for step, loss in enumerate([5.0, 4.0, 4.5]):
        first.update(loss, step)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"best": 4.0, "best_step": 1, "waited": 1}


@pytest.mark.parametrize(("patience", "min_delta"), [(-1, 0.0), (1, -0.1), (1, math.nan)])
def test_bad_settings(patience, min_delta):
    with pytest.raises(ValueError, match="Patience: patience and min_delta"):
        Patience(patience, min_delta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_movement_is_the_norm_of_the_change(dtype):
    rng = np.random.default_rng(0)
    before = [rng.normal(size=shape).astype(dtype) for shape in [(3, 5), (), (0,), (7,)]]
    after = [rng.normal(size=x.shape).astype(dtype) for x in before]
    parameters = [gg.tensor(x) for x in before]
    movement = Movement(parameters)
    movement.start()
    for p, x in zip(parameters, after, strict=True):
        p.copy_(x)
    change = [(x.astype("f8") - y) ** 2 for x, y in zip(before, after, strict=True)]
    expected = math.sqrt(sum(c.sum() for c in change))
    assert movement.distance() == pytest.approx(expected, rel=1e-12)


def test_no_movement():
    movement = Movement([gg.tensor([1.0, 2.0])])
    movement.start()
    assert movement.distance() == 0.0
