from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.fused import FUSED

LAYERS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def step(kind: str, x, states, w_ih, w_hh, b_ih, b_hh):
    """One step of PyTorch's equations for vectors, written out."""
    h = states[0]
    i_part, h_part = w_ih @ x + b_ih, w_hh @ h + b_hh
    if kind == "RNN":
        return (np.tanh(i_part + h_part),)
    if kind == "GRU":
        (i_r, i_z, i_n), (h_r, h_z, h_n) = np.split(i_part, 3), np.split(h_part, 3)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        n = np.tanh(i_n + r * h_n)
        return ((1 - z) * n + z * h,)
    i, f, g, o = np.split(i_part + h_part, 4)
    c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def reference(kind: str, layer: nn.Module, x: np.ndarray, states: list[np.ndarray]):
    """The output (T, N, D*H) and last states for x (T, N, I), one vector at a time."""
    parameters = {name: p.numpy() for name, p in layer.named_parameters()}
    zeros = np.zeros(layer.weight_hh_l0.shape[0])
    ends = [np.zeros_like(s) for s in states]
    row = 0
    for k in range(layer.num_layers):
        outs = []
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
            weights = [parameters[f"weight_{p}_l{k}{suffix}"] for p in ("ih", "hh")]
            biases = [parameters.get(f"bias_{p}_l{k}{suffix}", zeros) for p in ("ih", "hh")]
            out = np.zeros((*x.shape[:2], layer.hidden_size))
            for n in range(x.shape[1]):
                state = tuple(s[row, n] for s in states)
                for t in range(len(x))[:: -1 if suffix else 1]:
                    state = step(kind, x[t, n], state, *weights, *biases)
                    out[t, n] = state[0]
                for end, s in zip(ends, state, strict=True):
                    end[row, n] = s
            outs.append(out)
            row += 1
        x = np.concatenate(outs, -1)
    return x, ends


def run(layer: nn.Module, x: gg.Tensor, *states: gg.Tensor) -> tuple[gg.Tensor, ...]:
    """Return (output, states...) whatever the kind of layer."""
    given = (states if isinstance(layer, nn.LSTM) else states[0]) if states else None
    out, last = layer(x, given)
    return (out, *last) if isinstance(last, tuple) else (out, last)


def initial(kind: str, *shape: int) -> list[gg.Tensor]:
    count = 2 if kind == "LSTM" else 1
    return [gg.random.normal(size=shape, dtype="float64") for _ in range(count)]


@pytest.mark.parametrize("with_states", [False, True], ids=["from-zero", "from-states"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("kind", LAYERS)
def test_equations(kind, bias, num_layers, bidirectional, with_states) -> None:
    layer = LAYERS[kind](3, 2, num_layers, bias=bias, bidirectional=bidirectional, dtype="float64")
    x = gg.random.normal(size=(5, 4, 3), dtype="float64")
    states = initial(kind, num_layers * (1 + bidirectional), 4, 2)
    if not with_states:
        states = [gg.zeros_like(s) for s in states]
    out, ends = reference(kind, layer, x.numpy(), [s.numpy() for s in states])
    actual = run(layer, x, *states) if with_states else run(layer, x)
    for a, expected in zip(actual, (out, *ends), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_gradients(kind, bidirectional, check_gradients) -> None:
    class Run(nn.Module):
        def __init__(self) -> None:
            self.layer = LAYERS[kind](2, 3, 2, bidirectional=bidirectional, dtype="float64")

        def forward(self, *args: gg.Tensor) -> tuple[gg.Tensor, ...]:
            return run(self.layer, *args)

    x = gg.random.normal(size=(4, 2, 2), dtype="float64")
    states = initial(kind, 2 * (1 + bidirectional), 2, 3)
    check_gradients(Run(), x, *states)


@pytest.mark.parametrize("kind", LAYERS)
def test_second_order(kind, check_gradients) -> None:
    class Run(nn.Module):
        def __init__(self) -> None:
            self.layer = LAYERS[kind](1, 2, dtype="float64")

        def forward(self, x: gg.Tensor) -> gg.Tensor:
            return self.layer(x)[0]

    check_gradients(Run(), gg.random.normal(size=(3, 1), dtype="float64"), order=2)


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_agree(kind) -> None:
    layer = LAYERS[kind](3, 2, 2, bidirectional=True, dtype="float64")
    batch_first = LAYERS[kind](3, 2, 2, bidirectional=True, batch_first=True, dtype="float64")
    batch_first.load_state_dict(layer.state_dict())
    x = gg.random.normal(size=(5, 4, 3), dtype="float64")
    states = initial(kind, 4, 4, 2)
    out, *ends = run(layer, x, *states)
    swapped, *same = run(batch_first, gg.swapaxes(x, 0, 1), *states)
    np.testing.assert_array_equal(swapped.detach().numpy(), out.detach().numpy().swapaxes(0, 1))
    for a, b in zip(ends, same, strict=True):
        assert a.tolist() == b.tolist()
    single, *ends_single = run(layer, x[:, 1], *(s[:, 1] for s in states))
    np.testing.assert_allclose(single.detach().numpy(), out[:, 1].detach().numpy(), atol=1e-14)
    for a, b in zip(ends_single, ends, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b[:, 1].detach().numpy(), atol=1e-14)


@pytest.mark.parametrize("kind", LAYERS)
def test_continuing_from_the_states_is_one_run(kind) -> None:
    layer = LAYERS[kind](3, 2, 2, dtype="float64")
    x = gg.random.normal(size=(6, 2, 3), dtype="float64")
    whole, *ends = run(layer, x)
    first, *middle = run(layer, x[:4])
    second, *last = run(layer, x[4:], *middle)
    joined = gg.concat([first, second])
    np.testing.assert_allclose(joined.detach().numpy(), whole.detach().numpy(), atol=1e-14)
    for a, b in zip(last, ends, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-14)


def test_relu_nonlinearity() -> None:
    layer = nn.RNN(2, 3, nonlinearity="relu", dtype="float64")
    x = gg.random.normal(size=(1, 2), dtype="float64")
    p = {name: value.numpy() for name, value in layer.named_parameters()}
    expected = np.maximum(x.numpy() @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"], 0)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-14)
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'gelu'"):
        nn.RNN(2, 3, nonlinearity="gelu")


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_names_and_shapes_are_pytorch_s(kind, gates) -> None:
    layer = LAYERS[kind](3, 5, num_layers=2, bidirectional=True)
    expected = {}
    for k, suffix in itertools.product(range(2), ["", "_reverse"]):
        expected[f"weight_ih_l{k}{suffix}"] = (gates * 5, 10 if k else 3)
        expected[f"weight_hh_l{k}{suffix}"] = (gates * 5, 5)
        expected[f"bias_ih_l{k}{suffix}"] = expected[f"bias_hh_l{k}{suffix}"] = (gates * 5,)
    actual = {name: p.shape for name, p in layer.named_parameters()}
    assert list(actual.items()) == list(expected.items())
    for p in layer.parameters():
        assert np.abs(p.numpy()).max() <= 5**-0.5


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_acts_between_layers_in_training(kind) -> None:
    layer = LAYERS[kind](3, 8, num_layers=2, dropout=1.0)
    x = gg.random.normal(size=(4, 2, 3))
    out, other = layer(x)[0], layer(2 * x)[0]
    assert out.tolist() == other.tolist()  # the second layer saw zeros both times
    assert out.any()
    layer.eval()
    assert layer(x)[0].tolist() != layer(2 * x)[0].tolist()


def test_dropout_without_effect_warns() -> None:
    with pytest.warns(UserWarning, match=r"GRU: dropout=0\.1 acts between layers"):
        nn.GRU(2, 2, dropout=0.1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(4, 2, 5), (3,), (2, 2, 2, 3), (0, 2, 3)], ids=str)
def test_wrong_input_is_refused(kind, shape) -> None:
    with pytest.raises(ValueError, match=rf"{kind}\(3, 2\): input must have shape \(T, N, 3\)"):
        LAYERS[kind](3, 2)(gg.zeros(shape))


@pytest.mark.parametrize("kind", LAYERS)
def test_empty_batch(kind) -> None:
    out, *states = run(LAYERS[kind](3, 2), gg.zeros(4, 0, 3))
    assert out.shape == (4, 0, 2)
    assert {s.shape for s in states} == {(1, 0, 2)}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(1, 2), (2, 4, 2), (1, 3, 2)], ids=str)
def test_wrong_state_is_refused(kind, shape) -> None:
    message = rf"{kind}\(3, 2\): the initial state .* shape \(1, 4, 2\), got \({shape[0]}, "
    with pytest.raises(ValueError, match=message):
        run(LAYERS[kind](3, 2), gg.zeros(5, 4, 3), *(gg.zeros(shape) for _ in initial(kind, 1)))


def test_lstm_needs_both_states() -> None:
    with pytest.raises(ValueError, match=r"must be \(h, c\), each of shape \(1, 4, 2\)"):
        nn.LSTM(3, 2)(gg.zeros(5, 4, 3), gg.zeros(1, 4, 2))


@pytest.mark.parametrize("sizes", [(3, 0, 1), (3, 2, 0)], ids=str)
def test_sizes_are_checked(sizes) -> None:
    with pytest.raises(ValueError, match="hidden_size and num_layers must be positive"):
        nn.RNN(*sizes)


def test_repr_shows_what_is_not_default() -> None:
    assert repr(nn.LSTM(3, 4)) == "LSTM(3, 4)"
    layer = nn.GRU(3, 4, 2, batch_first=True, dropout=0.5)
    assert repr(layer) == "GRU(3, 4, num_layers=2, batch_first=True, dropout=0.5)"


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_as_many_nodes_for_any_length(kind) -> None:
    def nodes(t: int) -> int:
        out, _ = LAYERS[kind](2, 3)(gg.zeros(t, 1, 2))
        return len(gg.engine.reachable([out.sum()._node]))

    assert nodes(32) == nodes(8) < 12


@pytest.mark.parametrize("kind", LAYERS)
def test_narrow_dtypes_take_the_definition(kind) -> None:
    layer = LAYERS[kind](3, 4, dtype="bfloat16")
    before = FUSED[kind.lower()].launches.copy()
    out, _ = layer(gg.ones(5, 2, 3, dtype="bfloat16"))
    out.sum().backward()
    assert FUSED[kind.lower()].launches - before == {"spec": 1}
    assert {p.grad.dtype for p in layer.parameters()} == {gg.bfloat16}
