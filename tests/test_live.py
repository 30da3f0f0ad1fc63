"""What takes memory when there is none left: named by module, operation, line and holder."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import live
from gpugrad.registry import OPS

SIZE = 3_000_000  # elements: larger than anything else here


def described(part, error=None):
    """Return what the report says of the largest arrays whose line has a part."""
    held, total = live.largest(10**6, error)
    assert total == sum(one.nbytes for one in held)
    assert [one.nbytes for one in held] == sorted((one.nbytes for one in held), reverse=True)
    return [one for one in held if part in str(one)]


def test_parameters_and_gradients_by_their_path():
    class Net(gg.nn.Module):
        def __init__(self):
            self.layers = gg.nn.Sequential(gg.nn.Linear(1000, 3001, device="cpu"))

    net = Net()
    net.layers[0](gg.ones((1, 1000), device="cpu")).sum().backward()
    (weight,) = [one for one in described("Net.layers.0.weight") if "gradient" not in one.maker]
    assert weight.nbytes == 4 * 1000 * 3001
    assert weight.maker == "Net.layers.0.weight"
    assert described("gradient of Net.layers.0.weight")


def test_the_outermost_module_names_a_parameter_whatever_is_found_first():
    class Net(gg.nn.Module):
        def __init__(self):
            self.layers = gg.nn.Sequential(gg.nn.Linear(2, 3, device="cpu"))

    net = Net()
    for objects in ([net, net.layers], [net.layers, net]):  # both paths are of the same length
        assert live._names(objects)[id(net.layers[0].weight)] == "Net.layers.0.weight"


def test_results_and_what_is_saved_by_their_operation():
    x = gg.ones(SIZE, device="cpu")
    x.requires_grad = True
    y = gg.exp(x)
    (held,) = described("exp")
    assert held.maker == "saved by exp, its out"
    assert held.array == f"float32[{SIZE}]"
    z = x + 1.0
    assert described("result of add")
    del y, z
    assert not described("exp") + described("result of add")


def test_the_line_where_anomalies_are_looked_for():
    x = gg.ones(SIZE, device="cpu")
    x.requires_grad = True
    with gg.detect_anomaly():
        y = gg.exp(x)  # this line
    assert "this line" in described("exp")[0].maker
    assert "test_live.py:" in described("exp")[0].maker
    assert y is not None


def test_memory_counts_once_and_by_its_size():
    def work():
        mine = np.ones(SIZE, np.float32)
        view = mine.reshape(3, -1)[1:]
        stretched = np.broadcast_to(np.ones(1), (10**12,))
        return stretched + view + mine

    with pytest.raises(ValueError, match="broadcast") as caught:
        work()
    found = described("of work", caught.value)
    assert [one.nbytes for one in found] == [4 * SIZE, 8]
    assert not described("of work")


def test_what_a_recorded_step_has_laid_out():
    x = gg.ones((700, 700), device="cpu")
    x.requires_grad = True

    @gg.compile
    def step():
        (gg.matmul(x, x)).sum().backward()

    step()
    assert described("held by a Replay as 'arena'")
    text = live.report()
    assert re.search(r"float32\[700, 700\] +written by matmul", text)


def fails(*arguments, **named):
    raise MemoryError("Unable to allocate 9 GiB")


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_an_operation_says_what_takes_the_memory(monkeypatch, kind):
    x = gg.ones(SIZE, device="cpu")
    x.requires_grad = True
    if kind == "forward":
        monkeypatch.setattr(OPS["cumulative_sum"], "forward", fails)
        with pytest.raises(MemoryError, match="Unable to allocate") as caught:
            gg.cumulative_sum(x)
        start = f"out of memory: cumulative_sum (x: float32[{SIZE}], axis=0): Unable to "
    else:
        y = gg.exp(x).sum()
        monkeypatch.setattr("gpugrad.engine.sweep", fails)
        with pytest.raises(MemoryError, match="Unable to allocate") as caught:
            y.backward()
        start = "out of memory: backward: Unable to allocate 9 GiB\n"
    assert str(caught.value).startswith(start)
    assert f"float32[{SIZE}]" in str(caught.value)
    assert live.explained(caught.value) is caught.value


def test_an_error_of_cupy(monkeypatch):
    memory = pytest.importorskip("cupy").cuda.memory

    def forward(*arguments, **named):
        raise memory.OutOfMemoryError(2**34, 2**33, 0)

    monkeypatch.setattr(OPS["cumulative_sum"], "forward", forward)
    with pytest.raises(MemoryError, match=r"_sum .*17,179,869,184 bytes.*\narrays take"):
        gg.cumulative_sum(gg.ones(3, device="cpu"))


@pytest.mark.parametrize("work", [lambda x: gg.sin(x), lambda x: x * 2.0, lambda x: x * x.T])
def test_an_array_that_no_machine_can_hold(work):
    """Memory really runs out, also where operations take their shortest way."""
    x = gg.Tensor(np.broadcast_to(np.float32(1), (2**24, 2**24)))
    with pytest.raises(MemoryError, match=r"out of memory: \w+ .*Unable to allocate"):
        work(x)


@pytest.mark.parametrize(
    "create",
    [
        lambda n: gg.zeros(n, n, device="cpu"),
        lambda n: gg.eye(n, device="cpu"),
        lambda n: gg.arange(n * n, device="cpu"),
        lambda n: gg.random.normal(size=(n, n), device="cpu"),
        lambda n: gg.nn.functional.one_hot(gg.tensor([1], device="cpu"), n * n),
        lambda n: gg.nn.Linear(n, n, device="cpu"),
    ],
)
def test_a_new_tensor_that_no_machine_can_hold(create):
    with pytest.raises(MemoryError, match=r"^out of memory: \w+ \(.*\): .*\narrays take"):
        create(2**29)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 2**40, "5120.00 GiB")],
)
def test_units(nbytes, text):
    assert live.in_units(nbytes) == text
