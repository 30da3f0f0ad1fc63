"""`gpugrad bench`: floors, rows, pictures, and what it refuses."""

from __future__ import annotations

import json
import sys

import bench
import pytest

from gpugrad import cli
from gpugrad.fused import FUSED
from gpugrad.registry import Sample

PEAK = bench.Peaks(1e9, 1e12)


@pytest.mark.parametrize("name", bench.names())
def test_every_file_names_operations_and_sizes_that_exist(name):
    for case in bench.cases(name):
        op = FUSED[case.op]
        assert op.cost is not None
        for device in ("cpu", "cuda"):
            assert len(case.at(device).arguments) == len(op.arguments)
            assert case.title(device)


def test_every_operation_with_kernels_has_a_benchmark():
    measured = {case.op for name in bench.names() for case in bench.cases(name)}
    assert measured >= {name for name, op in FUSED.items() if "cuda" in op.implementations}


def tiny(case: bench.Case) -> bench.Case:
    """Return the case at the first of its operation's samples."""
    return bench.Case(case.op, FUSED[case.op].samples[0], label="tiny")


@pytest.mark.parametrize("name", bench.names())
def test_every_file_can_be_measured(name):
    op = bench.cases(name)[0].op
    rows = list(bench.measure(tiny(bench.cases(name)[0]), "float32", "cpu", PEAK, rounds=2))
    assert {(row["implementation"], row["direction"]) for row in rows} >= {
        ("definition", "forward"),
        ("definition", "backward"),
    }
    for row in rows:
        assert row["op"] == op
        assert row["us"] > 0
        moved, computed = row["GB/s"] * row["us"] * 1e3, row["GFLOP/s"] * row["us"] * 1e3
        assert moved > 0
        assert row["floor_us"] == pytest.approx(1e6 * PEAK.floor(moved, computed))


def test_the_floor_is_what_takes_longer():
    assert PEAK.floor(2_000_000_000, 10) == 2
    assert PEAK.floor(10, 3_000_000_000_000) == 3


def test_ratios_hold_others_against_the_fast_path():
    rows = [
        {"op": "a", "case": "c", "dtype": "float32", "direction": "forward", **more}
        for more in (
            {"implementation": "numpy", "us": 2.0, "percent_of_peak": 50.0},
            {"implementation": "definition", "us": 5.0},
        )
    ]
    (line,) = bench.ratios(rows)
    assert line["implementation"] == "numpy"
    assert line["definition_takes"] == 2.5
    assert line["percent_of_peak"] == 50


def test_the_command_line(tmp_path, monkeypatch, capsys):
    small = [bench.Case("layer_norm", Sample((3, 4), (4,), (4,), None, eps=1e-5))]
    monkeypatch.setattr(bench, "cases", lambda name: small)
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    out = tmp_path / "bench.json"
    assert cli.main(["bench", "layer_norm", "--rounds", "2", "--json", str(out), "--cold"]) == 0
    printed = capsys.readouterr().out
    assert "No GPU" in printed
    assert "definition_takes" in printed
    record = json.loads(out.read_text())
    assert {row["implementation"] for row in record["rows"]} == {"numpy", "definition"}
    assert record["settings"] == {"cold": True}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "nothing named 'nosuch'; there are"),
        (["--rounds", "0"], "--rounds must be positive"),
        (["--compare", "jax"], "invalid choice"),
    ],
)
def test_what_it_refuses(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_an_operation_of_ones_own(tmp_path, monkeypatch, capsys):
    module = (
        "import gpugrad as gg\n"
        "def forward(source, x): raise AssertionError\n"
        "@gg.kernel('own.cu', samples=[gg.Sample((3,))], forward=forward,\n"
        "           cost=lambda x: gg.Cost(8 * x.size, x.size, 12 * x.size, x.size))\n"
        "def bench_own(x): return x * 2\n"
    )
    (tmp_path / "bench_own_module.py").write_text(module)
    (tmp_path / "own.cu").write_text('extern "C" __global__ void own(float* x) {}')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    arguments = ["bench", "--module", "bench_own_module", "bench_own", "--rounds", "2"]
    try:
        assert cli.main(arguments) == 0
    finally:
        FUSED.pop("bench_own", None)
    assert "bench_own" in capsys.readouterr().out


def test_without_matplotlib_the_picture_is_refused_with_advice(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(SystemExit, match=r"gpugrad\[plot\]"):
        bench.roofline([], PEAK, tmp_path / "a.png")
