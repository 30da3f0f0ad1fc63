"""gg.compile: what launches cannot repeat is an error that names it, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import by_kernels

import gpugrad as gg
from gpugrad import optim
from gpugrad.cuda.recording import NotRecordable
from gpugrad.nn import functional as F

ONES = np.ones(4, np.float32)


pytestmark = pytest.mark.usefixtures("launched")


def leaf():
    return gg.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)


def refused(step, words, *args):
    """Assert that a step cannot be recorded, for a reason and at a line of this file."""
    with pytest.raises(NotRecordable, match=r"test_refusals\.py:\d+") as caught:
        gg.compile(step)(*(args or [ONES]))
    assert words in str(caught.value)


@pytest.mark.parametrize("wrap", [gg.from_numpy, gg.asarray, gg.Tensor, gg.from_dlpack])
def test_changing_an_array_that_may_be_from_outside(wrap):
    def step(x):
        total = wrap(np.zeros(4, np.float32))
        total += x
        return total

    refused(step, "gg.tensor makes a copy")

    def part(x):
        total = wrap(np.zeros(4, np.float32))
        total[1:] = x[1:]
        return total

    refused(part, "changing float32[3]")


def test_an_array_that_a_tensor_from_outside_is_on_may_change():
    array = np.zeros(4, np.float32)
    tensor = gg.from_numpy(array)

    @gg.compile
    def step(x):
        tensor.sum()
        again = gg.from_numpy(array)
        again += x
        return again

    for count in (1, 2, 3):
        assert step(ONES).tolist() == [count] * 4
    assert array.tolist() == [3] * 4


def test_changing_a_read_only_array():
    constant = gg.from_numpy(np.frombuffer(ONES.tobytes(), np.float32))
    w = gg.Tensor(constant.data, requires_grad=True)
    optimizer = optim.SGD([w], lr=0.5)
    refused(lambda x: constant.__iadd__(x), "changing float32[4], a read-only array")
    refused(lambda x: constant[1:].copy_(x[1:]), "a read-only array")

    def step(x):
        (w * x).sum().backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"SGD\.step: .* is read-only; make it of a copy"):
        gg.compile(step)(ONES)
    assert constant.tolist() == [1] * 4


def test_changing_an_argument():
    def step(x):
        x += 1
        return x

    refused(step, "changing an argument in place")
    refused(lambda x: x[1:].copy_(x[:-1]), "changing an argument in place")


@pytest.mark.parametrize("through", ["its result", "backward", "grad", "a gradient"])
def test_a_graph_from_outside(through):
    w = leaf()
    y = w * w

    def step(x):
        if through == "its result":
            (y * x).sum().backward()
        elif through == "backward":
            y.backward(gg.Tensor(x))
        elif through == "grad":
            gg.grad(y.sum(), [w])
        else:
            w.grad.sum()

    if through == "a gradient":
        (w * w * w).sum().backward(create_graph=True)
        refused(step, "a gradient with a graph")
    else:
        refused(step, "a graph from outside")
        assert w.grad is None
    y.sum().backward()  # whose graph is as it was


def test_a_tensor_from_outside_that_would_get_a_graph():
    w, total = leaf(), gg.zeros(4)

    def step(x):
        total.__iadd__(w * x)

    refused(step, "in-place add of a tensor from outside (float32[4])")
    assert total.tolist() == [0] * 4
    assert total.is_leaf
    assert not total.requires_grad


def test_an_optimiser_made_inside():
    w = leaf()

    def step(x):
        (w * x).sum().backward()
        optim.SGD([w], lr=0.1).step()

    refused(step, "making an optimiser (SGD)")


def test_a_norm_that_raises():
    w = leaf()

    def step(x):
        (w * x).sum().backward()
        optim.clip_grad_norm_([w], 1.0, error_if_nonfinite=True)

    refused(step, "error_if_nonfinite")


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (lambda n: int(n[0]), "reading the values of int64"),
        (lambda n: n.sum(), "sum of int64"),
        (lambda n: gg.max(n), "max"),
        (lambda n: gg.arange(9)[n], "reading the values of int64"),
        (lambda n: gg.Tensor(ONES)[n], "indexing with Buffer"),
    ],
    ids=["int", "sum", "max", "index", "index of floats"],
)
@by_kernels
def test_integers_from_outside_that_no_launch_computes(look, words):
    n = gg.tensor([1, 2])
    refused(lambda x: look(n) * x, words)


def test_a_graph_over_a_gradient_that_a_step_overwrites_is_stale():
    w, x = leaf(), gg.tensor(ONES)
    scale = gg.tensor([2.0], requires_grad=True)
    step = gg.compile(lambda x: (w * w * x).sum().backward())
    step(ONES)
    y = (w.grad * scale * x).sum()
    step(ONES)  # adds in memory of its own
    y.backward()
    assert scale.grad.item() == 2 * (1 + 2 + 3 + 4)
    y = (w.grad[1:] * scale * x[1:]).sum()
    step(ONES)  # adds where the gradient is
    with pytest.raises(RuntimeError, match="a compiled step changed that array in place"):
        y.backward()
    w.grad = None
    step(ONES)
    y = (w.grad.reshape(2, 2) * scale).sum()
    w.grad = None
    step(ONES)  # leaves another gradient in the memory of the last
    with pytest.raises(RuntimeError, match="a compiled step changed that array in place"):
        y.backward()


def test_a_graph_over_what_a_step_only_reads_is_not_stale():
    w = leaf()
    w.grad = gg.tensor([1.0, 2.0, 3.0, 4.0])
    scale = gg.tensor([2.0], requires_grad=True)
    step = gg.compile(lambda: (w.grad * 2).sum())
    for _ in range(3):
        y = (w.grad * scale).sum()
        step()
        y.backward()
    assert scale.grad.item() == 30


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x if x.sum() > 0 else -x, "reading the values"),
        (lambda x: x.numpy(), "reading the values"),
        (lambda x: x[x > 0], "indexing with"),
        (lambda x: gg.nonzero(x), "argwhere"),
    ],
    ids=["if", "numpy", "mask", "nonzero"],
)
def test_what_is_refused_names_itself_and_the_line(function, words):
    refuses(function, words)


@by_kernels
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: gg.sort(x), "sort"),
        (lambda x: x.astype(gg.float64) * 2, "float64"),
        (lambda x: gg.max(x), "max"),
    ],
    ids=["sort", "float64", "max"],
)
def test_what_has_no_kernel_is_refused(function, words):
    refuses(function, words)


def refuses(function, words):
    with pytest.raises(NotRecordable, match=r"test_refusals\.py") as caught:
        gg.compile(function)(np.ones(4, np.float32))
    assert words in str(caught.value)


def test_values_of_tensors_from_outside_are_not_read():
    w = gg.tensor(np.ones((2, 2), np.float32), requires_grad=True)
    scale = gg.tensor(2.0)
    for look in (
        lambda x: x * float(w.detach()[0, 0]),
        lambda x: x * scale.item(),
        lambda x: x if scale.detach() > 0 else -x,
        lambda x: x * w.detach().numpy(),
        lambda x: x * scale.tolist(),
    ):
        with pytest.raises(NotRecordable, match="reading the values"):
            gg.compile(look)(np.ones(2, np.float32))


def test_settings_that_change_between_two_steps_are_refused():
    w = gg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)

    @gg.compile
    def step(x):
        for lr in (1.0, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            (w * x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    with pytest.raises(NotRecordable, match="changing the settings of SGD"):
        step(np.ones(2, np.float32))


@pytest.mark.parametrize(
    "result", [lambda: {1}, lambda: (i for i in "ab")], ids=["set", "generator"]
)
def test_other_results(result):
    with pytest.raises(TypeError, match="is returned"):
        gg.compile(lambda x: result())(np.ones(2, np.float32))


def test_an_argument_with_a_graph():
    w = gg.tensor([1.0], requires_grad=True)
    with pytest.raises(TypeError, match="detach"):
        gg.compile(lambda x: x)(w * 2)


def test_other_arguments():
    with pytest.raises(TypeError, match="an argument is a set"):
        gg.compile(lambda x: x)({1})


def test_settings_that_change_after_a_step_are_refused():
    w = gg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)

    @gg.compile
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5

    with pytest.raises(NotRecordable, match="after a step of it"):
        step(ONES[:2])


def test_an_error_leaves_parameters_and_gradients_alone(rng):
    w = gg.tensor(rng.standard_normal((5, 4)).astype("f"), requires_grad=True)
    data, w.grad = w.data, gg.ones_like(w)
    gradient = w.grad

    @gg.compile
    def step(x):
        w.grad = None
        loss = F.linear(x, w).sum()
        loss.backward()
        return float(loss)

    with pytest.raises(NotRecordable, match=r"reading the values.*test_refusals\.py:\d+"):
        step(np.ones((2, 4), np.float32))
    assert w.data is data
    assert w.grad is gradient
    assert (F.linear(np.ones((1, 4), np.float32), w)).shape == (1, 5)


@pytest.mark.parametrize("rows", [slice(2, None), slice(None)])
def test_data_assigned_to_one_of_two_tensors_on_the_same_memory(rows):
    whole = gg.tensor(np.ones(4, np.float32))
    part = whole.detach() if rows == slice(None) else whole[rows]

    def step(x):
        part.data = part.data + x.data[rows]
        return whole * 1

    refused(step, "shares its memory")
    assert whole.tolist() == [1, 1, 1, 1]


@by_kernels
def test_parameters_that_no_launch_takes(launched):
    w = gg.tensor(np.ones((4, 3), np.float32), requires_grad=True)
    w.data = np.asfortranarray(w.data)
    optimizer = optim.AdamW([w], lr=0.1)

    def step(x):
        (x @ w).sum().backward()
        optimizer.step()

    refused(step, "one launch does not take (float32[4, 3]; it takes", np.ones((2, 4), np.float32))
