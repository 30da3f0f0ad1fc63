"""A4: a bag-of-words network reads "duck duck goose"; forward, backward, one step of SGD.

The words are the columns of E; h0 is their mean, h = relu(W h0 + b), logits = U h, and the loss is
-log softmax(logits)[0]. The slide prints U[0, 1] = -.502 after the step: a slip of the sign.
``gpugrad.models.BagOfWords`` keeps the words as rows: its words.weight is E.T.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import BagOfWords, BagOfWordsConfig

DUCK, GOOSE = 0, 1
SENTENCE = [DUCK, DUCK, GOOSE]
VALUES = {
    "E": [[0.05, -0.1], [-1.5, -0.9]],
    "W": [[0.9, 1.0], [0.7, -0.3]],
    "b": [0.0, 0.0],
    "U": [[0.0, -0.5], [-0.9, 0.3]],
}
RATE = 1e-2


def network() -> BagOfWords:
    config = BagOfWordsConfig(
        vocab_size=2, n_classes=2, n_embd=2, hidden=(2,), head_bias=False, dtype="float64"
    )
    model = BagOfWords(config)
    e, w, b, u = (np.array(values) for values in VALUES.values())
    model.load_state_dict(
        {"words.weight": e.T, "hidden.0.weight": w, "hidden.0.bias": b, "head.weight": u}
    )
    return model


def loss_of(model: BagOfWords) -> gg.Tensor:
    return model.loss([SENTENCE], [0])


def close(x: gg.Tensor, expected: object, digits: float = 1e-12) -> None:
    np.testing.assert_allclose(x.detach().numpy(), expected, rtol=0, atol=digits)


def test_forward() -> None:
    model = network()
    h0 = model.encode([SENTENCE])
    close(h0, [[0.0, -1.3]])
    close(gg.relu(model.hidden[0](h0)), [[0.0, 0.39]])
    logits, loss = model([SENTENCE], [0])
    close(logits, [[-0.195, 0.117]])
    close(gg.nn.functional.softmax(logits), [[0.422626636773, 0.577373363227]])
    close(loss, 0.8612661450881713)


def test_backward() -> None:
    model = network()
    loss_of(model).backward()
    close(model.head.weight.grad, [[0.0, -0.22517561165848], [0.0, 0.22517561165848]])
    close(model.hidden[0].weight.grad, [[0.0, 0.0], [0.0, -0.60046829775595]])
    close(model.hidden[0].bias.grad, [0.0, 0.46189869058150])
    close(
        model.words.weight.grad.T,
        [[0.21555272227137, 0.10777636113568], [-0.09237973811630, -0.04618986905815]],
    )


def test_gradient_of_the_probabilities() -> None:
    logits = network()([SENTENCE])[0]
    e = gg.exp(logits)
    y = e / e.sum()
    y.retain_grad()
    (-gg.log(y[0, 0])).backward()
    close(y.grad, [[-2.366154693029, 0.0]])


def test_one_step() -> None:
    model = network()
    loss_of(model).backward()
    gg.optim.SGD(model.parameters(), lr=RATE).step()
    close(model.head.weight, [[0.0, -0.497748243883], [-0.9, 0.297748243883]])
    close(loss_of(model), 0.8538838443379119)


def test_finite_differences() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    owners = dict(model.named_modules())

    def loss(*values: gg.Tensor) -> gg.Tensor:
        for name, value in zip(names, values, strict=True):
            owner, _, leaf = name.rpartition(".")
            vars(owners[owner])[leaf] = value
        return loss_of(model)

    gg.testing.gradcheck(loss, [p.detach().requires_grad_() for p in model.parameters()])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]], ids=str)
def test_the_order_of_the_words_does_not_matter(order: list[int]) -> None:
    close(network().encode([[SENTENCE[i] for i in order]]), [[0.0, -1.3]])
