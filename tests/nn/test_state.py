from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


class Counter(nn.Module):
    def __init__(self) -> None:
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.register_buffer("steps", gg.tensor(7))
        self.register_buffer("cache", gg.ones(2), persistent=False)


class Tied(nn.Module):
    def __init__(self) -> None:
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def values(module: nn.Module) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def test_state_shares_memory_and_carries_no_graph() -> None:
    counter = Counter()
    state = counter.state_dict()
    assert list(state) == [
        "steps",
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    ]
    assert not any(tensor.requires_grad for tensor in state.values())
    state["layers.0.bias"][1] = 5.0
    assert counter.layers[0].bias[1].item() == 5
    assert list(nn.Tanh().state_dict()) == []
    for prefix in ("head", "head."):
        assert list(nn.Linear(1, 1).state_dict(prefix)) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("form", ["tensors", "arrays"])
def test_round_trip(form) -> None:
    first, second = Counter(), Counter()
    first.steps = gg.tensor(11)
    before = list(second.parameters())
    keys = second.load_state_dict(first.state_dict() if form == "tensors" else arrays(first))
    assert keys == ([], [])
    assert values(second) == values(first)
    assert [id(p) for p in second.parameters()] == [id(p) for p in before]
    with gg.no_grad():
        first.layers[0].weight.zero_()
    assert second.layers[0].weight.any()  # copied, not shared


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_values_are_cast_to_the_module_s_dtype(dtype) -> None:
    source, target = nn.Linear(3, 2, dtype=dtype), nn.Linear(3, 2)
    target.load_state_dict(source.state_dict())
    assert target.weight.dtype == gg.float32
    np.testing.assert_allclose(
        target.weight.numpy(), source.weight.numpy().astype(np.float32), rtol=1e-6
    )


def test_loading_keeps_training_state() -> None:
    layer = nn.Linear(2, 2)
    layer(gg.ones(2)).sum().backward()
    grad = layer.weight.grad
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    assert layer.weight.requires_grad
    assert layer.weight.grad is grad


def test_loading_between_forward_and_backward_is_noticed() -> None:
    layer = nn.Linear(2, 2)
    loss = layer(gg.ones(2, requires_grad=True)).sum()
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(RuntimeError, match="changed that array in place"):
        loss.backward()


def change(**changed: object):
    def apply(state: dict) -> dict:
        for name, value in changed.items():
            name = name.replace("__", ".")
            if value is None:
                del state[name]
            else:
                state[name] = value
        return state

    return apply


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        (change(steps=None), "missing: steps"),
        (change(extra=np.ones(1)), "unexpected: extra"),
        (change(cache=np.ones(2)), "unexpected: cache"),
        (
            change(layers__0__weight=np.ones((4, 2))),
            r"layers.0.weight: the module has shape \(4, 3\), got \(4, 2\)",
        ),
        (
            change(layers__1__bias=np.ones(3), steps=None, other=np.ones(1)),
            r"missing: steps.*unexpected: other.*layers.1.bias: the module has shape \(2,\)",
        ),
        (change(steps=np.float32(1.5)), "steps: the module has dtype int64, got float32"),
    ],
    ids=["missing", "unexpected", "not-persistent", "shape", "all-at-once", "dtype"],
)
def test_refusal_names_everything_and_changes_nothing(altered, message) -> None:
    counter = Counter()
    before = values(counter)
    with pytest.raises(ValueError, match=f"(?s)load_state_dict of Counter:.*{message}"):
        counter.load_state_dict(altered(arrays(Counter())))
    assert values(counter) == before


def test_not_strict_loads_what_fits_by_name() -> None:
    counter = Counter()
    bias = counter.layers[0].bias.tolist()
    state = change(layers__0__bias=None, extra=np.ones(1))(arrays(Counter()))
    keys = counter.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["layers.0.bias"]
    assert keys.unexpected_keys == ["extra"]
    assert counter.layers[0].bias.tolist() == bias
    assert counter.layers[0].weight.tolist() == state["layers.0.weight"].tolist()


def test_not_strict_still_refuses_shapes() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.bias"):
        Counter().load_state_dict({"layers.0.bias": np.ones(9)}, strict=False)


@pytest.mark.parametrize("kept", ["embedding.weight", "head.weight"])
def test_tied_parameter_needs_one_name(kept) -> None:
    tied, value = Tied(), np.arange(15.0).reshape(5, 3)
    assert tied.load_state_dict({kept: value}) == ([], [])
    assert tied.head.weight.tolist() == tied.embedding.weight.tolist() == value.tolist()


def test_tied_names_must_agree() -> None:
    tied = Tied()
    before = values(tied)
    state = {"embedding.weight": np.ones((5, 3)), "head.weight": np.zeros((5, 3))}
    with pytest.raises(ValueError, match=r"embedding\.weight and head\.weight"):
        tied.load_state_dict(state)
    assert values(tied) == before
    state["head.weight"] = state["embedding.weight"].copy()
    tied.load_state_dict(state)
    assert tied.head.weight.tolist() == np.ones((5, 3)).tolist()


@pytest.mark.parametrize("value", ["text", [1 + 2j]], ids=["string", "complex"])
def test_values_no_tensor_can_hold_are_refused(value) -> None:
    layer = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"^load_state_dict of Linear: weight: .*not supported"):
        layer.load_state_dict({"weight": value, "bias": np.zeros(1)})


class FromPyTorch:
    """What a tensor of PyTorch has that matters here."""

    def __init__(self, array: np.ndarray, dtype: str, device: str = "cuda", grad: bool = True):
        self.array, self.dtype, self.device, self.grad = array, f"torch.{dtype}", device, grad

    def detach(self) -> FromPyTorch:
        return FromPyTorch(self.array, self.dtype[6:], self.device, grad=False)

    def cpu(self) -> FromPyTorch:
        return FromPyTorch(self.array, self.dtype[6:], "cpu", self.grad)

    def float(self) -> FromPyTorch:
        return FromPyTorch(self.array.astype(np.float32), "float32", self.device, self.grad)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if self.dtype == "torch.bfloat16" or self.device != "cpu" or self.grad:
            raise TypeError(f"no array of {self.dtype} on {self.device}")
        return self.array


@pytest.mark.parametrize("target", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tensors_of_pytorch_are_loaded(dtype, target) -> None:
    source, layer = nn.Linear(3, 2, dtype=dtype), nn.Linear(3, 2, dtype=target)
    given = {name: FromPyTorch(value, dtype) for name, value in arrays(source).items()}
    layer.load_state_dict(given)
    assert layer.weight.dtype == getattr(gg, target)
    assert values(layer) == values(source.to(target))


def test_bfloat16_survives_a_file_of_numpys(tmp_path) -> None:
    source, layer = nn.Linear(3, 2, dtype="bfloat16"), nn.Linear(3, 2, dtype="bfloat16")
    np.savez(tmp_path / "state.npz", **arrays(source))
    with np.load(tmp_path / "state.npz") as file:
        assert file["weight"].dtype.kind == "V"
        layer.load_state_dict(file)
    assert values(layer) == values(source)
    with pytest.raises(TypeError, match=r"weight: dtype .*V3.* is not supported"):
        layer.load_state_dict({"weight": np.zeros((2, 3), "V3"), "bias": np.zeros(2)})


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", 1e300), ("float16", 1e6), ("bfloat16", 3.4e38 * 1.01), ("float16", 70000)],
)
def test_values_that_would_become_infinite_are_refused(dtype, value) -> None:
    layer = nn.Linear(1, 1).to(getattr(gg, dtype))
    before = layer.bias.numpy().copy()
    given = {"weight": np.array([[value]]), "bias": np.array([2.0])}
    with pytest.raises(ValueError, match=f"weight: .* holds numbers too large for {dtype}"):
        layer.load_state_dict(given)
    np.testing.assert_array_equal(layer.bias.numpy(), before)
    layer.load_state_dict({**given, "weight": np.array([[np.inf]])})  # meant, so it is kept
    assert np.isinf(layer.weight.item())


def test_integer_buffers_refuse_numbers_out_of_range() -> None:
    module = nn.Module()
    module.register_buffer("count", gg.zeros(2, dtype="int8"))
    with pytest.raises(ValueError, match="count: int64 holds numbers too large for int8"):
        module.load_state_dict({"count": np.array([1, 300])})
    module.load_state_dict({"count": np.array([-128, 127])})
    assert module.count.tolist() == [-128, 127]
