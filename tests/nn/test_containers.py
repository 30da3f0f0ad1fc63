from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad import nn


def test_sequential_chains() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    x = gg.random.normal(size=(4, 2))
    assert net(x).tolist() == gg.relu(net[0](x)).tolist()
    assert nn.Sequential()(x) is x


def test_sequential_with_names() -> None:
    net = nn.Sequential({"up": nn.Linear(2, 3), "down": nn.Linear(3, 2)})
    assert list(net.state_dict()) == ["up.weight", "up.bias", "down.weight", "down.bias"]
    assert [name for name, _ in net[1:].named_children()] == ["down"]


def test_sequential_positions() -> None:
    first, second, third = nn.Tanh(), nn.ReLU(), nn.Identity()
    net = nn.Sequential(first).append(second).extend([third])
    assert len(net) == 3
    assert net[-1] is third
    assert list(net) == [first, second, third]
    assert list(net[:2]) == [first, second]
    net[0] = third
    assert list(net) == [third, second, third]
    with pytest.raises(IndexError, match="no module 3, there are 3"):
        net[3]


def test_append_replaces_nothing() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh())
    part = net[1:].append(nn.Identity())
    assert [type(module) for module in part] == [nn.ReLU, nn.Tanh, nn.Identity]
    assert [name for name, _ in part.named_children()] == ["1", "2", "3"]
    named = nn.Sequential({"1": nn.ReLU(), "3": nn.Tanh()}).extend([nn.ReLU(), nn.ReLU()])
    assert [name for name, _ in named.named_children()] == ["1", "3", "2", "4"]


def test_attributes_of_a_subclass_are_found_too() -> None:
    class Head(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(2, 2))
            self.scale = nn.Linear(1, 1)

    assert [name for name, _ in Head().named_children()] == ["scale", "0"]


def test_module_list() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    layers.append(nn.Identity())
    assert len(layers) == 4
    assert isinstance(layers[1:], nn.ModuleList)
    assert next(iter(layers[1:])) is layers[1]
    assert len(list(layers.parameters())) == 6
    assert list(layers.state_dict())[2] == "1.weight"
    with pytest.raises(NotImplementedError, match="ModuleList"):
        layers(gg.ones(2))


def test_module_list_repr_counts_equal_neighbours() -> None:
    layers = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.Tanh(), nn.ReLU()])
    expected = "ModuleList(\n  (0-1): 2 x ReLU()\n  (2): Tanh()\n  (3): ReLU()\n)"
    assert repr(layers) == expected


def test_module_dict() -> None:
    parts = nn.ModuleDict({"a": nn.Linear(1, 2)})
    parts["b"] = nn.Tanh()
    parts.update([("c", nn.ReLU())])
    assert list(parts) == list(parts.keys()) == ["a", "b", "c"]
    assert [type(m).__name__ for m in parts.values()] == ["Linear", "Tanh", "ReLU"]
    assert "b" in parts
    del parts["b"]
    assert [name for name, _ in parts.items()] == ["a", "c"]
    assert len(parts) == 2
    assert list(parts.state_dict()) == ["a.weight", "a.bias"]
    with pytest.raises(KeyError, match="no module 'z', there are a, c"):
        parts["z"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.ReLU(), len),
        lambda: nn.ModuleList([3]),
        lambda: nn.ModuleDict({"a": None}),
    ],
    ids=["Sequential", "ModuleList", "ModuleDict"],
)
def test_only_modules_are_held(build) -> None:
    with pytest.raises(TypeError, match="must be a Module, got"):
        build()


@pytest.mark.parametrize("name", ["a.b", "", 3])
def test_names_have_no_dots(name) -> None:
    with pytest.raises(ValueError, match="a name is a string without dots"):
        nn.ModuleDict({name: nn.ReLU()})
