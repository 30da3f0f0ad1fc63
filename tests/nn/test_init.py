from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.nn import init

SHAPE = (300, 200, 2)  # fan-in 400, fan-out 600


def uniform(bound: float) -> tuple[float, float, float]:
    return bound / math.sqrt(3), -bound, bound


CASES = {
    "uniform": (lambda t: init.uniform_(t, -2, 2), uniform(2)),
    "normal": (lambda t: init.normal_(t, 0, 0.3), (0.3, -2, 2)),
    "xavier_uniform": (lambda t: init.xavier_uniform_(t, 2.0), uniform(2 * math.sqrt(6 / 1000))),
    "xavier_normal": (init.xavier_normal_, (math.sqrt(2 / 1000), -1, 1)),
    "kaiming_uniform": (init.kaiming_uniform_, uniform(math.sqrt(6 / 400))),
    "kaiming_uniform-sqrt5": (
        lambda t: init.kaiming_uniform_(t, a=math.sqrt(5)),
        uniform(1 / math.sqrt(400)),
    ),
    "kaiming_uniform-out-tanh": (
        lambda t: init.kaiming_uniform_(t, mode="fan_out", nonlinearity="tanh"),
        uniform(5 / 3 * math.sqrt(3 / 600)),
    ),
    "kaiming_normal": (
        lambda t: init.kaiming_normal_(t, nonlinearity="relu"),
        (math.sqrt(2 / 400), -1, 1),
    ),
    "scaled_residual": (
        lambda t: init.scaled_residual_(t, n_layer=12),
        (0.02 / math.sqrt(24), -1, 1),
    ),
}


@pytest.mark.parametrize(("fill", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_distribution(fill, expected, dtype) -> None:
    std, low, high = expected
    tensor = gg.empty(SHAPE, dtype=dtype)
    assert fill(tensor) is tensor
    values = tensor.numpy().astype(np.float64)
    assert tensor.dtype == dtype
    assert low * 1.001 <= values.min() < 0 < values.max() <= high * 1.001
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() / std - 1) < 0.01


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0, 1, -2, 2), (1, 2, -3, 0), (0, 0.02, -2, 2), (0, 1, 3, 9), (0, 1, -50, 50)],
    ids=str,
)
def test_truncated_normal_quantiles(mean, std, a, b) -> None:
    tensor = init.trunc_normal_(gg.empty(100_001, dtype="float64"), mean, std, a, b)
    values, normal = np.sort(tensor.numpy()), NormalDist(mean, std)
    low, high = normal.cdf(a), normal.cdf(b)
    for quantile in (0.01, 0.25, 0.5, 0.75, 0.99):
        expected = normal.inv_cdf(low + quantile * (high - low))
        reached = (normal.cdf(values[int(quantile * 100_000)]) - low) / (high - low)
        assert abs(reached - quantile) < 0.007, (quantile, expected)
    assert a <= values[0] <= values[-1] <= b


@pytest.mark.parametrize(("a", "b", "std"), [(2, 2, 1), (0, 1, 0), (40, 50, 1)], ids=str)
def test_truncated_normal_needs_an_interval(a, b, std) -> None:
    with pytest.raises(ValueError, match="trunc_normal_"):
        init.trunc_normal_(gg.empty(3), 0, std, a, b)


def test_constants() -> None:
    tensor = gg.empty(2)
    assert init.zeros_(tensor).tolist() == [0, 0]
    assert init.ones_(tensor).tolist() == [1, 1]
    assert init.constant_(tensor, 2.5).tolist() == [2.5, 2.5]


def test_writes_parameters_in_place() -> None:
    layer = nn.Linear(3, 2)
    array = layer.weight.data
    init.ones_(layer.weight)
    assert layer.weight.data is array
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf


@pytest.mark.parametrize("name", ["xavier_uniform", "xavier_uniform_"])
def test_by_name(name) -> None:
    assert init.by_name(name) is init.xavier_uniform_


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ValueError, match="'glorot' is none of uniform, normal"):
        init.by_name("glorot")
    with pytest.raises(ValueError, match="'swish' is none of linear"):
        init.kaiming_normal_(gg.empty(2, 2), nonlinearity="swish")
    with pytest.raises(ValueError, match="mode must be"):
        init.kaiming_normal_(gg.empty(2, 2), mode="fan")
    with pytest.raises(ValueError, match="n_layer"):
        init.scaled_residual_(gg.empty(2, 2), 0)


@pytest.mark.parametrize("name", ["xavier_uniform", "xavier_normal", "kaiming_uniform"])
def test_vectors_have_no_fans(name) -> None:
    with pytest.raises(ValueError, match=rf"{name}_: .*\(3,\)"):
        init.by_name(name)(gg.empty(3))


@pytest.mark.parametrize("name", init._BY_NAME)
def test_the_raw_array_of_a_parameter_is_named(name) -> None:
    weight = nn.Linear(2, 3).weight
    given = {"constant": (1.0,), "scaled_residual": (2,)}.get(name, ())
    before = weight.tolist()
    with pytest.raises(TypeError, match=rf"^{name}: takes a tensor, got ndarray .* the parameter"):
        init.by_name(name)(weight.data, *given)
    assert weight.tolist() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("linear",), 1),
        (("tanh",), 5 / 3),
        (("relu",), math.sqrt(2)),
        (("leaky_relu", 0.2), math.sqrt(2 / 1.04)),
        (("leaky_relu", None), math.sqrt(2 / 1.0001)),
    ],
    ids=str,
)
def test_gain(arguments, expected) -> None:
    assert init.calculate_gain(*arguments) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("fill", [init.normal_, init.trunc_normal_, init.xavier_uniform_])
def test_kernels_change_no_bit_of_what_a_seed_gives(fill, dtype):
    gg.manual_seed(8)
    expected = fill(gg.empty((501, 7), dtype=dtype)), gg.random.get_state()
    gg.manual_seed(8)
    with gg.emulator.enabled("plain"):
        found = fill(gg.empty((501, 7), dtype=dtype)), gg.random.get_state()
    assert found[0].numpy().tobytes() == expected[0].numpy().tobytes()
    assert found[1] == expected[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("fill", [init.uniform_, init.trunc_normal_, init.kaiming_normal_])
def test_what_is_skipped_is_not_written_and_the_generator_goes_on(fill, dtype):
    gg.manual_seed(9)
    fill(gg.empty((31, 7), dtype=dtype))
    expected = gg.random.get_state()
    gg.manual_seed(9)
    tensor = gg.full((31, 7), 3.0, dtype=dtype)

    def build():
        assert nn.utils.skip_init(lambda: 5) == 5
        return fill(tensor)

    assert nn.utils.skip_init(build) is tensor
    assert (tensor.numpy() == 3).all()
    assert gg.random.get_state() == expected
    assert not (fill(tensor).numpy() == 3).any()


def test_constants_are_not_skipped_nor_errors():
    norm = nn.utils.skip_init(nn.LayerNorm, 5, eps=0.5)
    assert norm.eps == 0.5
    with pytest.raises(ValueError, match="std > 0"):
        nn.utils.skip_init(init.trunc_normal_, gg.empty(3), std=0.0)
    tensor = gg.zeros(50)
    assert init.normal_(tensor).numpy().any()  # an error leaves nothing behind
    assert norm.weight.tolist() == [1] * 5
