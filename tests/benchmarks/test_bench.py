"""`gpugrad bench`: cases, floors, rows, comparisons, pictures, and what it refuses."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import math
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import adamw
import bench
import harness
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cli, cuda, emulator
from gpugrad.cuda.source import shipped
from gpugrad.fused import FUSED
from gpugrad.registry import Sample

PEAK = bench.Peaks(1e9, 1e12)
TORCH = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
FILES = {"attention_backward": "attention", "attention_forward": "attention"}
FILES |= {"attention_backward_sm90": "attention", "attention_forward_sm90": "attention"}
FILES |= {"sort_ids": "embedding"}  # for the gradient
FILES |= {"extremes": "anomaly"}
FILES |= {"random": "random_fills", "copy": "copies"}  # Python has modules of these names


def all_cases() -> list[Any]:
    return [case for name in bench.names() for case in bench.cases(name)]


def less(size: Any) -> Any:
    """Return a smaller size, shape or argument; what was in proportion still is."""
    if isinstance(size, bench.Ids):
        return bench.Ids(less(size.shape), less(size.below))
    if isinstance(size, bench.Weights):
        return bench.Weights(less(size.shape))
    if isinstance(size, adamw.Parameters):
        return adamw.Parameters(1, 8, 16, 4)
    if isinstance(size, tuple):
        return tuple(map(less, size))
    return size // 16 if isinstance(size, int) and size >= 32 else size


def small(case: Any) -> Any:
    """Return a case at a small size on the CPU."""
    if isinstance(case, bench.Work):
        return replace(case, cpu_size=less(case.cpu_size))
    sample = case.at("cpu")
    return replace(case, cpu_sample=Sample(*map(less, sample.arguments), **sample.statics))


def measured(case: Any, dtype: str = "float32", **more: Any) -> dict[tuple[str, str], dict]:
    rows = list(bench.measure(case, dtype, "cpu", PEAK, rounds=1, **more))
    return {(row["implementation"], row["direction"]): row for row in rows}


# Cases


@pytest.mark.parametrize("name", bench.names())
def test_every_file_names_operations_and_sizes_that_exist(name: str) -> None:
    for case in bench.cases(name):
        for device in ("cpu", "cuda"):
            assert case.title(device)
        if isinstance(case, bench.Work):
            assert case.op not in FUSED
            continue
        op = FUSED[case.op]
        assert op.cost is not None
        assert case.torch is not None
        for device in ("cpu", "cuda"):
            arguments = case.at(device).arguments
            assert len(arguments) == len(op.arguments)
            # nothing is drawn before it is needed
            assert all(
                a is None or isinstance(a, (tuple, bench.Ids, bench.Weights)) for a in arguments
            )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_two_cases_have_the_same_title(device: str) -> None:
    titles = [(case.op, case.title(device)) for case in all_cases()]
    assert len(set(titles)) == len(titles)


def test_every_operation_with_kernels_has_a_benchmark() -> None:
    measured = {case.op for case in all_cases()}
    assert measured >= {name for name, op in FUSED.items() if "cuda" in op.implementations}


def test_every_kernel_has_a_file() -> None:
    kernels = {path.stem for path in shipped("kernels").glob("*.cu")}
    assert kernels
    files = {path.stem for path in bench.FOLDER.glob("*.py")}
    assert {FILES.get(stem, stem) for stem in kernels} <= files


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: f"{c.op} {c.title('cpu')}")
def test_every_case_can_be_measured_and_all_compute_the_same(case: Any) -> None:
    case = small(case)
    rows = measured(case, torch=TORCH)
    cost = case.build("cpu", "float32").cost
    if isinstance(case, bench.Case):
        for direction in bench.DIRECTIONS:
            assert (("numpy", direction) in rows) == _is_numpys(case)
            assert ("definition", direction) in rows
            assert (TORCH is None) == (("torch", direction) not in rows)
            assert rows["definition", direction]["agrees"]
    for (implementation, direction), row in rows.items():
        assert row["op"] == case.op
        assert row["us"] > 0
        assert row["first_call_ms"] > 0
        moved, computed = row["GB/s"] * row["us"] * 1e3, row["GFLOP/s"] * row["us"] * 1e3
        assert moved == pytest.approx(getattr(cost, f"{direction}_bytes"))
        assert moved > 0
        assert computed == pytest.approx(getattr(cost, f"{direction}_flops"))
        assert row["floor_us"] == pytest.approx(1e6 * PEAK.floor(moved, computed))
        assert row["percent_of_peak"] == pytest.approx(100 * row["floor_us"] / row["us"])
        assert row.get("agrees", True), (implementation, direction, row["difference"])


def _is_numpys(case: Any) -> bool:
    """Return whether NumPy has an implementation, and it takes a case of this size."""
    op, sample = FUSED[case.op], case.at("cpu")
    given = bench.inputs(op, sample, "float32", "cpu")
    arrays = [None if x is None else x.data for x in given]
    return op.choose(arrays, dict(sample.statics)) == "numpy"


@pytest.mark.parametrize("name", ["embedding", "rotary"])
def test_while_the_emulator_runs_the_kernels_are_measured(name: str) -> None:
    case = bench.Case(name, FUSED[name].samples[0])
    with emulator.enabled("plain"):
        rows = measured(case)
    assert ("cuda", "forward") in rows
    assert ("cuda", "backward") in rows
    assert rows["definition", "forward"]["agrees"]
    assert rows["definition", "backward"]["agrees"]


def test_kernels_are_timed_beside_others_of_the_same_operation(monkeypatch: Any) -> None:
    case = next(case for case in bench.cases("attention") if case.kernels)
    case = replace(case, cpu_sample=Sample(*[(1, 1, 8, 64)] * 3, None, **case.sample.statics))
    monkeypatch.setenv("GPUGRAD_ATTENTION", "wgmma")  # as on an H100
    before = cuda.launches.copy()
    with emulator.enabled("plain"):
        rows = measured(case, dtype="bfloat16")
    launched = (cuda.launches - before).keys()
    for way in bench.DIRECTIONS:
        assert ("cuda", way) in rows
        assert rows["cuda, mma.sync", way]["agrees"]
        assert rows["cuda, TMA", way]["agrees"]
        assert rows["definition", way]["agrees"]
        names = {name for name in launched if way in name}
        assert any("sm90" in name for name in names)
        assert any("sm90" not in name and "rows" not in name for name in names)


def test_while_the_emulator_runs_a_fused_function_is_one_kernel() -> None:
    (case,) = bench.cases("fuse")
    with emulator.enabled("plain"):
        rows = measured(replace(case, cpu_size=(3, 5)))
    kinds = {(name, way) for name in ("cuda", "definition") for way in bench.DIRECTIONS}
    assert set(rows) == kinds


def test_ids_are_integers_below_the_limit_and_always_the_same() -> None:
    ids = bench.Ids((50, 4), 7)
    drawn = ids.draw()
    assert drawn.dtype == np.int64
    assert drawn.shape == (50, 4)
    assert set(drawn.reshape(-1).tolist()) == set(range(7))
    assert (drawn == ids.draw()).all()


def test_cases_of_an_operation_come_from_the_file_that_has_them() -> None:
    found = bench.cases("log_softmax")
    assert found == [case for case in bench.cases("softmax") if case.op == "log_softmax"]
    assert found
    with pytest.raises(KeyError, match="nosuch"):
        bench.cases("nosuch")


def test_gpt2_has_its_parameters() -> None:
    assert sum(math.prod(shape) for shape in adamw.GPT2.shapes()) == 124_439_808


@pytest.mark.parametrize(
    ("dtype", "per_parameter"), [("float32", (28, 20)), ("bfloat16", (30, 22))]
)
def test_a_master_copy_counts(dtype: str, per_parameter: tuple[int, int]) -> None:
    count = sum(math.prod(shape) for shape in less(adamw.SMALL).shapes())
    for name, size in zip(("adamw", "sgd"), per_parameter, strict=True):
        (case,) = bench.cases(name)
        assert small(case).build("cpu", dtype).cost.forward_bytes == size * count


@pytest.mark.parametrize(("label", "falls"), [("norm", False), ("clipped", True)])
def test_clipping_is_measured_where_every_call_clips(label: str, falls: bool) -> None:
    (case,) = (case for case in bench.cases("grad_norm") if case.label == label)
    for make in small(case).build("cpu", "float32").makers.values():
        (call,) = make()
        norms = [call.run() for _ in range(4)]
        assert (norms == sorted(set(norms), reverse=True)) == falls, norms


# Rows


def test_the_floor_is_what_takes_longer() -> None:
    assert PEAK.floor(2_000_000_000, 10) == 2
    assert PEAK.floor(10, 3_000_000_000_000) == 3


def test_peaks_count_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def compare(variants: dict[str, Any], rounds: int) -> dict[str, harness.Timing]:
        for name, run in variants.items():
            run()
            ran.append(name)
        return {"copy": harness.Timing((2.0,)), "matmul": harness.Timing((4.0,))}

    monkeypatch.setattr(harness, "compare", compare)
    assert bench.peaks("cpu", "float32", n=10) == bench.Peaks(2**27, 2 * 10**3 / 4)
    assert ran == ["copy", "matmul"]


def work(makers: Any, cost: Any = None) -> bench.Work:
    """Return a case that runs these functions."""
    built = bench.Built(cost, makers)
    return bench.Work("work", (3,), (2,), lambda size, device, dtype, torch: built)


def test_what_needs_too_much_memory_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def too_large() -> Any:
        yield bench.Call("forward", lambda: None)
        raise MemoryError("99 GB")

    def fits() -> Any:
        yield from (bench.Call(direction, lambda: None) for direction in bench.DIRECTIONS)

    rows = measured(work({"large": too_large, "small": fits}))
    assert set(rows) == {("large", "forward"), ("small", "forward"), ("small", "backward")}
    assert "work 2: large is left out, 99 GB" in capsys.readouterr().err


def test_the_graph_is_recorded_for_the_backward_pass_alone() -> None:
    x, seen = gg.tensor([1.0], requires_grad=True), set()

    def calls() -> Any:
        for direction in bench.DIRECTIONS:
            yield bench.Call(direction, lambda d=direction: seen.add((d, (x * x).requires_grad)))

    measured(work({"numpy": calls}))
    assert seen == {("forward", False), ("backward", True)}


def test_numbers_that_json_does_not_know_are_left_out() -> None:
    odd = bench.Call("forward", lambda: None, difference=math.inf)
    (row,) = measured(work({"numpy": lambda: [odd]}, gg.Cost(0, 5))).values()
    assert row["flops_per_byte"] is None
    assert row["difference"] is None
    assert row["agrees"] is False
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("found", "distance"),
    [([3.0, 4.0], 0.0), ([3.0, 4.5], 0.1), ([3.0, math.nan], math.inf), ([3.0], math.inf)],
    ids=["equal", "off", "NaN", "another shape"],
)
def test_difference(found: list[float], distance: float) -> None:
    expected = [np.zeros(2), np.array([3.0, 4.0])]
    assert bench.difference([np.zeros(2), np.array(found)], expected) == pytest.approx(distance)


def test_an_implementation_that_computes_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = FUSED["rms_norm"]
    right = op.implementations["numpy"]

    def forward(*arrays: Any, **statics: Any) -> Any:
        out, kept = right.forward(*arrays, **statics)
        return out * np.float32(1.001), kept

    monkeypatch.setitem(op.implementations, "numpy", right._replace(forward=forward))
    rows = measured(bench.Case("rms_norm", op.samples[0]))
    assert rows["definition", "forward"]["difference"] == pytest.approx(1e-3, rel=0.1)
    assert not rows["definition", "forward"]["agrees"]
    assert rows["definition", "backward"]["agrees"]


def test_ratios_hold_others_against_the_fast_path() -> None:
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


# PyTorch


class StandIn:
    """A tensor with the methods of PyTorch's that are called, on one of gpugrad's."""

    device = types.SimpleNamespace(type="cpu")

    def __init__(self, tensor: gg.Tensor) -> None:
        self.tensor = tensor
        self.dtype = tensor.dtype

    def clone(self) -> StandIn:
        return StandIn(gg.tensor(self.tensor.data.copy()))

    def requires_grad_(self) -> StandIn:
        self.tensor = gg.tensor(self.tensor.data, requires_grad=True)
        return self

    def detach(self) -> StandIn:
        return self

    contiguous = detach

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.tensor.data.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.tensor.data.__dlpack_device__()


def stand_in_for_torch() -> types.ModuleType:
    def grad(outs: Any, leaves: Any, seeds: Any, retain_graph: bool) -> list[StandIn]:
        unwrapped = ([x.tensor for x in group] for group in (outs, leaves, seeds))
        return [StandIn(g) for g in gg.grad(*unwrapped, retain_graph=retain_graph)]

    torch = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.__dict__.update(
        from_dlpack=lambda array: StandIn(gg.tensor(array)),
        no_grad=contextlib.nullcontext,
        autograd=types.SimpleNamespace(grad=grad),
        bfloat16=None,
        OutOfMemoryError=MemoryError,
    )
    return torch


def rms_norm_times(factor: float) -> bench.Case:
    def torch(module: Any, x: Any, weight: Any, residual: Any, eps: float) -> StandIn:
        out = gg.nn.functional.rms_norm(x.tensor, x.tensor.shape[-1:], weight.tensor, eps)
        return StandIn(out * factor)

    return bench.Case("rms_norm", Sample((5, 8), (8,), None, eps=1e-6), torch=torch)


def test_pytorch_is_given_the_same_and_compared() -> None:
    rows = measured(rms_norm_times(1.0), torch=stand_in_for_torch())
    for direction in bench.DIRECTIONS:
        assert rows["torch", direction]["us"] > 0
        assert rows["torch", direction]["agrees"]


def test_another_result_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in_for_torch())
    monkeypatch.setattr(bench, "cases", lambda name: [rms_norm_times(1.01)])
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    assert bench.main(["rms_norm", "--rounds", "1", "--compare", "torch"]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if "torch computes something else, by 0.0" in line]
    assert [line.split(":")[0].split()[-1] for line in wrong] == ["forward", "backward"]


# The command line


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command with one small case and without measuring the machine."""
    tiny = [bench.Case("layer_norm", Sample((3, 4), (4,), (4,), None, eps=1e-5))]
    monkeypatch.setattr(bench, "cases", lambda name: tiny)
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    return cli.main(["bench", "layer_norm", "--rounds", "2", *arguments])


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert run(monkeypatch, "--json", str(out), "--cold") == 0
    printed = capsys.readouterr().out
    assert "No GPU" in printed
    assert "definition_takes" in printed
    record = json.loads(out.read_text())
    assert {row["implementation"] for row in record["rows"]} == {"numpy", "definition"}
    peaks = {"float32": {"bytes_per_second": 1e9, "flops_per_second": 1e12}}
    assert record["settings"] == {"rounds": 2, "cold": True, "peaks": peaks}


def test_several_dtypes_have_pictures_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        bench, "roofline", lambda rows, peak, path: drawn.append((rows[0]["dtype"], path.name))
    )
    plot = ["--plot", str(tmp_path / "roof.png")]
    assert run(monkeypatch, *plot) == 0
    assert run(monkeypatch, *plot, "--dtype", "float32", "--dtype", "bfloat16") == 0
    assert drawn == [
        ("float32", "roof.png"),
        ("float32", "roof_float32.png"),
        ("bfloat16", "roof_bfloat16.png"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "nothing named 'nosuch'; there are adamw, affine"),
        (["--rounds", "0"], "--rounds must be positive"),
        (["--compare", "jax"], "invalid choice"),
        (["--compare", "torch"], 'needs PyTorch: pip install "gpugrad[bench]"'),
    ],
)
def test_what_it_refuses(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


OWN = """import gpugrad as gg
def forward(source, x): raise AssertionError
@gg.kernel('own.cu', samples=[gg.Sample((3,))], forward=forward,
           cost=lambda x: gg.Cost(8 * x.size, x.size, 12 * x.size, x.size))
def bench_own(x): return x * 2
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a module with an operation into the current folder; return its name."""
    (tmp_path / "bench_own_module.py").write_text(OWN)
    (tmp_path / "own.cu").write_text('extern "C" __global__ void own(float* x) {}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path)])  # as the console script has it
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    yield "bench_own_module"
    FUSED.pop("bench_own", None)
    sys.modules.pop("bench_own_module", None)


@pytest.mark.parametrize("names", [["bench_own"], []])
def test_operations_of_ones_own(
    names: list[str], own_module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--module", own_module, *names, "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    rows = printed[printed.index("\nop ") :].splitlines()[2:]
    assert {row.split()[0] for row in rows} == {"bench_own"}


def test_no_operation_by_that_name_but_in_the_module(
    own_module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--module", own_module, "bench_mine"])
    assert "sgd, softmax, bench_own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--module", "bench_nowhere"], "--module bench_nowhere: there is no module of this name"),
        (["--module", "own/module.py"], "--module own/module.py: there is no module of this name"),
        (["--module", "softmax", "mine"], "--module softmax: a benchmark here has this name"),
        (["--module", "json"], "--module json: no operation of gg.kernel there"),
        (["gelu", "--json", "."], ". is a folder"),
        (["gelu", "--plot", "."], ". is a folder"),
    ],
)
def test_what_it_refuses_before_it_measures(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: pytest.fail("measured"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["import bench_mine", "raise RuntimeError('wrong')", "raise ValueError('wrong')"]
)
def test_what_goes_wrong_in_a_module_shows_its_place(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench_mine_too.py").write_text(f"\n{line}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path)])
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--module", "bench_mine_too"])
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert 'bench_mine_too.py", line 2' in printed
    assert "usage" not in printed


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_file_in_no_folder_is_refused_before_it_measures(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(bench, "measure", lambda *given: pytest.fail("measured"))
    assert run(monkeypatch, flag, str(tmp_path / "file" / "x")) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError("a kernel")])
def test_what_was_measured_before_the_end_is_shown(
    end: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*given: Any) -> Iterator[dict[str, Any]]:
        keys = ("op", "case", "dtype", "direction")
        yield {**dict.fromkeys(keys, "here"), "implementation": "numpy", "us": 12.5}
        raise end

    monkeypatch.setattr(bench, "measure", measure)
    assert run(monkeypatch) == (130 if end is KeyboardInterrupt else 1)
    printed = capsys.readouterr()
    assert "numpy           12.5" in printed.out
    assert ("in measure\n    raise end" in printed.err) is isinstance(end, ValueError)


# The picture


class Recorder:
    """Anything: remembers how its methods were called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **keywords: self.calls.append((name, args, keywords))

    def named(self, name: str) -> list[tuple[tuple, dict]]:
        return [(args, keywords) for called, args, keywords in self.calls if called == name]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Put a stand-in in the place of Matplotlib."""
    axes, figure, pyplot = Recorder(), Recorder(), types.ModuleType("matplotlib.pyplot")
    pyplot.__dict__.update(
        switch_backend=lambda name: None,
        subplots=lambda figsize: (figure, axes),
        close=lambda given: axes.calls.append(("closed", (given is figure,), {})),
    )
    axes.figure = figure
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    return axes


def point(implementation: str, intensity: float | None, speed: float) -> dict[str, Any]:
    return {"implementation": implementation, "flops_per_byte": intensity, "GFLOP/s": speed}


def test_the_picture_has_the_roof_and_a_point_for_each_row(axes: Recorder, tmp_path: Path) -> None:
    rows = [
        point("cuda", 0.5, 3.0),
        point("torch", 0.5, 1.0),
        point("cuda", 40.0, 20.0),
        point("cuda", 0.0, 0.0),  # no floating operations
        point("definition", None, 5.0),  # no bytes
    ]
    bench.roofline(rows, PEAK, tmp_path / "roof.png")
    (((x, roof, _), _), *points) = axes.named("loglog")
    assert x[0] < 1 < PEAK.flops_per_second / PEAK.bytes_per_second < x[-1]
    assert roof == pytest.approx(np.minimum(x, 1e3))  # GFLOP/s: 1 GB/s up to the ridge, 1 TFLOP/s
    assert {keywords["label"]: args[:2] for args, keywords in points} == {
        "cuda": ([0.5, 40.0], [3.0, 20.0]),
        "torch": ([0.5], [1.0]),
    }
    assert axes.figure.named("savefig")[0][0] == (tmp_path / "roof.png",)
    assert axes.named("closed") == [((True,), {})]


def test_without_matplotlib_the_picture_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(SystemExit, match=r"gpugrad\[plot\]"):
        bench.roofline([], PEAK, tmp_path / "a.png")


def test_the_emulator_is_never_timed(monkeypatch, capsys):
    monkeypatch.setenv("GPUGRAD_EMULATE", "plain")
    small = [bench.Case("layer_norm", Sample((3, 4), (4,), (4,), None, eps=1e-5))]
    monkeypatch.setattr(bench, "cases", lambda name: small)
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    before = FUSED["layer_norm"].launches["cuda"]
    assert cli.main(["bench", "layer_norm", "--rounds", "2"]) == 0
    assert FUSED["layer_norm"].launches["cuda"] == before
    assert "numpy" in capsys.readouterr().out
