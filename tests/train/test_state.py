"""The state of a run: every part is needed, and one that is missing or foreign is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from gpugrad.ops import random
from gpugrad.train.loop import Trainer
from gpugrad.train.state import ANY, check_parts

SETTINGS = {
    "precision": "float16",  # with a loss scaler and master weights
    "dropout": 0.2,
    "patience": 3,
    "min_change": 1e-9,
    "max_steps": 8,
}
TIMES = ("seconds", "reported")  # that only the report of the speed depends on


@pytest.fixture
def taken(make_config, make_data):
    """A way to make a trainer, and a state in which no part is as in a fresh one."""
    config = make_config(**SETTINGS)
    data = make_data(config)

    def make() -> Trainer:
        random.manual_seed(77)  # what a state does not bring differs
        made = Trainer(config, data)
        random.manual_seed(77)
        return made

    trainer = make()
    for step in range(4):
        trainer.update()
        if step in (0, 3):
            trainer.take_evaluation(1.0 + step)  # the best, and one after this very step
        if step == 1:
            trainer.report()
    return make, trainer.state_dict()


def leaves(value, place=()):
    """Return the places of all values of a state that are neither dict nor list."""
    if isinstance(value, dict):
        found = [leaves(item, (*place, key)) for key, item in value.items()]
    elif isinstance(value, list) and value and "params" not in place:
        found = [leaves(item, (*place, i)) for i, item in enumerate(value)]
    else:
        return [place]
    return [leaf for part in found for leaf in part]


def ending(make, state):
    """Return everything that happens to a trainer that goes on from a state, and its end."""
    trainer = make()
    trainer.load_state_dict(state)
    seen = []
    while not trainer.finished:
        if trainer.evaluation_due:
            seen.append(trainer.take_evaluation(trainer.evaluate()))
        trainer.update()
        if trainer.step % 3 == 0:
            seen.append(trainer.report()._replace(tokens_per_second=0, mfu=None))
    return seen, numbers(trainer.state_dict())


def numbers(state):
    if isinstance(state, dict):
        return {key: numbers(value) for key, value in state.items() if key not in TIMES}
    if isinstance(state, list):
        return [numbers(value) for value in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state


def holder(state, place):
    for key in place[:-1]:
        state = state[key]
    return state


def test_dropping_any_part_is_an_error(taken):
    make, state = taken
    trainer = make()
    places = {place[:depth] for place in leaves(state) for depth in range(1, len(place) + 1)}
    dicts = [place for place in places if isinstance(holder(state, place), dict)]
    assert len(dicts) > 60
    silent, unnamed = [], []
    for place in sorted(dicts, key=str):
        changed = copy.deepcopy(state)
        del holder(changed, place)[place[-1]]
        try:
            trainer.load_state_dict(changed)
        except ValueError as error:
            unnamed += [place] if str(place[-1]) not in str(error) else []
        else:
            silent.append(place)
    assert (silent, unnamed) == ([], [])


def test_adding_any_part_is_an_error(taken):
    make, state = taken
    trainer = make()
    places = [place for place in leaves(state) if isinstance(holder(state, place), dict)]
    for place in {place[:-1] for place in places}:
        changed = copy.deepcopy(state)
        holder(changed, (*place, "x"))["foreign"] = 1
        with pytest.raises(ValueError, match="foreign"):
            trainer.load_state_dict(changed)


def test_every_part_decides_what_happens(taken):
    """Were any part lost, exact resumption would fail: the test of it can fail for each."""
    make, state = taken
    expected = ending(make, state)
    assert ending(make, copy.deepcopy(state)) == expected
    fresh = make().state_dict()
    fresh["optimizer"]["state"] = {
        key: {n: np.zeros_like(v) if n != "master" else v + 1 for n, v in entry.items()}
        | {"step": 0}
        for key, entry in state["optimizer"]["state"].items()
    }
    without_effect = []
    for place in leaves(state):
        if place[0] in TIMES or place[0] == "data":
            continue
        changed = copy.deepcopy(state)
        reset = fresh
        for key in place:
            if isinstance(reset, list) and key >= len(reset):
                reset = None
                break
            reset = reset[key]
        there = holder(changed, place)
        if numbers(there[place[-1]]) == numbers(reset):
            continue  # as in a fresh trainer: a setting
        there[place[-1]] = reset
        try:
            same = ending(make, changed) == expected
        except (ValueError, TypeError):
            continue  # refused, or not even a number
        if same:
            without_effect.append(place)
    # set anew by every step; what they were counts for a run that is resumed after its last one
    assert without_effect == [
        ("optimizer", "param_groups", 0, "lr"),
        ("optimizer", "param_groups", 1, "lr"),
        ("change",),
    ]


def test_a_state_of_other_data_is_refused(taken):
    make, state = taken
    with pytest.raises(ValueError, match="other data: its token file had the SHA-256 00ff, here"):
        make().load_state_dict({**state, "data": "00ff"})


@pytest.mark.parametrize("scaler", [None, {}])
def test_a_scaler_that_is_there_or_not(taken, make_config, make_data, scaler):
    make, state = taken
    with pytest.raises(ValueError, match=r"the state\['scaler'\]"):
        make().load_state_dict({**state, "scaler": scaler})
    config = make_config(**{**SETTINGS, "precision": "float32"})
    with pytest.raises(ValueError, match=r"\['scaler'\] is a dict, expected None"):
        Trainer(config, make_data(config)).load_state_dict(state)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": 1}, "'b'"),
        ({"a": 1, "b": []}, r"x\['b'\] is not a list of 1"),
        ({"a": 1, "b": [{"c": 1}, {}]}, r"x\['b'\] is not a list of 1"),
        ({"a": 1, "b": [{}]}, r"x\['b'\]\[0\] has other parts than expected: missing 'c'"),
        ({"a": 1, "b": [{"c": 1, "d": 2}]}, "unknown 'd'"),
        (None, "x is None, expected a dict"),
        (3, "x is a int, expected a dict"),
        ({"a": 1, "b": [None]}, r"x\['b'\]\[0\] is None, expected a dict"),
    ],
)
def test_parts(found, message):
    expected = {"a": ANY, "b": [{"c": 0}]}
    check_parts({"a": {"anything": 1}, "b": [{"c": "other"}]}, expected, "take")
    with pytest.raises(ValueError, match=f"^take: .*{message}"):
        check_parts(found, expected, "take", "x")
