"""``gg.fuse``: one kernel each way where kernels run, the function itself everywhere else."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.cuda import elementwise
from gpugrad.ops import random


def gated(x, gate, bias, scale=0.1):
    return gg.where(x > gate, gg.nn.functional.gelu(x + bias), x * gg.sigmoid(gate) * scale)


def pair(x, y):
    return gg.tanh(x) * y, gg.exp(-x * x)


GATED, PAIR = gg.fuse(gated), gg.fuse(pair)
SHAPES = ((4, 33), (4, 33), (33,))


def drawn(*shapes: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        gg.Tensor(np.asarray(rng.standard_normal(s)).astype(dtype), requires_grad=True)
        for s in shapes
    ]


def launches(run: Callable[[], Any]) -> dict[str, int]:
    """Return how often each kernel ran, those aside that add up gradients of what was broadcast."""
    before = cuda.launches.copy()
    run()
    counted = cuda.launches - before
    return {name: n for name, n in counted.items() if not name.startswith("column_sums")}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sources made from now on."""
    made: list[str] = []

    def source(name: str, **kwargs: Any) -> cuda.Source:
        made.append(name)
        return cuda.Source(name, **kwargs)

    monkeypatch.setattr(elementwise, "Source", source)
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tolerance_rule_and_one_kernel_each_way(dtype):
    before = GATED.launches["cuda"]
    with emulator.enabled("plain"):
        counted = launches(lambda: testing.assert_implements(GATED, gated, drawn(*SHAPES), dtype))
    assert counted == {"elementwise_gated_forward": 1, "elementwise_gated_backward": 1}
    assert GATED.launches["cuda"] == before + 1


def test_no_fault_and_the_same_bits_in_any_order():
    inputs = drawn(*SHAPES)

    def run() -> Any:
        out = GATED(*inputs)
        return out.data, [g.data for g in gg.grad(out.sum(), inputs)]

    out, grads = emulator.sweep(run)
    expected = gated(*inputs)
    np.testing.assert_allclose(out, expected.data, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, gg.grad(expected.sum(), inputs), strict=True):
        np.testing.assert_allclose(a, b.data, rtol=1e-5, atol=1e-5)


def test_on_numpy_it_is_the_function():
    inputs = drawn(*SHAPES, dtype="float64")
    before = GATED.launches["spec"]
    assert launches(lambda: testing.gradcheck(GATED, inputs)) == {}
    testing.gradgradcheck(GATED, inputs)
    assert GATED.launches["spec"] > before
    np.testing.assert_array_equal(GATED(*inputs).data, gated(*inputs).data)
    assert (GATED.__name__, GATED.__wrapped__) == ("gated", gated)


def test_a_second_derivative_is_that_of_the_function():
    inputs = drawn(*SHAPES)

    def second(f: Any) -> list[np.ndarray]:
        grads = gg.grad(f(*inputs).sum(), inputs, create_graph=True)
        total = sum((g * g).sum() for g in grads)
        return [g.data for g in gg.grad(total, inputs)]

    with emulator.enabled("plain"):
        found = second(GATED)
    for a, b in zip(found, second(gated), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)], ids=str)
def test_several_results_of_which_some_are_used(used):
    x, y = drawn((3, 5), (3, 5))

    def gradients(f: Any) -> list[np.ndarray]:
        total = sum(out.sum() for out, u in zip(f(x, y), used, strict=True) if u)
        return [g.data for g in gg.grad(total, [x, y])]

    with emulator.enabled("plain"):
        out = PAIR(x, y)
        assert isinstance(out, tuple)
        counted = launches(lambda: gradients(PAIR))
        found = gradients(PAIR)
    assert counted == {"elementwise_pair_forward": 1, "elementwise_pair_backward": 1}
    for a, b in zip(found, gradients(pair), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_only_the_gradients_wanted():
    x, gate, bias = drawn(*SHAPES)
    with emulator.enabled("plain"):
        alone = gg.grad(GATED(x, gate, bias).sum(), [bias])[0]
        constant = gg.grad(GATED(x.detach(), gate.detach(), bias).sum(), [bias])[0]
        together = gg.grad(GATED(x, gate, bias).sum(), [x, bias])[1]
    np.testing.assert_array_equal(alone.data, together.data)
    np.testing.assert_array_equal(alone.data, constant.data)
    assert not GATED(x.detach(), gate.detach(), bias.detach()).requires_grad
    with gg.no_grad(), emulator.enabled("plain"):
        assert not GATED(x, gate, bias).requires_grad


def test_another_number_compiles_nothing(builds):
    inputs = drawn(*SHAPES)
    expected = {scale: gated(*inputs, scale=scale).data for scale in (0.3, 0.4, 3)}
    with emulator.enabled("plain"):
        GATED(*inputs, scale=0.7)
        del builds[:]
        for scale, values in expected.items():
            out = GATED(*inputs, scale=scale).data
            np.testing.assert_allclose(out, values, rtol=1e-5, atol=1e-6)
    assert builds == []


def test_numbers_from_a_closure_are_looked_at_again():
    factor = 2.0

    @gg.fuse
    def scaled(x):
        return x * factor + 1

    (x,) = drawn((5,))
    with emulator.enabled("plain"):
        np.testing.assert_allclose(scaled(x).data, x.data * 2 + 1, rtol=1e-6)
        factor = 3.0
        np.testing.assert_allclose(scaled(x).data, x.data * 3 + 1, rtol=1e-6)
    assert scaled.launches == {"cuda": 2}


FACTOR = 2.0
CONFIG = types.ModuleType("config")


def by_factor(x, power=1):
    return x * FACTOR if power == 1 else by_factor(x * FACTOR, power - 1)


def by_default(x, helper=by_factor):
    return helper(x) + 1


def by_lambda(x):
    return (lambda y: y * FACTOR)(x) + 1


def by_config(x):
    return x * CONFIG.factor + 1 if CONFIG.helper is None else CONFIG.helper(x) + 1


def by_closure():
    helper = by_factor
    return lambda x: helper(x) + 1


FUSED = gg.fuse(by_factor)
REACHED = {
    "a function": lambda x: by_factor(x) + 1,
    "a function of a function": lambda x: by_default(x),
    "a default": by_default,
    "a function inside": by_lambda,
    "a closure": by_closure(),
    "another fused function": lambda x: FUSED(x) + 1,
    "a module": by_config,
    "recursion": lambda x: by_factor(x, 3) / FACTOR / FACTOR + 1,
    "a number beside the library": lambda x: gg.exp(gg.log(abs(x))) * FACTOR * gg.sign(x) + 1,
}


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.int64, np.float16])
@pytest.mark.parametrize("how", REACHED)
def test_numbers_that_are_reached_are_looked_at_again(how, kind, monkeypatch):
    run = gg.fuse(REACHED[how])
    x = gg.tensor([1.0, 2.0])
    CONFIG.helper = None
    with emulator.enabled("plain"):
        for factor in (2, 10, 2):
            monkeypatch.setitem(globals(), "FACTOR", kind(factor))
            CONFIG.factor = kind(factor)
            out = run(x)
            assert out.dtype == run.function(x).dtype == gg.float32
            np.testing.assert_allclose(out.data, x.data * factor + 1, rtol=1e-6)
    assert run.launches == {"cuda": 3}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("number", [np.float32(0.1), np.float16(0.1), np.int8(3)], ids=repr)
def test_numpy_numbers_count_as_they_do_outside(number, dtype):
    run = gg.fuse(lambda x: gg.where(x > number, number * x, x + number))
    (x,) = drawn((9,), dtype=dtype)
    expected = run(x)
    with emulator.enabled("plain"):
        found = run(x)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.data, expected.data)
    assert run.launches == {"spec": 1, "cuda": 1}


def test_functions_that_are_replaced(monkeypatch):
    run = gg.fuse(by_config)
    x = gg.tensor([1.0, 2.0])
    CONFIG.factor = 1.0
    with emulator.enabled("plain"):
        for helper, expected in ((by_factor, [3, 5]), (gg.sin, np.sin([1, 2]) + 1), (None, [2, 3])):
            CONFIG.helper = helper
            np.testing.assert_allclose(run(x).data, expected, rtol=1e-6)
    assert run.launches == {"cuda": 3}


def test_a_number_that_changed_before_the_second_derivative(monkeypatch):
    run = gg.fuse(lambda x: by_factor(x) * x)
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    with emulator.enabled("plain"):
        out = run(x).sum()
        monkeypatch.setitem(globals(), "FACTOR", 10.0)
        np.testing.assert_array_equal(gg.grad(out, [x], retain_graph=True)[0].data, 4 * x.data)
        with pytest.raises(RuntimeError, match="changed after the forward"):
            gg.grad(out, [x], create_graph=True)


class Changing:
    k = 2.0


class Number(float):
    k = 2.0


CHANGING, NUMBER, LIST, TENSOR = Changing(), Number(3.0), [2.0], gg.tensor(2.0)
K = "k"


def method_of(x, holder):
    return x * holder().k


def attribute(x):
    return x * attribute.k


def imported(x):
    import fuse_config

    return x * fuse_config.k


def passed(x):
    return take_module(x, CONFIG)


def take_module(x, module):
    return x * module.k


def set_all(k):
    Changing.k = Number.k = CONFIG.k = attribute.k = LIST[0] = k
    TENSOR.fill_(k)


CHANGES = {
    "a class": lambda x: x * Changing.k,
    "an object": lambda x: x * CHANGING.k,
    "a class as an argument": (lambda x, c: x * c.k, Changing),
    "a number with attributes": (lambda x, n: x * n.k, NUMBER),
    "a class inside a tuple": (lambda x, pair: x * pair[0].k, (Changing,)),
    "an object made inside": (method_of, Changing),
    "a list": lambda x: x * LIST[0],
    "a tensor": lambda x: x * TENSOR.item(),
    "a tensor in a tuple": (lambda x, pair: x * pair[0].item(), (TENSOR,)),
    "getattr": lambda x: x * getattr(Changing, K),
    "getattr of a module": lambda x: x * getattr(CONFIG, K),
    "globals": lambda x: x * globals()["LIST"][0],
    "an import": imported,
    "a module that is passed on": passed,
    "a module as an argument": (take_module, CONFIG),
    "a partial function": functools.partial(method_of, holder=Changing),
    "a bound method": types.MethodType(lambda self, x: x * self.k, CHANGING),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_may_change_unseen_runs_as_it_is(what, monkeypatch):
    monkeypatch.setitem(sys.modules, "fuse_config", CONFIG)
    function, *others = CHANGES[what] if isinstance(CHANGES[what], tuple) else (CHANGES[what],)
    run = gg.fuse(function)
    x = gg.tensor([1.0, 2.0])
    with emulator.enabled("plain"):
        for k in (2.0, 10.0):
            set_all(k)
            np.testing.assert_array_equal(run(x, *others).data, x.data * k)
    assert run.launches == {"spec": 2}


def test_attributes_of_functions_are_looked_at_again():
    run = gg.fuse(attribute)
    x = gg.tensor([1.0, 2.0])
    with emulator.enabled("plain"):
        for k in (2.0, 10.0):
            set_all(k)
            np.testing.assert_array_equal(run(x).data, x.data * k)


def test_what_a_symbol_does_not_know_of_a_tensor():
    run = gg.fuse(lambda x: x * 2 if x.requires_grad else x * 3)
    recording = gg.fuse(lambda x: x * 2 if gg.is_grad_enabled() else x * 3)
    x = gg.ones(2)
    with emulator.enabled("plain"), gg.no_grad():
        assert run(x).tolist() == recording(x).tolist() == [3, 3]


def test_backward_after_the_emulator_was_left():
    inputs = drawn(*SHAPES)
    with emulator.enabled("plain"):
        out = GATED(*inputs).sum()
    expected = gg.grad(gated(*inputs).sum(), inputs)
    found = gg.grad(out, inputs)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-6, atol=1e-6)


def test_masks_and_float32_beside_bfloat16():
    @gg.fuse
    def masked(x, mask, w):
        return gg.where(mask, x.astype(gg.float32) * w, 0.0)

    x = gg.Tensor(np.linspace(-2, 2, 15).astype(ml_dtypes.bfloat16), requires_grad=True)
    w = gg.Tensor(np.linspace(1, 2, 15).astype(np.float32), requires_grad=True)
    mask = x > 0
    with emulator.enabled("plain"):
        out = masked(x, mask, w)
        grads = gg.grad(out.sum(), [x, w])
    assert masked.launches == {"cuda": 1}
    expected = gg.grad(masked(x, mask, w).sum(), [x, w])
    assert out.dtype == gg.float32
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.data, b.data)


def test_inside_another_one_it_is_part_of_it():
    @gg.fuse
    def outer(x, y):
        first, second = PAIR(x, y)
        return first * second

    x, y = drawn((3, 5), (3, 5))
    with emulator.enabled("plain"):
        counted = launches(lambda: outer(x, y))
    assert counted == {"elementwise_outer_forward": 1}


class Holder:
    scale = 2.0

    @gg.fuse
    def method(self, x):
        return x * self.scale


OUTSIDE = gg.ones(3)
HOLDER = Holder()


def reshaped(x):
    return x.reshape(-1) * 2


def rebound(x):
    y = x * 1
    y += 1
    x += 1
    return y + x


def decided(x):
    return x if (x > 0).all() else -x


def by_shape(x):
    return x / x.shape[0]


def noisy(x):
    return x + gg.random.normal(size=3)


def one_draw(x):
    return x * gg.random.uniform().item()


FUNCTIONS = {
    "a reduction": lambda x: x - x.mean(),
    "an index": lambda x: x[1:] * 2,
    "a new shape": reshaped,
    "a decision": decided,
    "a shape": by_shape,
    "the number of axes": lambda x: x * x.ndim,
    "an array": lambda x: x * np.ones(3, np.float32),
    "a tensor from outside": lambda x: x * OUTSIDE,
    "random numbers": noisy,
    "one random number": one_draw,
    "a mask as the result": lambda x: x > 0,
    "a list": lambda x: [x * 2, x * 3],
    "a number": lambda x: 3.0,
    "float64": lambda x: x.astype(gg.float64) * 2,
    "an object that may change": lambda x, holder=HOLDER: x * holder.scale,
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_what_is_no_formula_of_elements_runs_as_it_is(what):
    function = FUNCTIONS[what]
    run = gg.fuse(function)
    (x,) = drawn((3,))
    with emulator.enabled("plain"):
        gg.manual_seed(3)
        expected, state = function(x), random.get_state()
        for _ in range(2):
            gg.manual_seed(3)
            found = run(x)
            assert random.get_state() == state
    assert run.launches["cuda"] == 0
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    for a, b in pairs:
        np.testing.assert_array_equal(getattr(a, "data", a), getattr(b, "data", b))


@pytest.mark.parametrize("dtypes", [["float64"] * 3, ["int64"] * 3, ["float16", "bfloat16"] * 2])
def test_dtypes_without_kernels_run_as_they_are(dtypes):
    inputs = [gg.Tensor(np.ones((3, 5)).astype(d)) for d in dtypes[:3]]
    with emulator.enabled("plain"):
        counted = launches(lambda: gg.fuse(lambda x, y, z: x * y + z * 2)(*inputs))
    assert counted == {}


def test_a_method_runs_as_it_is_and_objects_may_change():
    holder = Holder()
    (x,) = drawn((3,))
    with emulator.enabled("plain"):
        np.testing.assert_array_equal(holder.method(x).data, x.data * 2)
        holder.scale = 3.0
        np.testing.assert_array_equal(holder.method(x).data, x.data * 3)


def test_changes_in_place_are_made():
    x, y = gg.ones(3), gg.ones(3)
    with emulator.enabled("plain"):
        found = gg.fuse(rebound)(x)
    np.testing.assert_array_equal(found.data, rebound(y).data)
    np.testing.assert_array_equal(x.data, y.data)


@pytest.mark.parametrize("shape", [(4,), (2, 0)], ids=str)
def test_errors_are_those_of_the_function(shape):
    x, y = gg.ones(*shape), gg.ones(3)
    with emulator.enabled("plain"), pytest.raises(ValueError, match=r"multiply: .*broadcast"):
        gg.fuse(lambda x, y: x * y * 2)(x, y)
    with emulator.enabled("plain"), pytest.raises(TypeError):
        gg.fuse(lambda x, y: x * y)(x)


def test_a_check_of_shapes_inside_is_not_lost():
    loss = gg.fuse(lambda x, y: gg.nn.functional.mse_loss(x, y, reduction="none"))
    x, y = gg.ones(2, 3), gg.ones(3)
    with emulator.enabled("plain"):
        assert loss(x, x * 3).tolist() == [[4.0] * 3] * 2
        assert loss.launches == {"cuda": 1}
        with pytest.raises(ValueError, match="mse_loss: input"):
            loss(x, y)


def test_a_result_smaller_than_the_others():
    run = gg.fuse(lambda x, y: (x * 2, x + y))
    x, y = drawn((3,), (2, 3))
    with emulator.enabled("plain"):
        first, second = run(x, y)
    assert (first.shape, second.shape) == ((3,), (2, 3))
    assert run.launches == {"spec": 1}


def test_empty_tensors():
    with emulator.enabled("plain"):
        assert GATED(gg.ones(0, 3), gg.ones(0, 3), gg.ones(3)).shape == (0, 3)


def test_constants_and_arguments_as_results():
    run = gg.fuse(lambda x, y: (x, gg.zeros_like(y), x * y.detach()))
    x, y = drawn((2, 3), (2, 3))
    with emulator.enabled("plain"):
        same, zeros, product = run(x, y)
        gx, gy = gg.grad((same * 3 + product).sum(), [x, y])
    assert run.launches == {"cuda": 1}
    assert not np.shares_memory(same.data, x.data)
    np.testing.assert_array_equal(same.data, x.data)
    np.testing.assert_array_equal(zeros.data, 0 * y.data)
    np.testing.assert_array_equal(gx.data, 3 + y.data)
    np.testing.assert_array_equal(gy.data, 0 * y.data)


USES = {
    "silu": (gg.nn.functional.silu, [(3, 5)]),
    "squared_difference": (
        lambda x, y: gg.nn.functional.mse_loss(x, y, reduction="none"),
        [(3, 5), (3, 5)],
    ),
    "binary_cross_entropy": (
        lambda x, y, w: gg.nn.functional.binary_cross_entropy_with_logits(
            x, y, reduction="none", pos_weight=w
        ),
        [(3, 5), (3, 5), (5,)],
    ),
}


@pytest.mark.parametrize("name", USES)
def test_functions_of_the_library(name):
    function, shapes = USES[name]
    with emulator.enabled("plain"):
        counted = launches(
            lambda: testing.assert_implements(function, function, drawn(*shapes), scale=1.0)
        )
    assert counted == {f"elementwise_{name}_forward": 1, f"elementwise_{name}_backward": 1}


@pytest.mark.parametrize("cell", [gg.nn.LSTM, gg.nn.GRU])
def test_recurrent_cells(cell):
    gg.manual_seed(1)
    net = cell(3, 6)
    x = gg.random.normal(size=(2, 3, 3))

    def gradients() -> list[np.ndarray]:
        out, _ = net(x)
        return [out.data, *(g.data for g in gg.grad((out * out).sum(), list(net.parameters())))]

    expected = gradients()
    name = cell.__name__.lower()
    with emulator.enabled("plain"):
        before = cuda.launches.copy()
        found = gradients()
        counted = cuda.launches - before
    assert counted[f"elementwise_{name}_forward"] == counted[f"elementwise_{name}_backward"] == 2
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
