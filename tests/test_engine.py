"""The sweep: order, accumulation, freeing, hooks, modes, in-place detection, gradient ownership."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import engine
from gpugrad.registry import Node


def leaf(data: Any, dtype: Any = gg.float64) -> gg.Tensor:
    return gg.tensor(data, dtype, requires_grad=True)


def nodes_of(*tensors: gg.Tensor) -> list[Node]:
    return engine.reachable([t._node for t in tensors])


# Accumulation and order


def test_gradients_add_up_over_uses_and_over_calls() -> None:
    x = leaf([1.0, 2.0])
    for expected in ([2.0, 4.0], [4.0, 8.0]):
        (x * x).sum().backward()
        assert x.grad.tolist() == expected
    x.grad = None
    (x + x + x * 3.0).sum().backward()
    assert x.grad.tolist() == [5.0, 5.0]


def test_diamond() -> None:
    x = leaf(3.0)
    a = x * 2.0
    b, c = a * a, gg.exp(a * 0.1)
    (b * c + a).backward()
    a = 6.0
    expected = 2 * (2 * a * np.exp(0.1 * a) + a * a * 0.1 * np.exp(0.1 * a) + 1)
    assert x.grad.item() == pytest.approx(expected, rel=1e-14)


def test_a_ladder_of_diamonds_is_linear_in_time() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2**60 paths
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


def test_every_pullback_runs_once_and_after_all_its_uses() -> None:
    x = leaf(1.0)
    a = x * 2.0
    b = a * 3.0
    c = a + b
    order: list[str] = []
    for name, t in (("a", a), ("b", b), ("c", c)):
        t.register_hook(lambda g, name=name: order.append(name))
    (c * b).backward()
    assert order == ["c", "b", "a"]


def test_a_chain_of_200_000_operations() -> None:
    x = leaf(1.0)
    start = time.perf_counter()
    y = x
    for _ in range(200_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1.0
    assert y.item() == 200_001.0
    del y  # freeing it must not recurse either
    assert time.perf_counter() - start < 20


def test_a_deep_chain_can_be_freed_without_backward() -> None:
    y = leaf(1.0)
    for _ in range(200_000):
        y = y * 1.0
    node = weakref.ref(y._node)
    del y
    assert node() is None


def test_a_sum_that_starts_with_a_number() -> None:
    xs = [leaf(float(i)) for i in range(5)]
    sum(x * x for x in xs).backward()
    assert [x.grad.item() for x in xs] == [0.0, 2.0, 4.0, 6.0, 8.0]


class Both(gg.Function):
    """Return x * x and x * 3; its node has two outputs."""

    @staticmethod
    def forward(ctx: Any, x: gg.Tensor) -> tuple[gg.Tensor, gg.Tensor]:
        ctx.save_for_backward(x)
        return x * x, x * 3.0

    @staticmethod
    def backward(ctx: Any, g: gg.Tensor, h: gg.Tensor) -> gg.Tensor:
        (x,) = ctx.saved_tensors
        return g * 2.0 * x + h * 3.0


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_node_with_several_outputs_collects_from_all_their_uses(create_graph: bool) -> None:
    x = leaf([1.0, 2.0])
    square, triple = Both.apply(x)
    loss = (square + square * triple + triple * 5.0).sum()  # x^2 + 3x^3 + 15x
    loss.backward(create_graph=create_graph)
    assert x.grad.tolist() == [26.0, 55.0]
    only = Both.apply(x)[1]
    assert gg.grad(only.sum(), x)[0].tolist() == [3.0, 3.0]


# What backward starts with


def test_a_leaf_can_be_the_output() -> None:
    x = leaf(2.0)
    x.backward()
    assert x.grad.item() == 1.0
    assert gg.grad(x, x)[0].item() == 1.0


def test_upstream_gradient() -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    y.backward(gg.tensor([1.0, 10.0]), retain_graph=True)
    assert x.grad.tolist() == [2.0, 40.0]
    y.backward(np.array([1.0, 0.0], np.float32))
    assert x.grad.tolist() == [4.0, 40.0]
    assert x.grad.dtype == gg.float64


def test_several_outputs() -> None:
    x = leaf([1.0, 2.0])
    gg.backward([x * 2.0, (x * x).sum()], [np.ones(2), None])
    assert x.grad.tolist() == [4.0, 6.0]
    x.grad = None
    y = x.sum()
    gg.backward([y, y])
    assert x.grad.tolist() == [2.0, 2.0]
    gg.backward(x * 3.0, np.array([1.0, 0.0]))
    assert x.grad.tolist() == [5.0, 2.0]
    with pytest.raises(ValueError, match="backward: 2 outputs but 1 gradients"):
        gg.backward([x.sum(), x.sum()], [None])


@pytest.mark.parametrize(
    ("make", "gradient", "error", "message"),
    [
        (lambda x: x * x, None, RuntimeError, r"one element.* for shape \(2,\) pass the gradient"),
        (lambda x: x * x, np.ones(3), ValueError, r"has shape \(3,\) but the output has .*\(2,\)"),
        (lambda x: x * x, np.array([1, 2]), TypeError, "must be floating, got int64"),
        (lambda x: x.detach().sum(), None, RuntimeError, "does not require grad"),
        (lambda x: gg.tensor(1.0), None, RuntimeError, "does not require grad"),
        (lambda x: gg.argmax(x), None, RuntimeError, "does not require grad"),
    ],
)
def test_what_backward_refuses(
    make: Callable[[gg.Tensor], gg.Tensor], gradient: Any, error: type[Exception], message: str
) -> None:
    x = leaf([1.0, 2.0])
    out = make(x)
    with pytest.raises(error, match=f"^backward: .*{message}"):
        out.backward(gradient)
    with pytest.raises(error, match=f"^grad: .*{message}"):
        gg.grad(out, [x], gradient if gradient is None else [gradient])
    assert x.grad is None


# Freeing


def test_a_second_backward_names_the_operation() -> None:
    x = leaf([1.0, 2.0])
    y = gg.exp(x).sum()
    y.backward()
    message = r"sum \(node \d+, result float64\[\]\) saved was freed.*retain_graph=True"
    with pytest.raises(RuntimeError, match=message):
        y.backward()
    with pytest.raises(RuntimeError, match="was freed by an earlier backward pass"):
        gg.grad(y, [x])


def test_a_shared_part_that_was_freed_is_named() -> None:
    x = leaf([1.0, 2.0])
    shared = gg.exp(x)
    shared.sum().backward()
    with pytest.raises(RuntimeError, match=r"what exp .* saved was freed"):
        (shared * 2.0).sum().backward()
    assert x.grad.tolist() == pytest.approx(np.exp([1.0, 2.0]))  # unchanged by the failure


def test_retain_graph() -> None:
    x = leaf([1.0, 2.0])
    y = gg.exp(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp([1.0, 2.0]), rtol=1e-15)
    z = gg.exp(x).sum()
    first = gg.grad(z, x, retain_graph=True)[0]
    np.testing.assert_array_equal(gg.grad(z, x)[0].numpy(), first.numpy())


def test_grad_frees_too_unless_asked_not_to() -> None:
    x = leaf(2.0)
    y = x * x
    gg.grad(y, x)
    with pytest.raises(RuntimeError, match="was freed"):
        gg.grad(y, x)


def test_a_recorded_gradient_keeps_the_graph_unless_told_otherwise() -> None:
    x = leaf(2.0)
    y = x * x
    for _ in range(2):
        assert gg.grad(y, x, create_graph=True)[0].item() == 4.0
    gg.grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="was freed"):
        gg.grad(y, x)


def test_grad_leaves_alone_what_does_not_lead_to_its_inputs() -> None:
    x, other = leaf(2.0), leaf(3.0)
    y, unrelated = x * x, other * other
    assert gg.grad([y, unrelated], x)[0].item() == 4.0
    unrelated.backward()  # was not freed
    assert other.grad.item() == 6.0
    assert x.grad is None


def test_saved_arrays_are_dropped_as_the_sweep_passes() -> None:
    x = leaf(np.ones(1000))
    a = gg.exp(x)
    b = gg.exp(a)
    loss = b.sum()
    arrays = [weakref.ref(t.data) for t in (a, b)]
    del a, b
    assert all(ref() is not None for ref in arrays)
    loss.backward()
    assert all(ref() is None for ref in arrays)
    assert all(node.saved is None for node in nodes_of(loss))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_hook_must_be_callable() -> None:
    with pytest.raises(TypeError, match="register_hook: hook must be callable, got 3"):
        gg.tensor(1.0, requires_grad=True).register_hook(3)


def training_step(parameters: list[gg.Tensor]) -> tuple[gg.Tensor, list[weakref.ref]]:
    x = gg.tensor(np.random.default_rng(0).standard_normal((8, 4)))
    weight, bias, out = parameters
    hidden = gg.tanh(x @ weight + bias)
    hidden.retain_grad()
    hidden.register_hook(lambda g: g * 1.0)
    scores = (hidden @ out)[gg.tensor([0, 1, 1, 3])]
    loss = (gg.logsumexp(scores, axis=-1) - gg.max(scores, axis=-1)).mean()
    loss = loss + gg.concat([weight, gg.sort(weight)]).var() + gg.prod(bias[:2])
    return loss, [weakref.ref(node) for node in nodes_of(loss)]


def parameters() -> list[gg.Tensor]:
    rng = np.random.default_rng(1)
    return [leaf(rng.standard_normal(shape)) for shape in ((4, 5), (5,), (5, 3))]


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_graph_memory_remains_after_a_step(no_collector: None, create_graph: bool) -> None:
    ps = parameters()
    loss, nodes = training_step(ps)
    assert len(nodes) > 15
    loss.backward(create_graph=create_graph)
    with gg.no_grad():
        for p in ps:
            p -= p.grad * 0.1
            p.grad = None
    del loss, p
    assert [ref() for ref in nodes if ref() is not None] == []
    assert gc.collect() == 0  # nothing was left that only the collector can free


def test_a_graph_that_never_ran_backward_is_freed_too(no_collector: None) -> None:
    loss, nodes = training_step(parameters())
    del loss
    assert all(ref() is None for ref in nodes)
    assert gc.collect() == 0


def test_errors_leave_no_cycles(no_collector: None) -> None:
    x = leaf([1.0, 2.0])
    y = gg.exp(x)
    node = weakref.ref(y._node)
    with contextlib.suppress(RuntimeError):
        y.backward()  # not one element
    del y
    assert node() is None


# Hooks


def test_a_hook_on_an_intermediate_replaces_its_gradient() -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    seen: list[list[float]] = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10.0)
    (y * y).sum().backward()
    assert seen == [[6.0, 12.0]]
    assert x.grad.tolist() == [180.0, 360.0]


def test_a_hook_on_a_leaf_sees_the_whole_gradient_once() -> None:
    x = leaf([1.0, 2.0])
    seen: list[list[float]] = []
    x.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: -g)
    (x * x + x).sum().backward()
    assert seen == [[3.0, 5.0]]
    assert x.grad.tolist() == [-3.0, -5.0]
    assert gg.grad((x * 2.0).sum(), x)[0].tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("own", [gg.float32, gg.float64])
def test_a_hook_may_change_the_dtype_but_grad_keeps_it(own: Any) -> None:
    x = gg.tensor([1.0, 2.0], dtype=own, requires_grad=True)
    x.register_hook(lambda g: g.astype(gg.float32 if own == gg.float64 else gg.float64))
    for _ in range(2):
        x.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == own
    assert gg.grad(x.sum(), x)[0].dtype == own


def test_a_hook_can_be_removed() -> None:
    x = leaf(1.0)
    y = x * 2.0
    handles = [t.register_hook(lambda g: g * 100.0) for t in (x, y)]
    for handle in handles:
        handle.remove()
        handle.remove()  # again is harmless
    y.backward()
    assert x.grad.item() == 2.0


def test_hooks_under_create_graph_are_recorded() -> None:
    x = leaf(3.0)
    y = x * x
    y.register_hook(lambda g: g * x)
    (g,) = gg.grad(y, x, create_graph=True)
    assert g.item() == 18.0  # 2x * x
    assert gg.grad(g, x)[0].item() == pytest.approx(12.0)


@pytest.mark.parametrize("bad", [3.0, np.ones(2), "x"], ids=repr)
def test_a_hook_must_return_a_tensor_of_the_same_shape(bad: Any) -> None:
    x = leaf([1.0, 2.0])
    y = x * 1.0
    y.register_hook(lambda g: bad)
    with pytest.raises(ValueError, match=r"must return None or a tensor of shape \(2,\)"):
        y.sum().backward()
    z = x * 1.0
    z.register_hook(lambda g: g.sum())
    with pytest.raises(ValueError, match=r"must return .* got float64\[\]"):
        z.sum().backward()


def test_hooks_need_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="register_hook: the tensor does not require grad"):
        gg.ones(2).register_hook(print)
    with pytest.raises(RuntimeError, match="retain_grad: the tensor does not require grad"):
        gg.ones(2).retain_grad()


def test_retain_grad() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2.0
    z = y * y
    for _ in range(2):  # twice is once
        y.retain_grad()
    x.retain_grad()
    z.sum().backward(retain_graph=True)
    assert y.grad.tolist() == [4.0, 8.0]
    assert z.grad is None
    z.sum().backward()
    assert y.grad.tolist() == [8.0, 16.0]
    assert x.grad.tolist() == [16.0, 32.0]


def test_retain_grad_is_that_of_the_value_after_changes_in_place() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2.0
    y.retain_grad()
    y *= 3.0
    y[0] = 5.0
    y.retain_grad()  # again is once
    (y * y).sum().backward()
    assert y.grad.tolist() == [10.0, 24.0]
    assert x.grad.tolist() == [0.0, 144.0]


def test_retain_grad_shows_what_later_hooks_have_not_changed() -> None:
    x = leaf(1.0)
    y = x * 2.0
    y.retain_grad()
    y.register_hook(lambda g: g * 7.0)
    y.backward()
    assert (y.grad.item(), x.grad.item()) == (1.0, 14.0)


def test_a_hook_registered_twice_is_removed_by_its_own_handle() -> None:
    x, calls = leaf(1.0), []
    first, second = x.register_hook(calls.append), x.register_hook(calls.append)
    first.remove()
    first.remove()
    (x * 2.0).backward()
    assert len(calls) == 1
    second.remove()
    (x * 2.0).backward()
    assert len(calls) == 1


# Modes


def test_no_grad_as_context_and_decorator() -> None:
    x = leaf([1.0])

    @gg.no_grad()
    def inside() -> gg.Tensor:
        assert not gg.is_grad_enabled()
        with gg.enable_grad():
            assert (x * 2.0).requires_grad
        return x * 2.0

    assert not inside().requires_grad
    assert inside.__name__ == "inside"
    with gg.no_grad():
        y = x * x
        with gg.no_grad():
            assert not gg.is_grad_enabled()
        assert not gg.is_grad_enabled()
    assert gg.is_grad_enabled()
    assert not y.requires_grad
    assert y.is_leaf
    assert (x * x).requires_grad


def test_enable_grad_as_decorator() -> None:
    x = leaf([1.0])

    @gg.enable_grad()
    def inside() -> gg.Tensor:
        return x * 2.0

    with gg.no_grad():
        assert inside().requires_grad
        assert not gg.is_grad_enabled()


@pytest.mark.parametrize("mode", [gg.no_grad, gg.enable_grad, gg.detect_anomaly])
def test_a_mode_ends_with_an_error_too(mode: Any) -> None:
    before = gg.registry.state.make_node

    @mode()
    def fail(depth: int) -> None:
        if depth == 0:
            raise KeyError("inside")
        fail(depth - 1)  # one decorator, entered several times

    with pytest.raises(KeyError, match="inside"):
        fail(3)
    assert gg.registry.state.make_node is before


def in_threads(*functions: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(f: Callable[[], None]) -> None:
        try:
            f()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
        assert not t.is_alive()
    if errors:
        raise errors[0]


def test_modes_belong_to_their_thread() -> None:
    x = leaf(1.0)
    with gg.no_grad():
        in_threads(lambda: (x * 2.0).backward())
    assert x.grad.item() == 2.0


def test_a_decorator_entered_by_two_threads_restores_each() -> None:
    both_inside, first_out = threading.Barrier(2, timeout=10), threading.Event()

    @gg.no_grad()
    def body(leave_first: bool) -> None:
        both_inside.wait()
        if not leave_first:
            assert first_out.wait(10)

    def recording() -> None:
        body(True)
        assert gg.is_grad_enabled()
        first_out.set()

    def not_recording() -> None:
        with gg.no_grad():
            time.sleep(0.02)  # enters second
            body(False)
            assert not gg.is_grad_enabled()
        assert gg.is_grad_enabled()

    for _ in range(3):
        both_inside.reset()
        first_out.clear()
        in_threads(recording, not_recording)


def test_threads_train_independently() -> None:
    def train(seed: int) -> None:
        rng = np.random.default_rng(seed)
        weight, x = leaf(rng.standard_normal((5, 5))), rng.standard_normal((5, 5))
        for _ in range(30):
            weight.grad = None
            (weight @ x).sum().backward()
            np.testing.assert_allclose(weight.grad.numpy(), np.tile(x.sum(1), (5, 1)), rtol=1e-12)

    in_threads(*(lambda seed=seed: train(seed) for seed in range(4)))


# Changing arrays in place


def test_a_change_of_a_saved_array_names_operation_argument_and_culprit() -> None:
    x, y = leaf([1.0, 2.0]), gg.tensor([3.0, 4.0], gg.float64)
    z = (x * y).sum()
    y += 1.0
    message = r"multiply saved 'y' \(float64\[2\]\).* but in-place add changed that array"
    with pytest.raises(RuntimeError, match=message):
        z.backward()
    assert x.grad is None


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda y: y.__iadd__(1.0), "in-place add"),
        (lambda y: y.__imul__(2.0), "in-place multiply"),
        (lambda y: y.__itruediv__(2.0), "in-place divide"),
        (lambda y: y.__ipow__(2.0), "in-place power"),
        (lambda y: y.__setitem__(0, 7.0), "setitem"),
        (lambda y: y.zero_(), "setitem"),
        (lambda y: y.fill_(1.0), "setitem"),
        (lambda y: y.copy_(gg.ones(2)), "setitem"),
        (lambda y: y[:1].zero_(), "setitem"),  # through a view
        (lambda y: y.T.__iadd__(1.0), "in-place add"),
        (lambda y: y.detach().zero_(), "setitem"),
    ],
)
@pytest.mark.parametrize("saved", ["argument", "out"])
def test_every_change_is_noticed(
    change: Callable[[gg.Tensor], Any], culprit: str, saved: str
) -> None:
    x = leaf([1.0, 2.0])
    y = gg.exp(x)
    name, z = (
        ("exp saved 'out'", y * 1.0) if saved == "out" else ("multiply saved 'y'", x * y.detach())
    )
    with gg.no_grad():
        change(y)
    with pytest.raises(RuntimeError, match=f"{name} .*{culprit} changed"):
        z.sum().backward()


def test_a_change_of_something_not_needed_is_fine() -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    z = x + y
    w = gg.exp(z)
    with gg.no_grad():
        z += 100.0  # add and exp need neither their arguments nor z
    w.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.exp([4.0, 6.0]), rtol=1e-15)


def test_a_change_before_the_forward_or_after_backward_is_fine() -> None:
    x, y = leaf([1.0, 2.0]), gg.tensor([3.0, 4.0], gg.float64)
    y += 1.0
    (x * y).sum().backward()
    y += 1.0
    (x * y).sum().backward()
    assert x.grad.tolist() == [9.0, 11.0]


def test_other_memory_at_the_same_address_is_no_change() -> None:
    x = leaf(np.ones(100))
    before = len(engine.mutations._by_memory)  # arrays of other tests may still be alive
    for _ in range(50):
        scratch = gg.tensor(np.ones(100))
        scratch += 1.0
        del scratch
        y = x * gg.tensor(np.ones(100))
        y.sum().backward()
    assert len(engine.mutations._by_memory) - before < 10
    assert x.grad.tolist() == [50.0] * 100


def test_a_recorded_change_in_place_differentiates() -> None:
    x = leaf([1.0, 2.0])
    y = gg.exp(x)
    y *= 3.0
    y += x
    y[0] = x[1] * 5.0
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [0.0, 3 * np.exp(2.0) + 1 + 5], rtol=1e-14)


def test_a_constant_that_takes_part_in_a_gradient_becomes_recorded() -> None:
    x, total = leaf([1.0, 2.0]), gg.zeros(2, dtype=gg.float64)
    for _ in range(3):
        total += x * x
    assert total.requires_grad
    total.sum().backward()
    assert x.grad.tolist() == [6.0, 12.0]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.__iadd__(1.0),
        lambda x: x.__setitem__(0, 7.0),
        lambda x: x.zero_(),
        lambda x: x.copy_(gg.ones(2)),
    ],
)
def test_a_leaf_cannot_change_while_recording(change: Callable[[gg.Tensor], Any]) -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"a leaf that requires grad cannot change.*no_grad"):
        change(x)
    assert x.tolist() == [1.0, 2.0]
    with gg.no_grad():
        change(x)
    assert x.tolist() != [1.0, 2.0]
    assert x.is_leaf


def test_a_view_cannot_change_while_recording() -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    y = x * 1.0
    for view in (y[0], y.T, y.reshape(4), gg.flip(y)):
        with pytest.raises(RuntimeError, match=r"is a view of another.*out-of-place"):
            view += 1.0
        with pytest.raises(RuntimeError, match="setitem: the tensor is a view"):
            view[0] = 1.0
    constant = gg.zeros(2, 2, dtype=gg.float64)
    row = constant[0]
    with pytest.raises(RuntimeError, match="is a view of another"):
        row += x[0]


def test_a_change_that_does_not_fit_names_both() -> None:
    x = gg.ones(2)
    with pytest.raises(ValueError, match=r"in-place add: .*x: float32\[2\], y: float32\[3\]"):
        x += gg.ones(3)
    with pytest.raises(ValueError, match=r"in-place add: .*float32\[3, 2\].* does not fit"):
        x += leaf(np.ones((3, 2)), gg.float32)
    with pytest.raises(TypeError, match="in-place add"):
        gg.tensor([1, 2]).__iadd__(0.5)
    with pytest.raises(ValueError, match=r"setitem: .*value: float32\[3\]"):
        x[:] = gg.ones(3)
    with pytest.raises(IndexError, match=r"setitem: .*5"):
        x[5] = 1.0


# grad


def test_grad_of_intermediates() -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    z = gg.exp(y)
    gx, gy, gz = gg.grad(z.sum(), [x, y, z])
    np.testing.assert_allclose(gz.numpy(), [1.0, 1.0])
    np.testing.assert_allclose(gy.numpy(), np.exp([1.0, 4.0]))
    np.testing.assert_allclose(gx.numpy(), np.exp([1.0, 4.0]) * [2.0, 4.0])
    assert x.grad is None


def test_grad_stops_at_what_was_asked_for() -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    seen: list[int] = []
    x.register_hook(lambda g: seen.append(1))
    gg.grad(gg.exp(y).sum(), [y])
    assert seen == []
    gg.grad(y.sum(), [x])  # the part below y was neither run nor freed
    assert seen == [1]


def test_grad_of_the_unused_is_zero() -> None:
    x, unused = leaf([1.0]), leaf([[1.0, 2.0]])
    other = unused * 2.0
    for create_graph in (False, True):
        gx, gu, go = gg.grad((x * x).sum(), [x, unused, other], create_graph=create_graph)
        assert gx.tolist() == [2.0]
        assert gu.tolist() == go.tolist() == [[0.0, 0.0]]


def test_grad_of_duplicates() -> None:
    x = leaf([1.0, 3.0])
    first, second = gg.grad((x * x).sum(), [x, x])
    assert first.tolist() == second.tolist() == [2.0, 6.0]
    first += 1.0
    assert second.tolist() == [2.0, 6.0]


def test_grad_of_several_outputs() -> None:
    x = leaf([1.0, 3.0])
    (g,) = gg.grad([x * 2.0, (x * x).sum()], x, [np.array([1.0, 0.0]), None])
    assert g.tolist() == [4.0, 6.0]
    with pytest.raises(ValueError, match="grad: 1 outputs but 2 grad_outputs"):
        gg.grad(x.sum(), x, [None, None])


def test_grad_refuses_inputs_without_gradient() -> None:
    x = leaf([1.0])
    for bad in (gg.ones(1), 3.0, np.ones(1), x.detach()):
        with pytest.raises(ValueError, match=r"grad: input 1 .* must be a tensor that requires"):
            gg.grad(x.sum(), [x, bad])


def test_higher_orders() -> None:
    x = leaf(2.0)
    y = x**5
    for expected in (80.0, 160.0, 240.0, 240.0, 120.0, 0.0):
        (y,) = gg.grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(expected)


def test_gradient_of_a_gradient_norm() -> None:
    x = leaf([1.0, 2.0])
    (g,) = gg.grad((x**3).sum(), x, create_graph=True)
    (g * g).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 36 * np.array([1.0, 2.0]) ** 3, rtol=1e-14)


def test_backward_with_create_graph_can_be_differentiated() -> None:
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    (g,) = gg.grad(x.grad.sum(), x, retain_graph=True)
    np.testing.assert_allclose(g.numpy(), [6.0, 12.0])
    (x**3).sum().backward(create_graph=True)  # adds to the recorded gradient
    assert gg.grad(x.grad.sum(), x)[0].tolist() == [12.0, 24.0]
    x.grad = None
    (x**3).sum().backward()
    assert not x.grad.requires_grad


def test_a_recorded_gradient_is_linked_to_the_upstream_one() -> None:
    x, u = leaf([1.0, 2.0]), leaf([5.0, 7.0])
    (g,) = gg.grad(x * x, x, u, create_graph=True)
    assert gg.grad(g.sum(), u)[0].tolist() == [2.0, 4.0]


def test_a_recorded_gradient_is_linked_to_an_upstream_one_of_another_dtype() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    v = gg.tensor(np.ones(2), requires_grad=True)
    (dx,) = gg.grad(x**3, x, [v], create_graph=True)
    (dv,) = gg.grad(dx.sum(), v)
    assert dv.dtype == np.float64
    assert dv.tolist() == [3, 12]


def test_replaced_data_is_refused_where_it_would_be_wrong() -> None:
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    x.data = np.array([5.0, 6.0])
    with pytest.raises(RuntimeError, match="was replaced after the forward"):
        gg.grad(y, x, create_graph=True)
    assert gg.grad((leaf_y := (x * x).sum()), x)[0].tolist() == [10.0, 12.0]
    assert leaf_y.item() == 61.0


# Ownership


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "combine",
    [
        lambda x, y: x + y,
        lambda x, y: (x + y) * 1.0,
        lambda x, y: x.reshape(2, 1).T.reshape(2) + y,
        lambda x, y: gg.positive(x) + gg.copy(y),
        lambda x, y: gg.concat([x, y])[:2] + gg.concat([x, y])[2:],
        lambda x, y: gg.stack([x, y]).sum(axis=0),
    ],
    ids=["add", "scaled", "views", "identity", "concat", "stack"],
)
def test_gradients_are_owned(
    combine: Callable[[gg.Tensor, gg.Tensor], gg.Tensor], create_graph: bool
) -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    middle = combine(x, y)
    middle.retain_grad()
    seed = gg.tensor([1.0, 1.0], gg.float64)
    middle.backward(seed, create_graph=create_graph)
    for changed in (x, y, middle):
        others = [t for t in (x, y, middle) if t is not changed]
        before = [t.grad.tolist() for t in others]
        with gg.no_grad():
            changed.grad += 10.0
        assert [t.grad.tolist() for t in others] == before
    assert seed.tolist() == [1.0, 1.0]


class Kept(gg.Function):
    """The product with a weight, whose gradient is the weight itself."""

    @staticmethod
    def forward(ctx: Any, x: gg.Tensor, weight: gg.Tensor) -> gg.Tensor:
        ctx.save_for_backward(weight)
        return (x * weight).sum()

    @staticmethod
    def backward(ctx: Any, g: gg.Tensor) -> tuple[gg.Tensor, None]:
        return ctx.saved_tensors[0], None


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("where", ["leaf", "middle", "view", "replaced", "function"])
def test_what_others_have_in_hand_is_nobodys_gradient(where: str, create_graph: bool) -> None:
    x, y, held = leaf([1.0, 2.0]), leaf([3.0, 4.0]), []
    if where == "function":
        weight = gg.tensor([5.0, 6.0], gg.float64)
        held.append(weight)
        out = Kept.apply(x, weight) + y.sum()
    else:
        middle = y + 1.0
        hooked = x if where == "leaf" else middle
        middle = middle.reshape(2) if where == "view" else middle
        new = gg.tensor([7.0, 8.0], gg.float64)
        held += [new] if where == "replaced" else []
        hooked.register_hook((lambda g: new) if where == "replaced" else held.append)
        out = ((x + middle) * gg.tensor([2.0, 3.0], gg.float64)).sum()
    for _ in range(2):
        x.grad = y.grad = None
        out.backward(retain_graph=True, create_graph=create_graph)
        given = gg.grad(out, [x, y], retain_graph=True, create_graph=create_graph)
        before = [t.tolist() for t in held]
        with gg.no_grad():
            for g in (x.grad, y.grad, *(given if not create_graph else ())):
                assert g is not None
                g += 10.0
        assert [t.tolist() for t in held] == before


def test_results_of_grad_are_owned() -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    seed = gg.tensor([1.0, 1.0], gg.float64)
    z = x + y
    grads = gg.grad(z * 1.0, [x, y, z], seed)
    for i, g in enumerate(grads):
        g += 10.0 ** (i + 1)
    assert [g.tolist() for g in grads] == [[11.0] * 2, [101.0] * 2, [1001.0] * 2]
    assert seed.tolist() == [1.0, 1.0]
    (same,) = gg.grad(x, x, seed)
    same += 1.0
    assert seed.tolist() == [1.0, 1.0]


def test_accumulation_does_not_change_the_old_gradient_array() -> None:
    x = leaf([1.0, 2.0])
    (x * 2.0).sum().backward()
    kept = x.grad
    (x * 3.0).sum().backward()
    assert kept.tolist() == [2.0, 2.0]
    assert x.grad.tolist() == [5.0, 5.0]


def test_a_failed_backward_changes_no_gradient() -> None:
    x, y = leaf([1.0]), leaf([2.0])
    z = gg.exp(y)
    w = x * 2.0 + z
    z.backward()
    x.grad = y.grad = None
    with pytest.raises(RuntimeError, match="freed"):
        w.backward()
    assert x.grad is None
    assert y.grad is None


def test_gradients_of_scalars_are_arrays() -> None:
    x = leaf(2.0)
    (x * x * x).backward()
    (g,) = gg.grad(x * x, x)
    for t in (x.grad, g):
        assert type(t.data) is np.ndarray
        assert t.shape == ()


def test_the_backward_sweep_does_not_warn() -> None:
    x = leaf([0.0, 1.0])
    gg.sqrt(x).sum().backward()  # divides by zero; warnings are errors
    assert x.grad.tolist() == [np.inf, 0.5]


def test_a_second_backward_names_operation_arguments_and_shape() -> None:
    x = leaf(np.ones((2, 3)))
    y = x * x
    seed = gg.ones((2, 3), dtype=gg.float64)
    y.backward(seed)
    with pytest.raises(RuntimeError, match=r"multiply \(node \d+, result float64\[2, 3\]\).*x, y"):
        y.backward(seed)


def test_an_output_that_nobody_asks_about_has_no_gradient() -> None:
    x, y = (gg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    seen: list[gg.Tensor] = []
    y.register_hook(seen.append)
    (g,) = gg.grad([(x * 3.0).sum(), y.sum(), y], [x], [gg.tensor(1.0), gg.tensor(1.0), y.detach()])
    assert g.tolist() == [3.0, 3.0]
    assert seen == []
