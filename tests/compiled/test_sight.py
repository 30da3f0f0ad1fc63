"""Python that a step depends on and that is not spelled out as a name: seen, or refused."""

from __future__ import annotations

import collections
import itertools
import random
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from plain_and_compiled import Cases, leaf, numbers, seen, state_of

import gpugrad as gg
from gpugrad import emulator, optim
from gpugrad.cuda.recording import NotRecordable

case = Cases()


def following(of: Callable[[Any], float], scale: Any, change: Callable[[Any, float], Any]) -> Any:
    """Return a case whose step multiplies by a number that it finds somewhere, which changes."""

    def found(wrap: Callable) -> list:
        w, place = leaf(3), scale()

        @wrap
        def step(x: gg.Tensor) -> gg.Tensor:
            return (w * x).sum() * of(place)

        saw = []
        for number in (1.0, 2.0, 2.0, 4.0):
            change(place, number)
            saw.append(seen(step(numbers(3))))
        return saw

    return found


class Scale:
    """A number, to be found in many ways."""

    def __init__(self) -> None:
        self.value = 0.0

    def __getitem__(self, index: int) -> float:
        return self.value

    def __float__(self) -> float:
        return self.value

    def __rmul__(self, other: float) -> float:
        return other * self.value

    def __enter__(self) -> float:
        return self.value

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def entered(place: Scale) -> float:
    with place as number:
        return number


def set_value(place: Any, number: float) -> None:
    place.value = number


def set_first(place: Any, number: float) -> None:
    place[0] = number


def pushed(place: Any, number: float) -> None:
    place.append(number)


FOLLOWED = {
    "getattr": (lambda p: getattr(p, "value"), Scale, set_value),  # noqa: B009
    "vars": (lambda p: vars(p)["value"], Scale, set_value),
    "getitem": (lambda p: p[0], Scale, set_value),
    "float": (float, Scale, set_value),
    "operator": (lambda p: 1.0 * p, Scale, set_value),
    "with": (entered, Scale, set_value),
    "set": (len, set, lambda place, number: place.add(number)),
    "deque": (lambda p: p[-1], collections.deque, pushed),
    "bytearray": (lambda p: p[0], lambda: bytearray(1), lambda p, n: set_first(p, int(n))),
    "UserDict": (lambda p: p[0], lambda: collections.UserDict({0: 0.0}), set_first),
    "array": (lambda p: float(p[0]), lambda: np.zeros(3), set_first),
    "sum of an array": (lambda p: float(p.sum()), lambda: np.zeros(3), set_first),
}


@pytest.mark.parametrize("name", FOLLOWED)
@gg.no_grad()
def test_a_step_follows_numbers_wherever_it_finds_them(name):
    Cases.agrees(following(*FOLLOWED[name]))


@gg.no_grad()
def test_a_proxy_and_a_weak_reference_are_looked_through():
    numbers_behind, scale = {0: 0.0}, Scale()
    behind = types.MappingProxyType(numbers_behind), weakref.ref(scale)

    def change(place: Any, number: float) -> None:
        numbers_behind[0] = scale.value = number

    def of(place: Any) -> float:
        return behind[0][0] + behind[1]().value

    Cases.agrees(following(of, Scale, change))


def test_functions_that_get_other_code_or_defaults_are_recorded_again(launched):
    def helper(x, factor=1.0):
        return x * factor

    def doubled(x, factor=1.0):
        return x * factor * 2

    step = gg.compile(lambda x: helper(x))
    found = [float(step(np.ones((), np.float32)))]
    helper.__defaults__ = (3.0,)
    found.append(float(step(np.ones((), np.float32))))
    helper.__code__ = doubled.__code__  # as reloading a module does
    found.append(float(step(np.ones((), np.float32))))
    assert found == [1, 3, 6]


@case
def settings_as_numbers(wrap):
    w = leaf(3)
    optimizer = optim.SGD([w], lr=0.5, momentum=0.5)
    schedule = optim.LRScheduler(optimizer, lambda step: 0.5**step)
    optimizer.scale = 1.0

    @wrap
    def step(x):
        group = optimizer.param_groups[0]
        loss = (w * x).sum() * group["lr"] * schedule.get_last_lr()[0] * optimizer.scale
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss, {k: v for k, v in group.items() if k != "params"}

    saw = []
    for number in range(4):
        loss, settings = step(numbers(3, seed=number))
        saw.append(seen(loss, w, sorted(settings.items()), *state_of(optimizer)))
        schedule.step()
        optimizer.scale = 2.0 if number > 1 else 1.0
    return saw


@case
def settings_of_a_dict_in_the_place_of_a_group(wrap):
    w = leaf(3)
    optimizer = optim.SGD([w], lr=0.5)
    optimizer.param_groups[0] = dict(optimizer.param_groups[0])

    @wrap
    def step(x):
        ((w * x).sum() * optimizer.param_groups[0]["lr"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    saw = []
    for number in range(3):
        optimizer.param_groups[0]["lr"] = 0.5**number
        step(numbers(3))
        saw.append(seen(w))
    return saw


@case
def a_setting_set_to_what_it_is(wrap):
    w = leaf(3)
    optimizer = optim.SGD([w], lr=0.5, momentum=0.5)

    @wrap
    def step(x):
        optimizer.param_groups[0]["nesterov"] = False
        (w * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    saw = []
    for number in range(4):
        optimizer.param_groups[0]["nesterov"] = number == 2
        step(numbers(3, seed=number))
        saw.append(seen(w, optimizer.param_groups[0]["nesterov"]))
    return saw


@case
def hooks_look_around(wrap):
    w, factors = leaf(3), {"of": 1.0}
    w.register_hook(lambda g: g * factors["of"])

    @wrap
    def step(x):
        w.grad = None
        (w * x).sum().backward()

    saw = []
    for number in (1.0, 2.0, 4.0):
        factors["of"] = number
        step(numbers(3))
        saw.append(seen(w.grad))
    return saw


@case
def copies_onto_themselves(wrap):
    line, square = gg.tensor(numbers(8)), gg.tensor(numbers(5, 5))

    @wrap
    def step(x):
        line[1:] = line[:-1]
        line.data[:2] = x[:2]
        square[...] = square.T
        square[:3] = square[2:]
        return line * 1

    return [seen(step(numbers(3, seed=i)), line, square) for i in range(3)]


@pytest.mark.parametrize("one", case.found, ids=lambda one: one.__name__)
def test_a_compiled_step_is_the_plain_one(one):
    case.agrees(one)


def test_what_an_optimiser_reads_of_its_settings_is_no_number_of_the_step(launched):
    w = leaf(3)
    optimizer = optim.SGD([w], lr=0.5)

    @gg.compile
    def step(x):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None
        (w * x).sum().backward()
        optimizer.step()

    for number in range(4):
        optimizer.param_groups[0]["lr"] = 0.5**number
        step(numbers(3))
    assert step.recordings <= 2  # the second has a gradient to begin with


GENERATOR = np.random.default_rng(0)
OWN = random.Random(0)
SYSTEM = random.SystemRandom()
AnyName = random.Random
DRAWS: dict[str, Callable[[], Any]] = {
    "random": lambda: random.random(),
    "random.Random": lambda: OWN.randint(0, 9),
    "numpy.random": lambda: np.random.rand(),
    "Generator": lambda: GENERATOR.integers(9),
    "SystemRandom": lambda: SYSTEM.random(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_drawing_from_another_generator_is_refused(name, launched):
    draw = DRAWS[name]
    before = [random.getstate(), OWN.getstate(), GENERATOR.bit_generator.state]

    @gg.compile
    def step(x):
        return x * float(draw())

    with pytest.raises(NotRecordable, match=r"(?s)step: drawing from a .*test_sight.py:\d+"):
        step(numbers(3))
    assert before == [random.getstate(), OWN.getstate(), GENERATOR.bit_generator.state]


class Random:
    """Something of that name that draws nothing."""

    number = 3.0


def made_in_a_helper():
    return np.random.default_rng()


def made_by_an_import():
    from random import Random as Anything

    return Anything(), random.Random().random()


@pytest.mark.parametrize(
    "make",
    [
        lambda: random.Random(),
        lambda: AnyName(),
        lambda: np.random.RandomState(),
        lambda: np.random.Generator(np.random.PCG64()),
        lambda: made_in_a_helper(),
        made_by_an_import,
    ],
    ids=["Random", "another name", "RandomState", "PCG64", "helper", "import"],
)
def test_a_generator_that_a_step_makes_without_a_seed_is_refused(make, launched):
    with pytest.raises(NotRecordable, match=r"generator without a seed .*test_sight\.py:\d+"):
        gg.compile(lambda x: [make(), x][1])(numbers(3))


def test_a_generator_that_a_step_makes_with_a_seed_draws_the_same_each_time(launched):
    step = gg.compile(lambda x: x * random.Random(3).random() * np.random.default_rng(3).random())
    expected = random.Random(3).random() * np.random.default_rng(3).random()
    for _ in range(2):
        np.testing.assert_allclose(step(np.ones(3, np.float32)).numpy(), expected, rtol=1e-6)
    assert gg.compile(lambda x: x * Random().number)(np.ones(1, np.float32)).tolist() == [3]


@pytest.mark.parametrize("make", [itertools.count, lambda: iter([1, 2]), lambda: (i for i in [1])])
def test_taking_from_an_iterator_is_refused(make, launched):
    batches = make()

    @gg.compile
    def step(x):
        return x * next(batches)

    with pytest.raises(NotRecordable, match="taking from the iterator 'batches'"):
        step(numbers(3))


def test_an_error_that_the_step_catches_is_raised_all_the_same(launched):
    @gg.compile
    def step(x):
        try:
            return x * x.sum().item()
        except RuntimeError:
            return x

    with pytest.raises(NotRecordable, match=r"reading the values.*test_sight.py:\d+.*item"):
        step(numbers(3))


def test_tensors_logged_in_a_list_are_refused(launched):
    losses: list = []

    @gg.compile
    def step(x):
        losses.append(x.sum())

    with pytest.raises(NotRecordable, match="changing the list 'losses'"):
        step(numbers(3))
    assert losses == []


def test_arguments_on_memory_that_changes_before_they_are_read(launched):
    w = gg.tensor(numbers(6))

    @gg.compile
    def late(x):
        w.copy_(w * 2)
        return x + w[:3]

    @gg.compile
    def early(x):
        y = (x + w[:3]).sum()
        w.copy_(w * 2)
        return y

    assert float(early(w[:3])) == numbers(6)[:3].sum() * 2
    late(numbers(3))
    with pytest.raises(NotRecordable, match=r"array 0 .* shares its memory .*copy"):
        late(w[3:])
    with pytest.raises(NotRecordable, match=r"array 0 .* shares its memory .*copy"):
        late(np.from_dlpack(w.numpy())[3:])  # which NumPy does not know as a view
    late(w[3:].copy())


def test_an_argument_whose_memory_a_tensor_has_by_dlpack(launched):
    owner = numbers(6)
    w = gg.tensor(0.0)
    w.data = np.from_dlpack(owner)

    @gg.compile
    def step(x):
        w.copy_(w * 2)
        return x + w[:3]

    step(numbers(3))
    with pytest.raises(NotRecordable, match=r"array 0 .* shares its memory .*copy"):
        step(owner[3:])


@gg.no_grad()
def test_an_empty_tuple_among_the_constants_of_a_function():
    w = leaf(3)

    @gg.compile
    def step(x):
        return (w * x).sum() + len(())

    with emulator.enabled("plain"):
        assert step(numbers(3)).item() == pytest.approx(float((w * numbers(3)).sum()), rel=1e-6)


def test_anomalies_are_detected_in_a_compiled_step():
    w = leaf(3)
    step = gg.compile(lambda x: (w * x).sum().backward())
    with emulator.enabled("plain"):
        step(numbers(3))
        with gg.detect_anomaly(), pytest.raises(FloatingPointError, match="multiply"):
            step(np.full(3, np.nan, np.float32))


def test_an_iterator_of_the_name_of_another_attribute_is_no_matter(launched):
    scale = Scale()
    scale.value, scale.data = 2.0, iter([1])
    step = gg.compile(lambda x: x.data * getattr(scale, "value"))  # noqa: B009
    assert step(np.ones(3, np.float32)).tolist() == [2, 2, 2]
