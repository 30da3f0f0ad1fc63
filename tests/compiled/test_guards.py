"""gg.compile: what a step sees of the Python around it is what it is at each call, or an error."""

from __future__ import annotations

import dataclasses
import functools
import types

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.cuda.recording import NotRecordable

pytestmark = pytest.mark.usefixtures("launched")
ONE = np.ones(2, np.float32)
scale = 2.0
calls = 0
settings = {"scale": 2.0, "parts": [1.0]}


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

    def times_shared(self, x):
        return x * self.__class__.shared

    @property
    def part(self):
        return self.inner

    @gg.compile
    def step(self, x):
        return x * self.factor


def scaled_by_a_global(function):
    """Decorate a function; what the decorator names is seen as well."""

    @functools.wraps(function)
    def scaled(*args):
        return function(*args) * scale

    return scaled


class Decorated:
    @scaled_by_a_global
    def forward(self, x):
        return x

    def _times(self, number, x):
        return x * number * scale

    once = functools.partialmethod(_times, 1.0)


@dataclasses.dataclass
class Matched:
    factor: float


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


def attribute_of_a_class(monkeypatch):
    step = gg.compile(Place().times_shared)
    return step, lambda new: monkeypatch.setattr(Place, "shared", new)


def method_of_a_class():
    place = Place(factor=2.0)
    return attribute(place, "factor", lambda x: place.__class__.times(place, x) / 2)


def attribute_of_a_property():
    inner = Place(factor=2.0)
    outer = Place(inner=inner)
    return attribute(inner, "factor", lambda x: x * outer.part.factor)


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


def decorated_method(monkeypatch):
    place = Decorated()
    step = gg.compile(lambda x: place.forward(x))
    return step, lambda new: monkeypatch.setitem(globals(), "scale", new)


def partial_method(monkeypatch):
    place = Decorated()
    step = gg.compile(lambda x: place.once(x))
    return step, lambda new: monkeypatch.setitem(globals(), "scale", new)


def default_of_a_keyword():
    def step(x, *, factor=2.0):
        return x * factor

    return gg.compile(step), functools.partial(step.__kwdefaults__.__setitem__, "factor")


def keyword_of_a_partial_function():
    step = functools.partial(lambda x, factor: x * factor, factor=2.0)
    return gg.compile(step), functools.partial(step.keywords.__setitem__, "factor")


def matched_by_name():
    place = Matched(2.0)

    def step(x):
        match place:
            case Matched(factor=number):
                return x * number

    return attribute(place, "factor", step)


def matched_by_position():
    place = Matched(2.0)

    def step(x):
        match place:
            case Matched(number):
                return x * number

    return attribute(place, "factor", step)


def matched_by_position_in_a_class_that_no_name_leads_to():
    place, kinds = Matched(2.0), {"matched": Matched}

    def step(x):
        kind = kinds["matched"]
        match place:
            case kind(number):
                return x * number

    return attribute(place, "factor", step)


CHANGED = [
    decorated_method,
    partial_method,
    default_of_a_keyword,
    keyword_of_a_partial_function,
    matched_by_name,
    matched_by_position,
    matched_by_position_in_a_class_that_no_name_leads_to,
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
    attribute_of_a_class,
    method_of_a_class,
    attribute_of_a_property,
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


def counted(function):
    """Decorate a function whose calls are counted."""

    @functools.wraps(function)
    def call(*args):
        global calls
        calls += 1
        return function(*args)

    return call


@gg.no_grad()
def test_decorators_of_libraries_are_not_looked_into_but_what_they_decorate(monkeypatch):
    names = {"__name__": "contextlib", "functools": functools, "calls": 0}
    decorated = types.FunctionType(counted.__code__, names)  # as if it were of that module

    class Counted:
        factor = 2.0

        @decorated
        @gg.no_grad()
        def forward(self, x):
            return x * self.factor * scale

    place = Counted()
    for function in (lambda x: place.forward(x), place.forward, decorated(place.forward)):
        step = gg.compile(function)
        for place.factor in (2.0, 3.0):
            for number in (1.0, 4.0):
                monkeypatch.setitem(globals(), "scale", number)
                assert step(ONE).tolist() == [place.factor * number] * 2
        assert step.recordings == 4


# Objects


@pytest.mark.parametrize(
    "number_of",
    [lambda w: len(w), lambda w: w.shape[0], lambda w: w.dtype.itemsize, lambda w: w.requires_grad],
    ids=["len", "shape", "dtype", "flag"],
)
def test_a_tensor_of_which_only_shape_dtype_or_flag_is_used(number_of):
    w = gg.tensor([1.0, 2.0], requires_grad=True)
    step = gg.compile(lambda x: x * float(number_of(w)))
    assert step(ONE).tolist() == [float(number_of(w))] * 2
    with gg.no_grad():
        w.data = np.ones(3)
    w.requires_grad = False
    assert step(ONE).tolist() == [float(number_of(w))] * 2
    assert step(ONE).tolist() == [float(number_of(w))] * 2
    assert step.recordings == 2


@gg.no_grad()
def test_parameters_that_a_step_only_counts():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    step = gg.compile(lambda x: x * sum(p.requires_grad for p in model.parameters()))
    assert step(ONE).tolist() == [4, 4]
    nn.freeze(model, "0")
    assert step(ONE).tolist() == [2, 2]


@gg.no_grad()
def test_a_module_of_a_namespace_that_is_replaced():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    space = types.SimpleNamespace(m=one)
    step = gg.compile(lambda x: space.m(x))
    for model in (one, two, one):
        space.m = model
        np.testing.assert_allclose(step(ONE).numpy(), model(ONE).detach().numpy(), rtol=1e-5)
    assert step.recordings == 2


def test_a_tensor_and_a_function_of_a_dict_that_are_replaced():
    space = {"w": gg.tensor([1.0, 1.0]), "f": gg.exp}
    step = gg.compile(lambda x: space["f"](x) * space["w"])
    step(ONE)
    space["w"] = gg.tensor([2.0, 2.0])
    np.testing.assert_allclose(step(ONE).numpy(), 2 * np.exp(ONE), rtol=1e-5)
    space["f"] = gg.sqrt
    np.testing.assert_allclose(step(ONE).numpy(), 2 * ONE, rtol=1e-5)


@gg.no_grad()
def test_a_part_of_a_module_in_an_object_that_is_replaced():
    place = Place(model=nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    step = gg.compile(lambda x: place.model(x))
    for part in (nn.Tanh(), nn.ReLU(), nn.Sigmoid()):
        place.model[1] = part
        expected = place.model(ONE).detach().numpy()
        np.testing.assert_allclose(step(ONE).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_the_step_does_not_name_is_free():
    place = Place(factor=2.0, count=0, seen=[])
    step = gg.compile(lambda x: place.times(x) / 2)
    for number in range(4):
        place.count = number
        place.seen.append(number)
        assert step(ONE).tolist() == [2, 2]
    assert step.recordings == 1


@gg.no_grad()
def test_a_look_at_modules_costs_once_per_change(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    looks = []
    held = nn.Module.held
    monkeypatch.setattr(nn.Module, "held", lambda self: looks.append(self) or held(self))
    step = gg.compile(lambda x: model(x))
    step(ONE)
    model.eval()
    step(ONE)
    model.unrelated = 1
    del model.unrelated
    step(ONE)
    assert step.recordings == 2
    looks.clear()
    for _ in range(3):
        step(ONE)
    assert not looks


# What a step changes itself


def count_in_a_closure():
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return x * count

    return step, "'count', a variable around", lambda: count, 0


def count_in_a_global():
    def step(x):
        global calls
        calls += 1
        return x * calls

    return step, "'calls', a global of", lambda: calls, 0


def count_in_an_object():
    place = Place(count=0)

    def step(x):
        place.count += 1
        return x * place.count

    return step, "'count', an attribute of Place", lambda: place.count, 0


def new_attribute():
    place = Place()

    def step(x):
        place.hidden = x * 2
        return place.hidden

    return step, "'hidden', an attribute of Place", lambda: vars(place), {}


def count_in_a_dict():
    counts = {"calls": 0}

    def step(x):
        counts["calls"] += 1
        return x * counts["calls"]

    return step, "changing the dict", lambda: counts, {"calls": 0}


def list_that_is_overwritten():
    counts = [0]

    def step(x):
        counts[0] += 1
        return x * counts[0]

    return step, "changing the list", lambda: counts, [0]


def count_in_a_module():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 0

        def forward(self, x):
            self.count += 1
            return x * self.count

    model = Counting()
    return model, "'count', an attribute of Counting", lambda: model.count, 0


@pytest.mark.parametrize(
    "make",
    [
        count_in_a_closure,
        count_in_a_global,
        count_in_an_object,
        new_attribute,
        count_in_a_dict,
        list_that_is_overwritten,
        count_in_a_module,
    ],
    ids=lambda make: make.__name__,
)
def test_what_a_step_changes_is_an_error_and_put_back(make):
    step, words, now, before = make()
    with pytest.raises(NotRecordable, match=r"test_guards\.py:\d+") as caught:
        gg.compile(step)(ONE)
    assert words in str(caught.value)
    assert now() == before


def test_an_object_that_gets_another_class():
    class Other(Place):
        shared = 3.0

    place = Place()
    step = gg.compile(place.times_shared)
    assert step(ONE).tolist() == [2, 2]
    place.__class__ = Other
    assert step(ONE).tolist() == [3, 3]


def test_the_line_that_sets_a_variable_is_named():
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return x

    with pytest.raises(NotRecordable) as caught:
        gg.compile(step)(ONE)
    assert f"test_guards.py:{step.__code__.co_firstlineno + 2}:" in str(caught.value)
