from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import pack


def documents(count: int, longest: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 17, random.integers(0, longest + 1)) for _ in range(count)]


@pytest.mark.parametrize(("block", "longest"), [(8, 8), (7, 30), (1, 3), (64, 9)], ids=str)
def test_every_token_is_there_once_with_what_follows_it(block, longest) -> None:
    docs = documents(40, longest, seed=block)
    batch = pack(docs, block, pad=99)
    assert {part.dtype for part in batch} == {np.dtype(np.int64)}
    assert {part.shape for part in batch} == {(len(batch.ids), block)}
    padding = batch.documents < 0
    assert (batch.ids[padding] == 99).all()
    assert (batch.targets[padding] == -100).all()
    assert (batch.positions[padding] == 0).all()
    for n, doc in enumerate(docs):
        mine = batch.documents == n
        pieces = []  # in the order of the document: full ones in the order of their rows
        for row in mine.any(axis=1).nonzero()[0]:
            columns = mine[row].nonzero()[0]
            assert (np.diff(columns) == 1).all()
            assert batch.positions[row, columns].tolist() == list(range(len(columns)))
            pieces.append((batch.ids[row, columns], batch.targets[row, columns]))
        pieces.sort(key=lambda piece: -len(piece[0]))
        ids = np.concatenate([np.empty(0, int), *(p[0] for p in pieces)])
        targets = np.concatenate([np.empty(0, int), *(p[1] for p in pieces)])
        np.testing.assert_array_equal(ids, doc)
        np.testing.assert_array_equal(targets, [*doc[1:], -100] if len(doc) else [])
    assert batch.fill == sum(map(len, docs)) / batch.ids.size


def test_best_fit() -> None:
    batch = pack([[1] * 3, [2] * 6, [3] * 4, [4] * 7, [5]], 10)
    assert batch.ids.tolist() == [[4] * 7 + [1] * 3, [2] * 6 + [3] * 4, [5] + [0] * 9]


def test_rows_are_nearly_full() -> None:
    docs = documents(500, 100, seed=0)
    batch = pack(docs, 128)
    assert batch.fill > 0.97
    assert len(batch.ids) < 0.5 * len(docs)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "relative"])
def test_a_packed_document_has_the_losses_and_gradients_it_has_alone(positions) -> None:
    gg.manual_seed(1)
    model = GPT(GPTConfig(17, 16, 2, 2, 8, positions=positions, dtype="float64"))
    for p in model.parameters():
        p.data = p.data + 0.3 * np.random.default_rng(p.size).normal(size=p.shape)
    docs = [doc for doc in documents(9, 16, seed=2) if len(doc) > 1]
    batch = pack(docs, 16)
    assert len(batch.ids) < len(docs)
    settings = {"attn_mask": nn.document_mask(batch.documents), "positions": batch.positions}

    def gradients():
        found = [p.grad.numpy() for p in model.parameters()]
        model.zero_grad()
        return found

    packed = model.loss(batch.ids, batch.targets, "none", **settings)
    packed.sum().backward()
    together = gradients()
    for n, doc in enumerate(docs):
        alone = model.loss(doc[None, :-1], doc[None, 1:], "none")
        alone.sum().backward()
        counted = (batch.documents == n) & (batch.targets >= 0)
        np.testing.assert_allclose(packed.numpy()[counted], alone.numpy()[0], atol=1e-12)
    for a, b in zip(together, gradients(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)

    without = model.loss(batch.ids, batch.targets, "none", positions=batch.positions)
    assert abs(without.numpy() - packed.numpy()).max() > 1e-3


def test_a_packed_row_may_be_longer_than_the_block_of_the_model() -> None:
    model = GPT(GPTConfig(17, 8, 1, 2, 8, dtype="float64"))
    docs = [doc for doc in documents(9, 8, seed=4) if len(doc) > 1]
    batch = pack(docs, 40)
    mask = nn.document_mask(batch.documents)
    losses = model.loss(
        batch.ids, batch.targets, "none", attn_mask=mask, positions=batch.positions
    ).numpy()
    for n, doc in enumerate(docs):
        alone = model.loss(doc[None, :-1], doc[None, 1:], "none").numpy()[0]
        counted = (batch.documents == n) & (batch.targets >= 0)
        np.testing.assert_allclose(losses[counted], alone, atol=1e-12)


def test_nothing_to_pack() -> None:
    for docs in ([], [[]], [[], []]):
        batch = pack(docs, 3)
        assert batch.ids.shape == (0, 3)
        assert batch.fill == 0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="pack: block must be at least 1, got 0"):
        pack([[1]], 0)
    with pytest.raises(TypeError, match="pack: row 1 must be 1-D integer ids"):
        pack([[1], 3], 4)
