"""A4: a bag-of-words network reads "duck duck goose"; forward, backward, one step of SGD.

The words are the columns of E; h0 is their mean, h = relu(W h0 + b), logits = U h, and the loss is
-log softmax(logits)[0]. The slide prints U[0, 1] = -.502 after the step: a slip of the sign.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg

DUCK, GOOSE = 0, 1
SENTENCE = [DUCK, DUCK, GOOSE]
VALUES = {
    "E": [[0.05, -0.1], [-1.5, -0.9]],
    "W": [[0.9, 1.0], [0.7, -0.3]],
    "b": [0.0, 0.0],
    "U": [[0.0, -0.5], [-0.9, 0.3]],
}
RATE = 1e-2


def parameters() -> dict[str, gg.Tensor]:
    return {name: gg.tensor(v, "float64", requires_grad=True) for name, v in VALUES.items()}


def forward(p: dict[str, gg.Tensor]) -> dict[str, gg.Tensor]:
    h0 = gg.take(p["E"], SENTENCE, axis=1).mean(axis=1)
    h = gg.relu(p["W"] @ h0 + p["b"])
    logits = p["U"] @ h
    e = gg.exp(logits)
    y = e / e.sum()
    return {"h0": h0, "h": h, "logits": logits, "y": y, "loss": -gg.log(y[0])}


def close(x: gg.Tensor, expected: object, digits: float = 1e-12) -> None:
    np.testing.assert_allclose(x.detach().numpy(), expected, rtol=0, atol=digits)


def test_forward() -> None:
    values = forward(parameters())
    close(values["h0"], [0.0, -1.3])
    close(values["h"], [0.0, 0.39])
    close(values["logits"], [-0.195, 0.117])
    close(values["y"], [0.422626636773, 0.577373363227])
    close(values["loss"], 0.8612661450881713)


def test_backward() -> None:
    p = parameters()
    values = forward(p)
    values["y"].retain_grad()
    values["loss"].backward()
    close(values["y"].grad, [-2.366154693029, 0.0])
    close(p["U"].grad, [[0.0, -0.22517561165848], [0.0, 0.22517561165848]])
    close(p["W"].grad, [[0.0, 0.0], [0.0, -0.60046829775595]])
    close(p["b"].grad, [0.0, 0.46189869058150])
    close(
        p["E"].grad,
        [[0.21555272227137, 0.10777636113568], [-0.09237973811630, -0.04618986905815]],
    )


def test_one_step() -> None:
    p = parameters()
    forward(p)["loss"].backward()
    optimizer = gg.optim.SGD(list(p.values()), lr=RATE)
    optimizer.step()
    close(p["U"], [[0.0, -0.497748243883], [-0.9, 0.297748243883]])
    close(forward(p)["loss"], 0.8538838443379119)


def test_finite_differences() -> None:
    names = list(VALUES)
    gg.testing.gradcheck(
        lambda *args: forward(dict(zip(names, args, strict=True)))["loss"],
        list(parameters().values()),
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]], ids=str)
def test_the_order_of_the_words_does_not_matter(order: list[int]) -> None:
    e = parameters()["E"]
    close(gg.take(e, [SENTENCE[i] for i in order], axis=1).mean(axis=1), [0.0, -1.3])
