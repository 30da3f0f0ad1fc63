from __future__ import annotations

import copy
import gc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


class Scale(nn.Module):
    def __init__(self, n: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(gg.full((n,), 2.0))
        self.register_buffer("shift", gg.ones(n))
        self.register_buffer("scratch", gg.zeros(1), persistent=False)

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        return x * self.weight + self.shift


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Scale()
        self.rest = nn.Sequential(Scale(), nn.Dropout(0.5))
        self.bias = nn.Parameter(gg.zeros(3))

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        return self.rest(self.first(x)) + self.bias


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: gg.Tensor) -> gg.Tensor:
        return self.head(self.embedding(ids))


# Finding what is inside


def test_names_are_pytorch_s() -> None:
    net = Net()
    names = ["bias", "first.weight", "rest.0.weight"]
    assert [name for name, _ in net.named_parameters()] == names
    assert [name for name, _ in net.named_parameters(prefix="net", recurse=False)] == ["net.bias"]
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]
    assert [name for name, _ in net.named_modules()] == ["", "first", "rest", "rest.0", "rest.1"]
    assert [name for name, _ in net.named_children()] == ["first", "rest"]
    assert list(net.children()) == [net.first, net.rest]
    assert list(net.modules()) == [net, net.first, net.rest, net.rest[0], net.rest[1]]


def test_buffers_are_no_parameters() -> None:
    net = Net()
    names = ["first.shift", "first.scratch", "rest.0.shift", "rest.0.scratch"]
    assert [name for name, _ in net.named_buffers()] == names
    assert [b.size for b in net.buffers()] == [3, 1, 3, 1]
    assert list(net.buffers(recurse=False)) == []


def test_needs_no_super_init() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(2, 1)
            self.register_buffer("mean", gg.zeros(2))

    bare = Bare().eval()
    assert list(bare.state_dict()) == ["mean", "layer.weight", "layer.bias"]
    assert not bare.layer.training


def test_tied_parameter_is_one() -> None:
    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["embedding.weight"]
    every = tied.named_parameters(remove_duplicate=False)
    assert [name for name, _ in every] == ["embedding.weight", "head.weight"]
    assert list(tied.state_dict()) == ["embedding.weight", "head.weight"]


def test_tied_gradients_add_up() -> None:
    tied, ids = Tied(), gg.tensor([1, 3])
    tied(ids).sum().backward()
    weight = tied.embedding.weight.numpy()
    expected = np.tile(weight[[1, 3]].sum(0), (5, 1))  # as the head
    expected[[1, 3]] += weight.sum(0)  # as the embedding
    np.testing.assert_allclose(tied.head.weight.grad.numpy(), expected, atol=1e-5)


def test_module_used_twice_is_one() -> None:
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert [name for name, _ in net.named_modules()] == ["", "0", "1"]
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_plain_tensor_does_not_replace_a_parameter() -> None:
    scale = Scale()
    with pytest.raises(TypeError, match=r"Scale\.weight is a Parameter"):
        scale.weight = gg.ones(3)
    scale.weight = nn.Parameter(gg.ones(3))
    scale.weight = None
    assert list(scale.parameters()) == []


def test_buffer_can_be_replaced() -> None:
    scale = Scale()
    scale.shift = gg.zeros(3)
    assert scale.state_dict()["shift"].tolist() == [0, 0, 0]
    scale.shift = None
    assert list(scale.state_dict()) == ["weight"]


@pytest.mark.parametrize("value", [np.ones(3), nn.Parameter(gg.ones(1))], ids=["array", "param"])
def test_buffer_must_be_a_plain_tensor(value) -> None:
    with pytest.raises(TypeError, match="'running' must be a plain tensor"):
        nn.Module().register_buffer("running", value)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_parameter_in_the_place_of_a_buffer_is_none(persistent: bool) -> None:
    module = nn.Module()
    module.register_buffer("scale", gg.ones(2), persistent)
    module.scale = nn.Parameter(gg.zeros(2))
    assert list(module.buffers()) == []
    assert [name for name, _ in module.named_parameters()] == ["scale"]
    assert list(module.state_dict()) == ["scale"]


def test_buffer_must_not_hide_an_attribute() -> None:
    with pytest.raises(KeyError, match="already has 'weight'"):
        Scale().register_buffer("weight", gg.ones(1))


def test_registered_parameter_is_an_attribute() -> None:
    module = nn.Module()
    module.register_parameter("bias", None)
    module.register_parameter("weight", nn.Parameter(gg.ones(1)))
    assert module.bias is None
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    with pytest.raises(TypeError, match="must be a Parameter"):
        module.register_parameter("other", gg.ones(1))


# Calling


def test_call_is_forward_and_trains() -> None:
    net = Net().eval()
    out = net(gg.ones(2, 3))
    assert out.tolist() == [[7, 7, 7]] * 2
    out.sum().backward()
    assert {name: p.grad.tolist() for name, p in net.named_parameters()} == {
        "bias": [2, 2, 2],
        "first.weight": [4, 4, 4],
        "rest.0.weight": [6, 6, 6],
    }


def test_missing_forward_is_named() -> None:
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define forward"):
        Empty()(1)


def test_train_and_eval_reach_everything() -> None:
    net = Net()
    assert all(module.training for module in net.modules())
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    assert net.train() is net
    assert all(module.training for module in net.modules())
    with pytest.raises(TypeError, match="mode"):
        net.train("yes")


def test_apply_goes_inside_out() -> None:
    net, seen = Net(), []
    assert net.apply(seen.append) is net
    assert seen == [net.first, *net.rest, net.rest, net]


def test_requires_grad_freezes() -> None:
    net = Net().requires_grad_(False)
    assert not net(gg.ones(3)).requires_grad
    net.requires_grad_()
    assert net(gg.ones(3)).requires_grad


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none) -> None:
    net = Net()
    net.zero_grad()
    net.eval()(gg.ones(3)).sum().backward()
    net.zero_grad(set_to_none=to_none)
    kept = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    assert kept == [None if to_none else [0, 0, 0]] * 3


# Moving


def test_to_dtype_keeps_identity_and_integers() -> None:
    net = Net()
    net.register_buffer("count", gg.arange(2))
    before = list(net.parameters())
    net.eval()(gg.ones(3)).sum().backward()
    assert net.to(gg.float64) is net
    assert [id(p) for p in net.parameters()] == [id(p) for p in before]
    assert {p.dtype for p in net.parameters()} == {gg.float64}
    assert {p.grad.dtype for p in net.parameters()} == {gg.float64}
    assert {b.dtype for b in net.buffers()} == {gg.float64, gg.int64}
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())
    assert net(gg.ones(3, dtype=gg.float64)).dtype == gg.float64


def test_to_keeps_tied_parameters_tied() -> None:
    tied = Tied().to(dtype="float16")
    assert tied.head.weight is tied.embedding.weight
    assert tied.head.weight.dtype == gg.float16


def test_to_same_place_moves_nothing() -> None:
    net = Net()
    arrays = [p.data for p in net.parameters()]
    net.to("cpu", gg.float32).cpu().to(gg.float32)
    assert all(p.data is a for p, a in zip(net.parameters(), arrays, strict=True))


def test_to_integers_is_refused() -> None:
    with pytest.raises(TypeError, match="floating"):
        Net().to(gg.int64)


def test_to_absent_gpu_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr(gg.backend, "cupy_or_reason", lambda: (None, "no CuPy here"))
    net = Net()
    with pytest.raises(RuntimeError, match="no CuPy here"):
        net.cuda()
    assert net.eval()(gg.ones(3)).tolist() == [7, 7, 7]


def test_deep_copy_is_independent() -> None:
    tied = Tied()
    copied = copy.deepcopy(tied)
    with gg.no_grad():
        copied.head.weight.zero_()
    assert copied.head.weight is copied.embedding.weight
    assert tied.head.weight.any()


def test_no_graph_memory_stays() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), gg.ones(2, 3)
    net(x).sum().backward()  # what is made once, on first use, is no graph memory
    net.zero_grad()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(30):
            net(x).sum().backward()
            net.zero_grad()
        assert len(gc.get_objects()) - before < 20
    finally:
        gc.enable()


# Printing


def test_repr_is_pytorch_s_tree() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.ModuleDict({"norm": nn.LayerNorm(3)}))
    assert repr(net) == "\n".join(
        [
            "Sequential(",
            "  (0): Linear(in_features=2, out_features=3, bias=True)",
            "  (1): ReLU()",
            "  (2): ModuleDict(",
            "    (norm): LayerNorm((3,), eps=1e-05, elementwise_affine=True)",
            "  )",
            ")",
        ]
    )


def test_repr_shows_own_arguments_first() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            self.inner = nn.Identity()

        def extra_repr(self) -> str:
            return "size=3"

    assert repr(Named()) == "Named(\n  size=3\n  (inner): Identity()\n)"
