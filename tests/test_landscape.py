"""The loss along lines and over planes: right heights, normalised directions, parameters kept."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import landscape, nn


def network():
    gg.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_line_and_plane_are_the_loss_there():
    x = gg.tensor([1.0, -2.0], dtype="float64")
    y = gg.tensor(3.0, dtype="float64")

    def loss():
        return (x * x).sum() + 2 * y

    direction = [np.array([1.0, 0.5]), np.array(-1.0)]
    other = [np.array([0.0, 1.0]), np.array(0.25)]
    steps = np.linspace(-1, 2, 4)
    expected = [(1 + s) ** 2 + (-2 + s / 2) ** 2 + 2 * (3 - s) for s in steps]
    np.testing.assert_allclose(landscape.line(loss, [x, y], direction, steps), expected)
    heights = landscape.plane(loss, [x, y], (direction, other), steps, [0.0, 2.0])
    assert heights.shape == (2, 4)
    np.testing.assert_allclose(heights[0], expected)
    by_hand = [(1 + s) ** 2 + (s / 2) ** 2 + 2 * (3 - s + 0.5) for s in steps]
    np.testing.assert_allclose(heights[1], by_hand)
    assert (x.tolist(), y.item()) == ([1.0, -2.0], 3.0)


def test_directions_have_the_norms_of_the_rows():
    model = network()
    directions = landscape.random_direction(model)
    for parameter, direction in zip(model.parameters(), directions, strict=True):
        norm = np.linalg.norm(direction.numpy().reshape(parameter.shape[0], -1), axis=1)
        if parameter.ndim == 1:
            assert not norm.any()
        else:
            rows = np.linalg.norm(parameter.detach().numpy(), axis=1)
            np.testing.assert_allclose(norm, rows, rtol=1e-6)
    again = landscape.random_direction(model)
    assert not np.array_equal(directions[0].numpy(), again[0].numpy())


def test_scaling_weights_that_compute_the_same_does_not_change_the_picture():
    """Relu networks compute the same with one layer times a, the next divided by a."""
    gg.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).to(
        gg.float64
    )
    x = gg.random.normal(size=(7, 3), dtype="float64")

    def heights():
        gg.manual_seed(1)
        direction = landscape.random_direction(model)
        return landscape.line(lambda: (model(x) ** 2).sum(), model, direction, [-1, -0.5, 0, 0.7])

    before = heights()
    model[0].weight.data[...] *= 8
    model[2].weight.data[...] /= 8
    np.testing.assert_allclose(heights(), before, rtol=1e-12)


def test_parameters_survive_an_exception_bit_for_bit():
    model = network()
    before = [p.detach().numpy().copy() for p in model.parameters()]
    calls = []

    def loss():
        assert not gg.is_grad_enabled()
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("enough")
        return model(gg.ones((1, 3))).sum()

    with pytest.raises(RuntimeError, match="enough"):
        landscape.line(loss, model, landscape.random_direction(model), np.linspace(0.1, 1, 9))
    for parameter, kept in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), kept)
    assert gg.is_grad_enabled()


def test_a_dead_row_gets_no_direction():
    weight = gg.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    (direction,) = landscape.random_direction([weight])
    np.testing.assert_allclose(np.linalg.norm(direction.numpy(), axis=1), [0, 5], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: landscape.line(x.sum, [x], [np.zeros(3)], [0]), r"shape \(3,\), its parameter"),
        (lambda x: landscape.line(x.sum, [x], [], [0]), "0 arrays for 1 parameters"),
        (lambda x: landscape.line(x.sum, [], [], [0]), "not none"),
        (lambda x: landscape.line(x.sum, [x], [np.zeros(2)], [[0]]), r"steps .* got \(1, 1\)"),
        (lambda x: landscape.plane(x.sum, [x], [[x]], [0], [0]), "two directions, got 1"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(gg.zeros(2))
