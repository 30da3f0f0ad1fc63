"""RNNLM: recurrent language models, Elman, GRU or LSTM, with a state instead of a window.

    model = RNNLM(RNNLMConfig(vocab_size=256, cell="lstm", n_embd=128))
    state = None
    for ids, targets in consecutive windows (B, T):     # text.ConsecutiveWindows
        loss, state = model.truncated_loss(ids, targets, state)
        loss.backward()
    model.generate([104, 105], 100)

Truncated backpropagation through time: the state flows on from window to window, the gradient ends
where a window begins. Without a state a sequence starts from h0, which is learned. The head is the
token embedding's weight (Press, Wolf, "Using the output embedding to improve language models",
2017), with a linear layer between where the widths differ. Mikolov et al., "Recurrent neural
network based language model" (2010).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .. import ops
from ..nn import GRU, LSTM, RNN, Dropout, Embedding, Linear, Parameter, init
from ..tensor import Tensor
from . import decoding
from ._checks import require, require_flags, require_floating, require_shares, require_sizes
from ._language_model import TrainedLM

Cell = Literal["rnn", "gru", "lstm"]
State = tuple[Tensor, ...]  # h, and c of an LSTM, each (layers, B, H)
_LAYERS: dict[str, Any] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


@dataclass(frozen=True)
class RNNLMConfig:
    """The shape of an RNNLM.

    vocab_size: number of token ids. cell: "rnn" (Elman), "gru" or "lstm". n_embd: width of a
    token's vector. n_hidden: width of the state, n_embd by default. n_layer: recurrent layers.
    dropout: probability, on the vectors, between layers and before the head. tied_head: the head
    uses the token embedding's weight. learn_h0: the state that a text starts from is trained,
    otherwise zero. dtype: of the parameters.

    Raises ValueError naming the field.
    """

    vocab_size: int
    cell: Cell = "lstm"
    n_embd: int = 128
    n_hidden: int | None = None
    n_layer: int = 1
    dropout: float = 0.0
    tied_head: bool = True
    learn_h0: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "n_embd", "n_layer") + ("n_hidden",) * (self.n_hidden is not None)
        require_sizes(self, *sizes)
        require_flags(self)
        known = get_args(Cell)
        message = f"cell must be one of {', '.join(known)}, got {self.cell!r}"
        require("RNNLMConfig", self.cell in known, message)
        require_shares(self, "dropout")
        require_floating(self)

    @property
    def hidden_size(self) -> int:
        """The width of the state."""
        return self.n_embd if self.n_hidden is None else self.n_hidden


class StateCache:
    """The state behind the ``length`` tokens seen so far: all that decoding has to keep."""

    def __init__(self) -> None:
        self.length = 0
        self.state: State | None = None

    def reorder(self, rows: Any) -> None:
        """Make row i what row ``rows[i]`` was."""
        if self.state is not None:
            self.state = tuple(s[:, rows] for s in self.state)


class RNNLM(TrainedLM):
    """The language model of an RNNLMConfig; initial values are drawn from ``gg.random``."""

    Config = RNNLMConfig
    generate = decoding.generate

    def __init__(self, config: RNNLMConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": config.dtype}
        width, size = config.n_embd, config.hidden_size
        self.tokens = Embedding(config.vocab_size, width, **made)
        self.dropout = Dropout(config.dropout)
        self.layers = _LAYERS[config.cell](
            width,
            size,
            config.n_layer,
            batch_first=True,
            dropout=config.dropout if config.n_layer > 1 else 0.0,
            **made,
        )
        self.projection = (
            Linear(size, width, **made) if config.tied_head and size != width else None
        )
        head = None if config.tied_head else Linear(size, config.vocab_size, False, **made)
        self.head = head
        shape = (self.layers.states, config.n_layer, size)
        self.h0 = Parameter(ops.zeros(shape, **made)) if config.learn_h0 else None
        init.normal_(self.tokens.weight, 0.0, width**-0.5)
        if config.cell == "lstm":
            self._open_forget_gates()

    def _open_forget_gates(self) -> None:
        """Let cells remember from the start: Jozefowicz et al. (2015)."""
        size = self.config.hidden_size
        for layer in range(self.config.n_layer):
            bias = getattr(self.layers, f"bias_ih_l{layer}").detach()
            bias[size : 2 * size] = 1.0

    @property
    def head_weight(self) -> Any:
        """The weight that features are multiplied by, (V, C)."""
        return self.tokens.weight if self.head is None else self.head.weight

    def initial_state(self, batch: int) -> State:
        """Return the state a text starts from, h0 or zeros, for B sequences."""
        count, layers, size = self.layers.states, self.config.n_layer, self.config.hidden_size
        if self.h0 is None:
            like = self.tokens.weight
            zeros = ops.zeros((layers, batch, size), dtype=like.dtype, device=like.device)
            return (zeros,) * count
        wide = ops.broadcast_to(self.h0[:, :, None], (count, layers, batch, size))
        return tuple(wide[k] for k in range(count))

    def features(self, ids: Any, state: State | None = None) -> tuple[Tensor, State]:
        """Return what the head sees of each position of ids (B, T), (B, T, C), and the last state.

        state: where the sequences go on from, h0 by default.
        """
        ids = self.checked("ids", ids)
        state = self.initial_state(len(ids)) if state is None else state
        given = state if self.layers.states > 1 else state[0]
        x, last = self.layers(self.dropout(self.tokens(ids)), given)
        x = self.dropout(x)
        if self.projection is not None:
            x = self.projection(x)
        return x, last if isinstance(last, tuple) else (last,)

    def logits(self, features: Tensor) -> Tensor:
        """Return the unnormalised log-probabilities of the next token, (..., V)."""
        return ops.linear(features, self.head_weight)

    def forward(
        self, ids: Any, targets: Any = None, state: State | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (logits (B, T, V), mean cross-entropy), the loss None without targets (B, T)."""
        features, _ = self.features(ids, state)
        loss = None if targets is None else self.mean_loss(features, targets, "mean")
        return self.logits(features), loss

    def loss(self, ids: Any, targets: Any, reduction: str = "mean") -> Tensor:
        """Return the cross-entropy of targets (B, T), the tokens that follow ids, starting from h0.

        In nats; reduction: "mean", "sum", or "none" for (B, T).
        """
        return self.mean_loss(self.features(ids)[0], targets, reduction)

    def truncated_loss(
        self, ids: Any, targets: Any, state: State | None = None, reduction: str = "mean"
    ) -> tuple[Tensor, State]:
        """Return the loss of a window that goes on from a state, and the state behind it.

        That state is detached: the next window's gradient ends there, h0 has one from the first.
        """
        features, last = self.features(ids, state)
        loss = self.mean_loss(features, targets, reduction)
        return loss, tuple(s.detach() for s in last)

    @property
    def block_size(self) -> int:
        """No text is too long for a state."""
        return sys.maxsize

    def next_logits(self, ids: Any, cache: StateCache | None = None) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, T), which go on from the cache."""
        features, state = self.features(ids, None if cache is None else cache.state)
        if cache is not None:
            cache.state = tuple(s.detach() for s in state)
            cache.length += ids.shape[1]
        return self.logits(features[:, -1])

    def sequence_logits(self, ids: Any) -> Tensor:
        """Return the logits of what follows every one of ids (B, T): (B, T, V)."""
        return self.logits(self.features(ids)[0])

    def new_cache(self) -> StateCache:
        """Return an empty cache, for one run of decoding."""
        return StateCache()
