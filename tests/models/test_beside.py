"""What models are given as NumPy arrays goes to where they are."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import (
    GPT,
    Autoencoder,
    AutoencoderConfig,
    BagOfWords,
    BagOfWordsConfig,
    GPTConfig,
    LogisticRegression,
    LogisticRegressionConfig,
    SequenceClassifier,
    SkipGram,
    SkipGramConfig,
)

X = np.ones((4, 3), np.float32)
IDS = np.arange(12).reshape(4, 3) % 5
CLASSES = np.array([0, 1, 1, 0])


def classifier(device):
    shape = {"vocab_size": 5, "block_size": 4, "n_layer": 1, "n_head": 1, "n_embd": 8}
    return SequenceClassifier(GPT(GPTConfig(**shape), device=device), 2)


LOSSES = {
    "autoencoder": lambda device: Autoencoder(AutoencoderConfig((3, 2)), device=device).loss(X),
    "logistic": lambda device: LogisticRegression(LogisticRegressionConfig(3), device=device).loss(
        X, CLASSES
    ),
    "bag of words": lambda device: BagOfWords(
        BagOfWordsConfig(vocab_size=5, n_classes=2), device=device
    ).loss(IDS, CLASSES),
    "classifier": lambda device: classifier(device)(IDS, labels=CLASSES)[1],
    "skip-gram": lambda device: SkipGram(SkipGramConfig(5), device=device).loss(
        IDS[:, 0], IDS[:, 1], IDS
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_loss_of_numpy_arrays_is_where_the_model_is(name, device):
    loss = LOSSES[name](device)
    assert loss.device.partition(":")[0] == device
    loss.backward()


def test_gradients_come_back_to_what_was_given():
    x = gg.tensor(X, requires_grad=True)
    Autoencoder(AutoencoderConfig((3, 2))).loss(x).backward()
    assert x.grad.shape == X.shape
