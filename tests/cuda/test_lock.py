"""Every kernel compiles for GPUs where there is none, and takes no more than the lock says."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import pytest

from gpugrad import cuda
from gpugrad.cuda import lock, source
from gpugrad.cuda.compiler import Resources
from gpugrad.cuda.kernel import Source

CHECKED = ("sm_80", "sm_90a")
for name in lock.DECLARING:
    importlib.import_module(name)
SHIPPED = [s for s in cuda.SOURCES.values() if s.path.parent == source.folder()]
JOBS = [
    pytest.param(s, variant, arch, id=f"{s.name}-{lock.label(variant)}-{arch}")
    for s in SHIPPED
    for variant in s.variants
    for arch in CHECKED
    if lock.supports(s, arch)
]


def test_every_file_is_declared():
    assert {s.name for s in SHIPPED} == {path.name for path in source.folder().glob("*.cu")}


def test_kernels_take_arrays_of_any_size():
    assert [s.name for s in SHIPPED if not s.large] == ["sort_ids.cu"]


@pytest.mark.parametrize(("found", "variant", "arch"), JOBS)
def test_no_kernel_grows(found: Source, variant: Mapping[str, object], arch: str):
    measured = lock.measure(found, variant, arch)
    assert {row.kernel for row in measured} == set(source.signatures(found.text))
    version, locked = lock.read(source.folder())
    assert not lock.growth(locked, measured, version == lock.nvrtc_version())


def test_the_lock_has_no_row_too_many():
    _, locked = lock.read(source.folder())
    expected = {
        (s.name, lock.label(variant), arch, kernel)
        for s in SHIPPED
        for variant in s.variants
        for arch in lock.ARCHITECTURES
        if lock.supports(s, arch)
        for kernel in source.signatures(s.text)
    }
    assert {tuple(row) for row in locked} == expected


ROW = lock.Row("a.cu", "-", "sm_90a", "a")


@pytest.mark.parametrize(
    ("now", "same_version", "complaint"),
    [
        (Resources(32, 0, 0, 128), True, None),
        (Resources(31, 0, 0, 0), True, None),
        (Resources(33, 0, 0, 128), True, "a.cu - sm_90a a: registers grew from 32 to 33"),
        (Resources(33, 0, 0, 128), False, None),
        (Resources(32, 4, 0, 128), False, "a.cu - sm_90a a: spill_bytes grew from 0 to 4"),
        (Resources(32, 0, 0, 132), True, "a.cu - sm_90a a: shared_bytes grew from 128 to 132"),
    ],
)
def test_growth(now, same_version, complaint):
    locked = {ROW: Resources(32, 0, 0, 128)}
    found = lock.growth(locked, {ROW: now}, same_version)
    assert found == ([] if complaint is None else [complaint])


def test_a_kernel_without_a_row():
    assert lock.growth({}, {ROW: Resources(1, 0, 0, 0)}, True) == [
        "a.cu - sm_90a a: not in the lock"
    ]


OWN = 'extern "C" __global__ void own(float* x) {{ x[threadIdx.x] *= {factor}; }}\n'


def test_a_lock_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda.kernel, "SOURCES", own := {})
    monkeypatch.setattr(lock, "SOURCES", own)
    monkeypatch.setattr(lock, "ARCHITECTURES", ("sm_80",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.cu").write_text(OWN.format(factor="2.0f"))
    module = f"from gpugrad import cuda\ncuda.Source({str(tmp_path / 'own.cu')!r})\n"
    (tmp_path / "declares_own.py").write_text(module)
    assert lock.main(["declares_own"]) == 0
    assert "1 kernels" in capsys.readouterr().out
    version, rows = lock.read(tmp_path)
    assert version == lock.nvrtc_version()
    assert [tuple(row) for row in rows] == [("own.cu", "-", "sm_80", "own")]
    assert lock.main(["--check", "declares_own"]) == 0
    (tmp_path / "own.cu").write_text(OWN.format(factor="x[x[0] > 0] + x[1] * x[2] * x[3]"))
    own["own.cu"] = cuda.Source(tmp_path / "own.cu")
    assert lock.main(["--check", "declares_own"]) == 1
    assert "own.cu - sm_80 own: registers grew from" in capsys.readouterr().err


def test_a_missing_lock_says_how_to_write_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m gpugrad\.cuda\.lock"):
        lock.read(tmp_path)


def test_without_a_compiler_one_line_says_what_is_missing(monkeypatch, capsys):
    def missing() -> None:
        raise RuntimeError("compiling CUDA kernels needs CuPy and NVRTC")

    monkeypatch.setattr(lock, "compile_cubin", lambda *args: missing())
    assert lock.main(["--check"]) == 2
    assert capsys.readouterr().err.startswith("kernels.lock: compiling CUDA kernels needs")


def test_a_source_can_be_for_some_gpus_only():
    source = Source("x.cu", since=80, until=90, text="")
    meant = [arch for arch in lock.ARCHITECTURES if lock.supports(source, arch)]
    assert meant == ["sm_80", "sm_90a"]
