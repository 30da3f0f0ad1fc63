"""gg.compile: arguments, methods, and which recording serves a call."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import functools
import gc
import math
import types
import weakref

import numpy as np
import pytest
from plain_and_compiled import by_kernels, numbers

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.cuda.recording import NotRecordable

pytestmark = pytest.mark.usefixtures("launched")
ONE = np.ones(2, np.float32)


# Numbers


def sign(x, number):
    return x * math.copysign(2.0, number)


def test_zeros_of_both_signs():
    step = gg.compile(sign)
    for number in (0.0, -0.0, 0.0, -0.0):
        assert step(ONE, number).tolist() == sign(ONE, number).tolist()
    assert step.recordings == 2


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [n], lambda n: {"k": (n,)}])
def test_equal_numbers_of_other_types(wrap):
    seen = []

    @gg.compile
    def step(x, number):
        seen.append(number)
        return x

    numbers = [1, 1.0, True, np.float32(1), np.float64(1), np.int64(1)]
    for number in numbers * 2:
        step(ONE, wrap(number))
    assert step.recordings == len(numbers)
    assert len(seen) == len(numbers)


@pytest.mark.parametrize("nan", [math.nan, np.float32(np.nan), np.float64(np.nan)])
def test_nan_is_recorded_once(nan):
    step = gg.compile(lambda x, number: x * (number if number == number else 3.0))
    for _ in range(3):
        assert step(ONE, nan * 1).tolist() == [3, 3]
    assert step.recordings == 1


def test_nan_in_a_closure_is_recorded_once():
    number = math.nan
    step = gg.compile(lambda x: x * (number if number == number else 3.0))
    for _ in range(3):
        number = float("nan")
        assert step(ONE).tolist() == [3, 3]
    assert step.recordings == 1


def test_enumerations_and_names():
    kind = enum.Enum("kind", "once twice")
    step = gg.compile(lambda x, how, name: x * how.value if name == "times" else x + how.value)
    assert step(ONE, kind.twice, "times").tolist() == [2, 2]
    assert step(ONE, kind.twice, "plus").tolist() == [3, 3]
    assert step(ONE, kind.once, name="plus").tolist() == [2, 2]


def test_named_tuples_of_one_name():
    step = gg.compile(lambda batch: batch.x - batch.y)
    for fields in ("x y", "y x"):
        batch = collections.namedtuple("batch", fields)(ONE, ONE * 3)
        assert step(batch).tolist() == (batch.x - batch.y).tolist()


def test_dicts_of_other_types():
    class Named(dict):
        __slots__ = ()

        def __getattr__(self, name):
            return self[name]

    class Marked(dict):
        """A dict with an attribute."""

    step = gg.compile(lambda batch: batch.x * batch["y"])
    assert step(Named(x=ONE, y=3.0)).tolist() == [3, 3]
    filled = gg.compile(lambda batch: batch["x"] * batch["y"])
    assert filled(collections.defaultdict(lambda: 2.0, x=ONE)).tolist() == [2, 2]
    scaled = gg.compile(lambda batch: batch["x"] * batch.scale)
    for scale in (2.0, 3.0):
        marked = Marked(x=ONE)
        marked.scale = scale
        assert scaled(marked).tolist() == [scale] * 2
    for kind in (collections.OrderedDict, Named):
        step = gg.compile(lambda x, kind=kind: kind(x=x * 2))
        results = [step(ONE), step(ONE * 3)]
        assert [type(result) for result in results] == [kind, kind]
        assert [result["x"].tolist() for result in results] == [[2, 2], [6, 6]]


@gg.no_grad()
def test_attributes_of_dicts():
    class Open(dict):
        """A dict whose items are its attributes."""

        def __init__(self, **items):
            super().__init__(**items)
            self.__dict__ = self

    class Marked(dict):
        """A dict with attributes."""

    for kind in (Open, Marked):
        step = gg.compile(lambda batch: (batch["x"] * batch.scale, batch))
        kept, kept_scale = kind(x=ONE), gg.ones(2)
        for i in range(1, 4):
            kept.scale = kept_scale * i
            other = kind(x=ONE * 2)
            other.scale = ONE * i
            for batch in (kept, other):
                product, returned = step(batch)
                assert product.tolist() == (batch["x"] * i).tolist()
                assert type(returned) is kind
                assert returned.scale.tolist() == [i, i]
                assert (returned.get("scale") is returned.scale) is (kind is Open)
        assert step.recordings == 1
        step(kept)
        kept.scale = 4.0
        assert step(kept)[0].tolist() == [4, 4]


@by_kernels
def test_the_order_of_axes_makes_no_other_recording_of_kernels(launched):
    w = gg.ones(2, 3, requires_grad=True)

    @gg.compile
    def step(x):
        (w * x).sum().backward()
        return w.grad * 1

    x = numbers(2, 3)
    for i, array in enumerate((x, np.asfortranarray(x), x[::-1].copy()[::-1])):
        w.grad = gg.asarray(np.ones((2, 3), np.float32, order="CF"[i % 2]))
        np.testing.assert_allclose(step(array).numpy(), 1 + x, rtol=1e-6)
    assert step.recordings == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda x: zip([x], [1], strict=True),
        lambda x: iter([1, 2]),
        lambda x: {"loss": x}.values(),
        lambda x: types.SimpleNamespace(loss=x),
        lambda x: types.SimpleNamespace(losses=[x]),
        lambda x: collections.deque([x]),
        lambda x: (1, {"a": {2}}),
    ],
)
@gg.no_grad()
def test_results_that_a_replay_cannot_return(make):
    step = gg.compile(lambda x: make(x * 2))
    with pytest.raises(TypeError, match="is returned; results are tensors"):
        step(ONE)


@gg.no_grad()
def test_an_object_that_was_there_before_is_returned_as_it_is():
    model, place = nn.Linear(2, 2), types.SimpleNamespace(w=gg.ones(2))
    much = range(10**15)  # nothing is taken from it
    step = gg.compile(lambda x: (model(x) * place.w, model, place, gg.float32, much))
    for _ in range(2):
        assert step(ONE)[1:] == (model, place, gg.float32, much)


# What cannot be an argument


def test_an_argument_of_another_kind_names_the_step():
    @gg.compile
    def update(x):
        return x

    with pytest.raises(TypeError, match=r"update: an argument is a set"):
        update({1})
    with pytest.raises(TypeError, match=r"update: an argument is the result.*detach"):
        update(gg.tensor([1.0], requires_grad=True) * 2)


def test_what_a_step_cannot_do_names_the_step():
    @gg.compile
    def look(x):
        return float(x[0])

    @gg.compile
    def sets(x):
        return {x}

    with pytest.raises(NotRecordable, match=r"look: reading the values.*test_arguments\.py:\d+"):
        look(ONE)
    with pytest.raises(TypeError, match=r"sets: a set is returned; results are tensors"):
        sets(ONE)


def test_an_argument_that_the_step_changes():
    def add(x):
        x += 1.0
        return x

    def put(x):
        x[0] = 5.0
        return x

    for step in (add, put):
        x = gg.ones(2)
        with pytest.raises(NotRecordable, match=r"argument.*test_arguments\.py:\d+"):
            gg.compile(step)(x)
        assert x.tolist() == [1, 1]


# Methods


@dataclasses.dataclass(frozen=True)
class Equal:
    factor: gg.Tensor = dataclasses.field(compare=False)

    @gg.compile
    def step(self, x):
        return x * self.factor


class Unhashable:
    __hash__ = None

    def __init__(self, factor):
        self.factor = factor

    @gg.compile
    def step(self, x):
        return x * self.factor


class Child(Unhashable):
    @gg.compile
    def step(self, x):
        return super().step(x) + 1


class Slots:
    __slots__ = ()

    @gg.compile
    def step(self, x):
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    @gg.compile
    def loss(self, x):
        return self.inner(x).sum()


class Twins:
    """Methods of one name: lambdas have no other."""

    doubled = gg.compile(lambda self, x: x * 2)
    tripled = gg.compile(lambda self, x: x * 3)


def test_methods_of_one_name():
    twins = Twins()
    for _ in range(2):
        assert twins.doubled(ONE).tolist() == [2, 2]
        assert twins.tripled(ONE).tolist() == [3, 3]
    assert (twins.doubled.recordings, twins.tripled.recordings) == (1, 1)


def test_a_method_that_is_replaced_by_one_of_its_name(monkeypatch):
    def made(factor):
        return gg.compile(lambda self, x: x * factor)

    twins = Twins()
    for factor in (4.0, 5.0):
        monkeypatch.setattr(Twins, "doubled", made(factor))
        assert twins.doubled(ONE).tolist() == [factor] * 2


def test_equal_owners_have_recordings_of_their_own():
    one, two = Equal(gg.tensor(1.0)), Equal(gg.tensor(2.0))
    assert one == two
    for _ in range(2):
        assert one.step(ONE).tolist() == [1, 1]
        assert two.step(ONE).tolist() == [2, 2]
    assert one.step is one.step
    assert (one.step.recordings, two.step.recordings) == (1, 1)


def test_an_owner_without_a_hash_and_one_that_inherits():
    assert Unhashable(2.0).step(ONE).tolist() == [2, 2]
    child = Child(2.0)
    assert child.step(ONE).tolist() == [3, 3]
    child.factor = 4.0
    assert child.step(ONE).tolist() == [5, 5]


def test_an_owner_without_a_place_for_recordings():
    with pytest.raises(TypeError, match=r"Slots\.step is a method of a Slots, which has __slots__"):
        Slots().step(ONE)


@pytest.mark.parametrize(
    "make", [lambda: Unhashable(gg.tensor(2.0)), Model], ids=["plain", "model"]
)
@gg.no_grad()
def test_an_owner_is_not_kept_alive(make):
    owner = make()
    (owner.step if isinstance(owner, Unhashable) else owner.loss)(ONE)
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@gg.no_grad()
def test_a_copy_of_an_owner(copied):
    model = Model()
    first = model.loss(ONE).item()
    other = copied(model)
    other.inner = nn.Linear(2, 2)
    np.testing.assert_allclose(other.loss(ONE).item(), other.inner(ONE).sum().item(), rtol=1e-5)
    assert model.loss(ONE).item() == first
    assert (model.loss.recordings, other.loss.recordings) == (1, 1)
    assert other.state_dict().keys() == model.state_dict().keys()


# Which recordings are kept


def test_the_recording_that_was_not_used_for_longest_is_forgotten():
    traced = []

    @gg.compile
    def step(x, number):
        traced.append(number)
        return x * number

    for number in range(16):
        step(ONE, number)
    step(ONE, 0)
    with pytest.warns(UserWarning, match="was recorded 16 times"):
        step(ONE, 16)  # in the place of 1
    step(ONE, 0)
    assert traced == [*range(17)]
    step(ONE, 1)
    assert traced[17:] == [1]


@gg.no_grad()
def test_what_a_forgotten_recording_was_made_for_is_not_kept_alive():
    step = gg.compile(lambda x, model: model(x))
    model = nn.Linear(2, 2)
    step(ONE, model)
    reference = weakref.ref(model)
    del model
    others = [nn.Linear(2, 2) for _ in range(16)]
    for other in others[:15]:
        step(ONE, other)
    with pytest.warns(UserWarning, match="was recorded 16 times"):
        step(ONE, others[15])
    gc.collect()
    assert reference() is None


# Settings of optimisers


def make_trainer(**given):
    w = gg.tensor([1.0, 1.0], requires_grad=True)
    return w, optim.SGD([w], **given)


def test_a_learning_rate_that_is_an_argument():
    def run(wrap):
        w, optimizer = make_trainer(lr=1.0)

        @wrap
        def step(x, lr):
            optimizer.param_groups[0]["lr"] = lr
            (w * x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        for lr in (0.5, 0.5, 0.25, 0.5, 0.25, 0.5, 1, 0.5):
            step(ONE, lr)
        optimizer.param_groups[0]["lr"] = 100.0  # which the step does not leave at that
        for lr in (0.5, 1, 0.5):
            step(ONE, lr)
        return w.tolist(), optimizer.param_groups[0]["lr"], step

    *plain, _ = run(lambda f: f)
    *replayed, step = run(gg.compile)
    assert plain == replayed
    assert step.recordings <= 10


def test_a_learning_rate_that_decays_in_the_step():
    def run(wrap):
        w, optimizer = make_trainer(lr=1.0)

        @wrap
        def step(x):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            (w * x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(5):
            step(ONE)
        return w.tolist()

    assert run(lambda f: f) == run(gg.compile)


def test_a_schedule_that_goes_on_in_the_step():
    w, optimizer = make_trainer(lr=1.0)
    schedule = optim.LRScheduler(optimizer, optim.schedule.linear(1.0, steps=4))

    @gg.compile
    def step(x):
        schedule.step()
        (w * x).sum().backward()
        optimizer.step()

    with pytest.raises(NotRecordable, match="'LRScheduler'"):
        step(ONE)
    assert schedule.last_step == 0


def test_settings_from_outside_are_free():
    w, optimizer = make_trainer(lr=1.0)

    @gg.compile
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for lr in (1, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = lr
        step(ONE)
    assert w.tolist() == [-0.75, -0.75]
    assert step.recordings == 1
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert [type(v) for k, v in optimizer.param_groups[0].items() if k != "params"] == [
        type(v) for v in {**optimizer.defaults, "lr": 0.25}.values()
    ]


def test_momentum_that_is_switched_on():
    def run(wrap):
        w, optimizer = make_trainer(lr=0.1)

        @wrap
        def step(x):
            (w * x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        for momentum in (0.0, 0.9, 0.9, 0.5, 0.0, 0.9):
            optimizer.param_groups[0]["momentum"] = momentum
            step(ONE)
        return w.numpy(), step

    plain, _ = run(lambda f: f)
    replayed, step = run(gg.compile)
    np.testing.assert_allclose(replayed, plain, rtol=1e-6)
    assert step.recordings == 2


def test_betas_that_are_changed():
    def run(wrap):
        w = gg.tensor([1.0, 2.0], requires_grad=True)
        optimizer = optim.Adam([w], lr=0.1)

        @wrap
        def step(x):
            (w * w * x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        for betas in ([0.9, 0.999], (0.5, 0.6), (0.5, 0.6), (0.7, 0.9)):
            optimizer.param_groups[0]["betas"] = betas
            step(ONE)
            assert optimizer.param_groups[0]["betas"] == tuple(betas)
        return w.numpy()

    np.testing.assert_allclose(run(gg.compile), run(lambda f: f), rtol=1e-6)


def test_a_partial_function_has_a_name_in_messages():
    step = gg.compile(functools.partial(sign, number=1.0))
    assert step(ONE).tolist() == [2, 2]
    with pytest.raises(TypeError, match="partial: an argument is a set"):
        step({1})


@gg.no_grad()
def test_a_copy_of_an_owner_that_finds_methods_by_their_names():
    """As pickle does; the name leads to the compiled method."""
    model, other = Model(), Model()
    model.loss(ONE)
    for key, value in vars(model).items():
        if isinstance(value, type(Model.loss)):
            kind, (function, device) = value.__reduce__()
            vars(other)[key] = kind(getattr(other, function.__name__), device)
    np.testing.assert_allclose(other.loss(ONE).item(), other.inner(ONE).sum().item(), rtol=1e-5)
