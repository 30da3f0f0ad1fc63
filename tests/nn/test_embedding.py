from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad import nn


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)], ids=str)
def test_rows_of_the_weight(shape, check_gradients) -> None:
    layer = nn.Embedding(5, 3, dtype="float64")
    ids = gg.random.integers(0, 5, size=shape)
    assert layer(ids).tolist() == layer.weight.numpy()[ids.numpy()].tolist()
    check_gradients(layer, ids)


def test_repeated_ids_add_up() -> None:
    layer = nn.Embedding(4, 2)
    layer(gg.tensor([1, 3, 1, 1])).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 0], [3, 3], [0, 0], [1, 1]]


@pytest.mark.parametrize("padding_idx", [1, -3])
def test_padding_row_stays_zero(padding_idx) -> None:
    layer = nn.Embedding(4, 2, padding_idx=padding_idx)
    out = layer(gg.tensor([0, 1]))
    out.sum().backward()
    assert layer.padding_idx == 1
    assert out[1].tolist() == layer.weight.grad[1].tolist() == [0, 0]
    assert layer.weight.grad[0].tolist() == [1, 1]
    assert repr(layer) == "Embedding(4, 2, padding_idx=1)"


def test_starts_standard_normal() -> None:
    values = nn.Embedding(300, 100).weight.numpy()
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize("bad", [5, -1])
def test_unknown_id_is_refused(bad) -> None:
    with pytest.raises(IndexError, match=str(bad)):
        nn.Embedding(5, 2)(gg.tensor([0, bad]))


def test_float_ids_are_refused() -> None:
    with pytest.raises(TypeError, match=r"embedding.*float32"):
        nn.Embedding(5, 2)(gg.ones(2))


def test_padding_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="padding_idx 4"):
        nn.Embedding(4, 2, padding_idx=4)
