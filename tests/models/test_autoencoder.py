from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import Autoencoder, AutoencoderConfig
from gpugrad.optim import AdamW


def model_of(**given) -> Autoencoder:
    return Autoencoder(AutoencoderConfig(**{"sizes": (6, 5, 4, 2), "dtype": "float64", **given}))


def x_of(n: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 6))


def fit(part, x, steps: int, lr: float = 0.02) -> float:
    optimizer = AdamW(part.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        part.loss(x).backward()
        optimizer.step()
    return part.loss(x).item()


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_equations(activation):
    model, x = model_of(activation=activation), x_of()
    squash = {
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "tanh": np.tanh,
        "relu": lambda v: np.maximum(v, 0),
    }[activation]
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    h = x
    for part in ("encoder", "decoder"):
        for k in range(3):
            h = (h if k == 0 else squash(h)) @ p[f"{part}.{k}.weight"].T + p[f"{part}.{k}.bias"]
        if part == "encoder":
            np.testing.assert_allclose(model.encode(x).detach().numpy(), h, rtol=1e-12)
    np.testing.assert_allclose(model(x).detach().numpy(), h, rtol=1e-12)
    assert model.loss(x).item() == pytest.approx(np.square(h - x).mean(), rel=1e-12)


def test_layers_share_the_models_parameters_and_meet():
    model, x = model_of(), x_of()
    layers = list(model.layerwise(x))
    assert [given.shape[1] for _, given in layers] == [6, 5, 4]
    owned = {id(p) for layer, _ in layers for p in layer.parameters()}
    assert owned == {id(p) for p in model.parameters()}
    inner = layers[-1][0].encode(layers[-1][1])
    np.testing.assert_allclose(inner.detach().numpy(), model.encode(x).detach().numpy(), rtol=1e-12)
    assert not layers[-1][1].requires_grad


def test_a_layer_sees_what_was_trained_before_it():
    model, x = model_of(), x_of()
    layers = model.layerwise(x)
    layer, given = next(layers)
    before = layer.encode(given).detach().numpy()
    fit(layer, given, 5)
    after = next(layers)[1].numpy()
    assert not np.allclose(after, before)
    np.testing.assert_array_equal(after, layer.encode(given).detach().numpy())


def test_pretraining_starts_fine_tuning_lower():
    random = np.random.default_rng(1)
    x = np.tanh(random.normal(size=(200, 2)) @ random.normal(size=(2, 6)))
    losses = []
    for pretrain in (False, True):
        gg.manual_seed(3)
        model = model_of()
        if pretrain:
            for layer, given in model.layerwise(x):
                fit(layer, given, 80)
        losses.append(fit(model, x, 40))
    assert losses[1] < losses[0] / 2


def test_noise_acts_in_training_only():
    model, x = model_of(noise=0.5), x_of()
    assert model.loss(x).item() != model.loss(x).item()
    model.eval()
    assert model.loss(x).item() == model.loss(x).item()
    layer, given = next(iter(model_of(noise=0.5).layerwise(x)))
    assert layer.loss(given).item() != layer.loss(given).item()


def test_save_and_load(tmp_path):
    model = model_of()
    model.save(tmp_path / "m")
    loaded = Autoencoder.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded(x_of()).tolist() == model(x_of()).tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": (4,)}, r"sizes must be a tuple of two or more integers >= 1, got \(4,\)"),
        ({"sizes": (4, 0)}, "sizes must be a tuple"),
        ({"activation": "gelu"}, "activation must be one of sigmoid, tanh, relu, got 'gelu'"),
        ({"noise": 1.0}, r"noise must lie in \[0, 1\), got 1.0"),
    ],
    ids=str,
)
def test_config_is_checked(given, message):
    with pytest.raises(ValueError, match=f"AutoencoderConfig: {message}"):
        model_of(**given)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"input must have shape \(N, 6\), got float64\[2, 5\]"):
        model_of()(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"input must have shape \(N, 2\), got float64\[2, 5\]"):
        model_of().decode(np.zeros((2, 5)))
