"""Recurrent layers with PyTorch's equations, arguments and parameter names.

Parameters of layer k are weight_ih_lk (G*H, I), weight_hh_lk (G*H, H), bias_ih_lk and bias_hh_lk
(G*H), with ``_reverse`` for the second direction; G counts the gates, in PyTorch's order. The
inputs of all time steps are multiplied with weight_ih at once; the rest, which is sequential, is
one fused operation for a layer and direction (fused/rnn.py, gru.py, lstm.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from .. import fused, ops
from ..backend import DTypeLike
from ..fused.dropout import probability
from ..tensor import Tensor
from . import functional as F
from . import init
from .module import Module, shape_error
from .parameter import Parameter, empty_parameter

States = tuple[Tensor, ...]  # of one layer and direction, each (N, H): h, and c of an LSTM


class _Recurrent(Module):
    """What all three share: parameters, layers, directions, layouts and initial states."""

    gates = 1
    states = 1
    adds_biases = True  # whether bias_hh can be added to bias_ih before the first step
    weight_hh_l0: Parameter  # and so on, as num_layers, bias and bidirectional ask for

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if hidden_size < 1 or num_layers < 1:
            raise ValueError(
                f"{name}: hidden_size and num_layers must be positive, got {hidden_size} and "
                f"{num_layers}"
            )
        if dropout and num_layers == 1:
            warnings.warn(
                f"{name}: dropout={dropout} acts between layers, and there is only one",
                stacklevel=3,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = probability(name, "dropout", dropout)
        self.bidirectional = bidirectional
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self._directions)
            for direction in self._directions:
                shapes: list[tuple[str, tuple[int, ...]]] = [
                    ("weight_ih", (rows, width)),
                    ("weight_hh", (rows, hidden_size)),
                ]
                if bias:
                    shapes += [("bias_ih", (rows,)), ("bias_hh", (rows,))]
                for kind, shape in shapes:
                    made = empty_parameter(*shape, device=device, dtype=dtype)
                    self.register_parameter(f"{kind}_l{layer}{direction}", made)
        self.reset_parameters()

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly within 1/sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def run(self, x: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        """Return (outputs (T, N, H), *last states) from the input's part of the gates (T, N, G*H).

        ``weight`` is weight_hh (G*H, H); ``bias`` is bias_hh unless adds_biases.
        """
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> tuple[Tensor, Any]:
        """Return (output, last states) for a sequence and the states it starts from.

        input (T, N, I), with batch_first (N, T, I), or without a batch (T, I); output likewise
        with D*H features, D directions. The states, zeros by default, are (layers*D, N, H), or
        (layers*D, H) without a batch; an LSTM has a pair of them.
        """
        x = ops.asarray(input)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size or not x.shape[self._time(x)]:
            layout = "(N, T, {0}) or (T, {0})" if self.batch_first else "(T, N, {0}) or (T, {0})"
            raise shape_error(self, layout.format(self.input_size) + " with T > 0", x)
        batched = x.ndim == 3
        if not batched:
            x = ops.expand_dims(x, 1)
        elif self.batch_first:
            x = ops.swapaxes(x, 0, 1)
        states = self._initial(hx, x.shape[1], batched)
        last: list[States] = []
        for layer in range(self.num_layers):
            outs = []
            for direction in self._directions:
                out, state = self._run(x, states[len(last)], f"l{layer}{direction}")
                outs.append(out)
                last.append(state)
            x = outs[0] if len(outs) == 1 else ops.concat(outs, -1)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        ends = [ops.stack(parts) for parts in zip(*last, strict=True)]
        if not batched:
            x, ends = ops.squeeze(x, 1), [ops.squeeze(end, 1) for end in ends]
        elif self.batch_first:
            x = ops.swapaxes(x, 0, 1)
        return x, (ends[0] if self.states == 1 else tuple(ends))

    def _time(self, x: Tensor) -> int:
        return 1 if x.ndim == 3 and self.batch_first else 0

    def _run(self, x: Tensor, state: States, suffix: str) -> tuple[Tensor, States]:
        """Return (T, N, H) and the last state of one layer in one direction, x being (T, N, I)."""
        bias_ih, bias = (getattr(self, f"bias_{k}_{suffix}", None) for k in ("ih", "hh"))
        if bias is not None and self.adds_biases:
            bias_ih, bias = bias_ih + bias, None
        gates = F.linear(x, getattr(self, f"weight_ih_{suffix}"), bias_ih)
        weight = getattr(self, f"weight_hh_{suffix}")
        if suffix.endswith("_reverse"):
            out, *last = self.run(ops.flip(gates, 0), state, weight, bias)
            return ops.flip(out, 0), tuple(last)
        out, *last = self.run(gates, state, weight, bias)
        return out, tuple(last)

    def _initial(self, hx: Any, n: int, batched: bool) -> list[States]:
        """Return the states every layer and direction starts from, in order."""
        count = self.num_layers * len(self._directions)
        shape = (count, n, self.hidden_size)
        if hx is None:
            weight = self.weight_hh_l0
            zeros = ops.zeros(shape[1:], dtype=weight.dtype, device=weight.device)
            return [(zeros,) * self.states] * count
        given: Sequence[Any] = (hx,) if self.states == 1 else hx
        expected = shape if batched else (count, self.hidden_size)
        states = [ops.asarray(s) for s in given]
        if len(states) != self.states or any(s.shape != expected for s in states):
            names = "h" if self.states == 1 else "(h, c), each"
            raise ValueError(
                f"{self!r}: the initial state must be {names} of shape {expected}, got "
                f"{', '.join(str(s.shape) for s in states)}"
            )
        return list(zip(*(ops.unstack(ops.reshape(s, shape)) for s in states), strict=True))

    def extra_repr(self) -> str:
        """Return the sizes and what differs from the defaults."""
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        ):
            value = getattr(self, name)
            text += f", {name}={value}" if value != default else ""
        return text


class RNN(_Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu of it: Elman, "Finding structure in time".

    ``nonlinearity`` is "tanh" or "relu". See forward for shapes.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: str | None = None,
        dtype: DTypeLike = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
        )

    def run(self, x: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        """Return the outputs and the last h."""
        out = fused.rnn(x, weight, state[0], nonlinearity=self.nonlinearity)
        return out, out[-1]


class GRU(_Recurrent):
    """Gated recurrent unit: Cho et al. (2014), in the form that is PyTorch's and cuDNN's.

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh), n = tanh(W_in x + b_in + r (W_hn h + b_hn)),
    h' = (1 - z) n + z h; gates in the order r, z, n. See forward for shapes.
    """

    gates = 3
    adds_biases = False  # the reset gate multiplies b_hn

    def run(self, x: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        """Return the outputs and the last h."""
        out = fused.gru(x, weight, state[0], bias)
        return out, out[-1]


class LSTM(_Recurrent):
    """Long short-term memory: Hochreiter, Schmidhuber (1997), with forget gate.

    i, f, o = sigmoid(...) and g = tanh(...) of W_ih x + b_ih + W_hh h + b_hh, then
    c' = f c + i g, h' = o tanh(c'); gates in the order i, f, g, o. See forward for shapes.
    """

    gates = 4
    states = 2

    def run(self, x: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        """Return the outputs and the last h and c."""
        out, c = fused.lstm(x, weight, state[0], state[1])
        return out, out[-1], c
