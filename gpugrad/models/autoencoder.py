"""Autoencoder: a network that has to reproduce its input through a narrow middle.

    model = Autoencoder(AutoencoderConfig(sizes=(64, 32, 8)))
    for layer, x in model.layerwise(data):      # unsupervised pre-training, one layer at a time
        ... minimise layer.loss(x) ...
    ... minimise model.loss(data) ...           # fine-tuning, all layers at once

A layer of pre-training is an encoder layer and the decoder layer that undoes it, trained to
reproduce what the layers below make of the data. Their parameters are the model's own, so that
fine-tuning goes on where pre-training ended. Hinton, Salakhutdinov, "Reducing the dimensionality of
data with neural networks" (2006); Bengio, Lamblin, Popovici, Larochelle, "Greedy layer-wise
training of deep networks" (2007); with noise Vincent et al., "Extracting and composing robust
features with denoising autoencoders" (2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .. import ops
from ..engine import no_grad
from ..nn import Linear, ModuleList
from ..nn import functional as F
from ..nn.module import Module
from ..registry import describe
from ..tensor import Tensor
from ._beside import beside
from ._checks import require, require_floating, require_shares
from ._files import Saved

Activation = Literal["sigmoid", "tanh", "relu"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an Autoencoder.

    sizes: widths from the input to the code, such as (64, 32, 8); the decoder goes the same way
    back. activation: behind every layer but the code's and the last: "sigmoid", "tanh" or "relu".
    noise: the probability with which an input of a layer is set to 0 in pre-training and training.
    dtype: of the parameters.

    Raises ValueError naming the field.
    """

    sizes: tuple[int, ...]
    activation: Activation = "sigmoid"
    noise: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        where = "AutoencoderConfig"
        valid = isinstance(self.sizes, tuple) and len(self.sizes) >= 2
        valid = valid and all(type(size) is int and size >= 1 for size in self.sizes)
        message = f"sizes must be a tuple of two or more integers >= 1, got {self.sizes!r}"
        require(where, valid, message)
        known = get_args(Activation)
        message = f"activation must be one of {', '.join(known)}, got {self.activation!r}"
        require(where, self.activation in known, message)
        require_shares(self, "noise")
        require_floating(self)


class Autoencoder(Module, Saved):
    """The autoencoder of an AutoencoderConfig; initial values are drawn from ``gg.random``."""

    Config = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": config.dtype}
        pairs = list(zip(config.sizes[:-1], config.sizes[1:], strict=True))
        self.encoder = ModuleList(Linear(a, b, **made) for a, b in pairs)
        self.decoder = ModuleList(Linear(b, a, **made) for a, b in reversed(pairs))

    def encode(self, x: Any) -> Tensor:
        """Return the code (N, sizes[-1]) of x (N, sizes[0])."""
        return _through(self.encoder, self._checked(x, 0), self.config.activation)

    def decode(self, code: Any) -> Tensor:
        """Return what a code (N, sizes[-1]) stands for, (N, sizes[0])."""
        return _through(self.decoder, self._checked(code, -1), self.config.activation)

    def forward(self, x: Any) -> Tensor:
        """Return the reproduction of x (N, sizes[0])."""
        return self.decode(self.encode(x))

    def loss(self, x: Any) -> Tensor:
        """Return the mean squared error of the reproduction; in training of x with noise."""
        x = self._checked(x, 0)
        return F.mse_loss(self.forward(_noisy(x, self.config.noise, self.training)), x)

    def layerwise(self, x: Any) -> Iterator[tuple[Layer, Tensor]]:
        """Yield each Layer, from the outermost in, and what it has to reproduce.

        x: the data (N, sizes[0]). Train a layer before asking for the next, whose input it makes.
        """
        x = self._checked(x, 0)
        last = len(self.encoder) - 1
        for k in range(last + 1):
            layer = Layer(self, k)
            yield layer, x
            with no_grad():
                x = layer.encode(x)

    def _checked(self, x: Any, end: int) -> Tensor:
        x, width = beside(self.encoder[0].weight, x), self.config.sizes[end]
        if x.ndim != 2 or x.shape[1] != width:
            raise ValueError(f"Autoencoder: input must have shape (N, {width}), got {describe(x)}")
        return x.astype(self.config.dtype)


class Layer(Module):
    """One layer of an autoencoder and the one that undoes it: an autoencoder of its own.

    Its parameters are those of the whole model. The innermost code has no activation, nor has the
    outermost reproduction: each is what it is in the whole.
    """

    def __init__(self, whole: Autoencoder, k: int) -> None:
        super().__init__()
        self.encoder, self.decoder = whole.encoder[k], whole.decoder[len(whole.encoder) - 1 - k]
        self.activation, self.noise = whole.config.activation, whole.config.noise
        self.is_first, self.is_last = k == 0, k == len(whole.encoder) - 1

    def encode(self, x: Tensor) -> Tensor:
        """Return what the next layer is given."""
        x = self.encoder(x)
        return x if self.is_last else getattr(ops, self.activation)(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reproduction of x."""
        x = self.decoder(self.encode(x))
        return x if self.is_first else getattr(ops, self.activation)(x)

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean squared error of the reproduction; in training of x with noise."""
        return F.mse_loss(self.forward(_noisy(x, self.noise, self.training)), x)


def _through(layers: Any, x: Tensor, activation: str) -> Tensor:
    """Return x behind all layers, with the activation between them."""
    for k, layer in enumerate(layers):
        x = layer(x if k == 0 else getattr(ops, activation)(x))
    return x


def _noisy(x: Tensor, noise: float, training: bool) -> Tensor:
    """Return x with a share of its elements set to 0."""
    return F.dropout(x, noise, training) * (1 - noise) if noise and training else x
