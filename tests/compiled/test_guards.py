"""gg.compile: what a step sees of the Python around it is what it is at each call, or an error."""

from __future__ import annotations

import dataclasses
import functools
import types

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, nn

ONE = np.ones(2, np.float32)
scale = 2.0
calls = 0
settings = {"scale": 2.0, "parts": [1.0]}


@pytest.fixture(autouse=True)
def emulated():
    with emulator.enabled("plain"):
        yield


def helper(x):
    return x * scale


@functools.cache
def cached(number):
    return number * scale


class Place:
    """Something with attributes."""

    shared = 2.0

    def __init__(self, **given):
        vars(self).update(given)

    def times(self, x):
        return x * self.factor * self.shared

    @property
    def doubled(self):
        return 2 * self.factor

    @gg.compile
    def step(self, x):
        return x * self.factor


@dataclasses.dataclass(slots=True)
class Slots:
    factor: float


def closure(value):
    """Return a compiled step that reads a variable, and a function that sets it."""

    def set_value(new):
        nonlocal value
        value = new

    return gg.compile(lambda x: x * value), set_value


def attribute(owner, name, function):
    return gg.compile(function), functools.partial(setattr, owner, name)


def global_number(monkeypatch):
    step = gg.compile(helper)
    return step, lambda new: monkeypatch.setitem(globals(), "scale", new)


def called_function(monkeypatch):
    step = gg.compile(lambda x: helper(x) if len(x) else x)
    return step, lambda new: monkeypatch.setitem(globals(), "scale", new)


def global_dict(monkeypatch):
    step = gg.compile(lambda x: x * settings["scale"] * settings["parts"][0])
    return step, lambda new: monkeypatch.setitem(settings, "scale", new)


def list_in_a_dict(monkeypatch):
    step = gg.compile(lambda x: x * settings["parts"][0])
    monkeypatch.setitem(settings, "parts", [2.0])
    return step, functools.partial(settings["parts"].__setitem__, 0)


def default_argument():
    place = types.SimpleNamespace(factor=2.0)
    return attribute(place, "factor", lambda x, of=place: x * of.factor)


def nested_objects():
    inner = Place(factor=2.0)
    outer = Place(inner=inner)
    return attribute(inner, "factor", lambda x: x * outer.inner.factor)


def through_a_local():
    inner = Place(factor=2.0)
    outer = Place(inner=inner)

    def step(x):
        here = outer.inner
        return x * here.factor

    return attribute(inner, "factor", step)


def method():
    place = Place(factor=2.0)
    return attribute(place, "factor", lambda x: place.times(x) / 2)


def class_attribute(monkeypatch):
    place = Place(factor=1.0)
    return gg.compile(place.times), lambda new: monkeypatch.setattr(Place, "shared", new)


def property_of_a_part():
    place = Place(factor=2.0)
    return attribute(place, "factor", lambda x: x * place.doubled / 2)


def slots():
    place = Slots(2.0)
    return attribute(place, "factor", lambda x: x * place.factor)


def bound_method():
    place = Place(factor=2.0)
    return attribute(place, "factor", types.MethodType(lambda self, x: x * self.factor, place))


def compiled_method():
    place = Place(factor=2.0)
    return place.step, functools.partial(setattr, place, "factor")


def partial_function():
    place = Place(factor=2.0)
    return attribute(place, "factor", functools.partial(lambda of, x: x * of.factor, place))


def in_a_comprehension():
    place = Place(factor=2.0)
    return attribute(place, "factor", lambda x: sum([x * place.factor for _ in range(1)]))


def user_module():
    place = Place(factor=2.0)

    class Scaled(nn.Module):
        def forward(self, x):
            return x * place.factor

    model = nn.Sequential(Scaled())
    return attribute(place, "factor", lambda x: model(x))


def list_in_a_module():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = [2.0]

        def forward(self, x):
            return x * self.factors[0]

    model = Scaled()
    return gg.compile(model), functools.partial(model.factors.__setitem__, 0)


CHANGED = [
    closure,
    global_number,
    called_function,
    global_dict,
    list_in_a_dict,
    default_argument,
    nested_objects,
    through_a_local,
    method,
    class_attribute,
    property_of_a_part,
    slots,
    bound_method,
    compiled_method,
    partial_function,
    in_a_comprehension,
    user_module,
    list_in_a_module,
]


@pytest.mark.parametrize("make", CHANGED, ids=lambda make: make.__name__)
def test_a_number_that_changes_between_calls(make, monkeypatch):
    given = {closure: (2.0,)}.get(make, ())
    if "monkeypatch" in make.__code__.co_varnames[: make.__code__.co_argcount]:
        given = (monkeypatch,)
    step, set_value = make(*given)
    assert step(ONE).tolist() == [2, 2]
    set_value(3.0)
    assert step(ONE).tolist() == [3, 3]
    set_value(float("3"))  # an equal number, another object
    assert step(ONE).tolist() == [3, 3]
    set_value(2.0)
    assert step(ONE).tolist() == [2, 2]
    assert step.recordings == 2
