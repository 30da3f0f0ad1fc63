"""gg.compile: a step may append to a list that it does nothing else with; others are an error."""

from __future__ import annotations

import types

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.cuda.recording import NotRecordable

pytestmark = pytest.mark.usefixtures("launched")
ONE = np.ones(2, np.float32)


class Place:
    """Something with a list."""

    def __init__(self):
        self.seen = []

    def step(self, x):
        self.seen.append(x.shape)
        return x


def test_a_list_is_a_log():
    seen = []

    @gg.compile
    def step(x):
        seen.append(x.shape)
        return x

    for _ in range(3):
        step(ONE)
        seen.append("called")
    assert seen == [(2,), "called", "called", "called"]
    assert step.recordings == 1


def in_a_variable(seen):
    return lambda x: [seen.append(x.shape), x][1]


def several(seen):
    return lambda x: [seen.extend([x.shape]), x][1]


def in_an_object(seen):
    place = Place()
    place.seen = seen
    return place.step


def of_a_local(seen):
    place = types.SimpleNamespace(seen=seen)

    def step(x):
        here = place
        here.seen.append(x.shape)
        return x

    return step


def in_a_dict(seen):
    seen_in = {"step": [seen]}
    return lambda x: [seen_in["step"][0].append(x.shape), x][1]


def in_a_function(seen):
    def log(value):
        seen.append(value)

    return lambda x: [log(x.shape), x][1]


def in_a_function_inside(seen):
    def step(x):
        def log(value):
            seen.append(value)

        log(x.shape)
        return x

    return step


@pytest.mark.parametrize(
    "make",
    [
        in_a_variable,
        several,
        in_an_object,
        of_a_local,
        in_a_dict,
        in_a_function,
        in_a_function_inside,
    ],
)
def test_a_list_that_is_appended_to(make):
    seen = []
    step = gg.compile(make(seen))
    for _ in range(3):
        assert step(ONE).tolist() == [1, 1]
    assert seen == [(2,)]
    assert step.recordings == 1


def reading(seen):
    def step(x):
        seen.append(1)
        return x * len(seen)

    return step


def reading_in_an_object(seen):
    place = Place()
    place.seen = seen
    return lambda x: place.step(x) * len(place.seen)


def reading_through_a_local(seen):
    place = Place()
    place.seen = seen

    def step(x):
        here = place
        return place.step(x) * len(here.seen)

    return step


def reading_in_a_dict(seen):
    seen_in = {"step": seen}
    return lambda x: [seen_in["step"].append(1), x * len(seen_in["step"])][1]


def reading_under_another_name(seen):
    def step(x):
        log = seen
        log.append(1)
        return x * len(log)

    return step


def reading_in_a_loop(seen):
    return lambda x: [seen.append(1), sum([x for _ in seen])][1]


def reading_in_a_function(seen):
    def count():
        return len(seen)

    return lambda x: [seen.append(1), x * count()][1]


def reading_a_default(seen):
    def step(x, seen=seen):
        seen.append(1)
        return x * len(seen)

    return step


@pytest.mark.parametrize(
    "make",
    [
        reading,
        reading_in_an_object,
        reading_through_a_local,
        reading_in_a_dict,
        reading_under_another_name,
        reading_in_a_loop,
        reading_in_a_function,
        reading_a_default,
    ],
)
def test_a_list_that_is_appended_to_and_read(make):
    seen = []
    step = gg.compile(make(seen))
    for _ in range(2):
        with pytest.raises(NotRecordable, match=r"changing the list '.*test_logs\.py:\d+"):
            step(ONE)
        assert seen == []
