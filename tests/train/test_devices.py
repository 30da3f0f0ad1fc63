"""Data sheets of GPUs: found by short names and by those of drivers."""

from __future__ import annotations

import pytest

from gpugrad.train.devices import DEVICES, by_driver, device

DRIVERS = {
    "NVIDIA B200": "b200",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA A10": "a10",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-16GB": "v100-16gb",
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 3090": "rtx3090",
}
UNKNOWN = [
    "CPU",
    "NVIDIA L40",
    "NVIDIA A10G",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "Quadro P400",
    "",
]


@pytest.mark.parametrize(("driver", "name"), DRIVERS.items())
def test_names_of_drivers(driver, name):
    found = by_driver(driver)
    assert found is not None
    assert found.name == name
    assert device(driver) == found


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_no_guess(name):
    assert by_driver(name) is None
    with pytest.raises(ValueError, match="known are b200, h200-nvl"):
        device(name)


def test_every_device_is_found_by_its_own_name():
    assert {d.name for d in DEVICES} == set(DRIVERS.values())
    for d in DEVICES:
        assert device(d.name) is d
    assert device("H200") is device("h200")
    assert device("RTX 4090") is device("rtx-4090") is device("rtx4090")
    assert device("H100_PCIe").name == "h100-pcie"


def test_half_a_name_lists_what_it_could_be():
    with pytest.raises(ValueError, match="'a100' could be a100-80gb-pcie or a100-80gb or a100-40"):
        device("a100")


@pytest.mark.parametrize("found", DEVICES, ids=lambda d: d.name)
def test_figures_go_together(found):
    """A slip of a factor of a thousand, or figures with sparsity, would not."""
    assert 16e9 <= found.memory <= 180e9
    assert found.memory / found.bandwidth < 0.09  # seconds to read all of it
    half, single = found.flops("float16"), found.flops("float32")
    assert 1.9 <= half / single <= 30
    assert 65e12 <= half <= 2250e12
    assert ("bfloat16" in found.rates) == (found.capability >= 80)
    assert 30 <= half / found.bandwidth <= 420  # operations for each byte


def test_the_h200():
    found = device("h200")
    assert (found.memory, found.bandwidth, found.capability) == (141e9, 4.8e12, 90)
    assert found.flops("bfloat16") == found.flops("float16") == 989.5e12


def test_a_dtype_without_a_rate():
    with pytest.raises(ValueError, match=r"t4: there is no rate for bfloat16.*only for float16"):
        device("t4").flops("bfloat16")
