from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def test_padding_mask() -> None:
    tokens = np.array([[True, True, False], [True, False, False]])
    mask = nn.padding_mask(tokens)
    assert mask.shape == (2, 1, 1, 3)
    np.testing.assert_array_equal(mask.numpy()[:, 0, 0], tokens)


def test_document_mask() -> None:
    mask = nn.document_mask(np.array([[4, 4, 7, -1]]))
    assert mask.shape == (1, 1, 4, 4)
    assert mask.numpy()[0, 0].astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_padded_rows_attend_as_they_do_alone(causal) -> None:
    gg.manual_seed(0)
    attention = nn.MultiHeadAttention(8, 2, causal=causal, dtype="float64")
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(3, 7, 8)), [7, 4, 1]
    mask = nn.padding_mask(np.arange(7) < np.array(lengths)[:, None])
    out = attention(x, mask).numpy()
    for row, length in enumerate(lengths):
        alone = attention(x[row : row + 1, :length]).numpy()
        np.testing.assert_allclose(out[row, :length], alone[0], atol=1e-13)
    assert causal or abs(attention(x).numpy()[1, :4] - out[1, :4]).max() > 1e-3


@pytest.mark.parametrize(
    "bad", [np.ones((2, 3)), np.ones(3, bool), np.ones((1, 2, 3), bool)], ids=str
)
def test_padding_mask_refuses(bad) -> None:
    with pytest.raises(ValueError, match=r"padding_mask: tokens must be booleans \(B, T\).*got"):
        nn.padding_mask(bad)


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones(3, int)], ids=str)
def test_document_mask_refuses(bad) -> None:
    with pytest.raises(
        ValueError, match=r"document_mask: documents must be integers \(B, T\), got"
    ):
        nn.document_mask(bad)
