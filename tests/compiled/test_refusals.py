"""gg.compile: what launches cannot repeat is an error that names it, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, optim
from gpugrad.cuda.recording import NotRecordable

ONES = np.ones(4, np.float32)


@pytest.fixture(autouse=True)
def emulated():
    with emulator.enabled("plain"):
        yield


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
