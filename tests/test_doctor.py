"""The doctor: what it finds on this machine, and on others that are imitated."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpugrad import backend, doctor, tensor
from gpugrad.cli import main
from gpugrad.cuda import compiler
from gpugrad.doctor import check, cpu, cuda
from gpugrad.doctor.check import FAILED, MISSING, OK, Check
from gpugrad.doctor.cuda import Driver

NAMES = ["Python", "NumPy", "gradient", "ml_dtypes", "safetensors", "tqdm", "driver", "device"]
NAMES += ["CuPy", "NVRTC", "CUDA headers", "cublasLt", "GPU arrays", "g++", "kernel cache"]
NAMES += ["tokenizers", "PyYAML"]
NAMES += ["matplotlib"]
NO_GPU = Driver(Check("driver", MISSING, "none"))
ONE_GPU = Driver(Check("driver", OK, "for CUDA 13.0"), 13000, ("NVIDIA H200",))


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.examine()


def test_the_cpu_works_here(report):
    assert [entry.name for entry in report.checks] == NAMES
    assert [entry.status for entry in report.checks[:6]] == [OK] * 6
    assert report.cpu
    assert report.cuda == backend.cuda_is_available()


def test_what_is_missing_has_a_line_that_installs_it(report):
    for entry in report.checks:
        assert entry.status in (OK, MISSING, FAILED)
        assert entry.detail
        assert not entry.fix or entry.status != OK


def test_text_and_json_say_the_same(report):
    lines = report.to_text().splitlines()
    found = json.loads(report.to_json())
    assert found["checks"] == [entry._asdict() for entry in report.checks]
    for entry in report.checks:
        assert any(line.startswith(entry.status) and entry.name in line for line in lines)
        assert not entry.fix or any(line.endswith(f"-> {entry.fix}") for line in lines)
    assert lines[-1].startswith("CPU: works")


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_exit_status_is_that_of_the_cpu(monkeypatch, capsys, works, flags):
    report = doctor.Report([Check("NumPy", OK if works else FAILED, "2")], works, False)
    monkeypatch.setattr("gpugrad.doctor.examine", lambda: report)
    assert main(["doctor", *flags]) == (0 if works else 1)
    out = capsys.readouterr().out
    assert json.loads(out)["cpu"] is works if flags else "NumPy" in out


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setattr(cpu, "tensor", lambda data, **options: tensor([[1.0, 2.0]] * 2, **options))
    found = cpu.check_gradient()
    assert (found.status, found.fix) == (FAILED, check.install())
    assert "[[5.0, 5.0], [7.0, 7.0]]" in found.detail


def test_an_error_is_a_finding():
    def broken():
        raise OSError("libgfortran.so.5 is missing")

    assert check.attempt("NumPy", broken) == Check(
        "NumPy", FAILED, "OSError: libgfortran.so.5 is missing"
    )


class FakeDistribution:
    def __init__(self, direct):
        self.direct = direct

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.direct


@pytest.mark.parametrize(
    ("direct", "wanted"),
    [
        (None, ["gpugrad[cuda13]"]),
        ('{"url": "file:///a%20b/c", "dir_info": {"editable": true}}', ["-e", "/a b/c[cuda13]"]),
        ('{"url": "file:///a/c", "dir_info": {}}', ["/a/c[cuda13]"]),
        (
            '{"url": "https://host/x.git", "vcs_info": {"vcs": "git"}}',
            ["gpugrad[cuda13] @ git+https://host/x.git"],
        ),
        (
            '{"url": "https://host/x.whl", "archive_info": {}}',
            ["gpugrad[cuda13] @ https://host/x.whl"],
        ),
    ],
    ids=["index", "editable", "folder", "git", "archive"],
)
def test_the_install_line_repeats_how_gpugrad_was_installed(monkeypatch, direct, wanted):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: FakeDistribution(direct))
    line = shlex.split(check.install("cuda13"))
    assert line == [sys.executable, "-m", "pip", "install", *wanted]


def test_the_install_line_of_a_bare_checkout(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert check.install().endswith("-m pip install gpugrad")


@pytest.mark.parametrize(
    ("version", "extra"), [(0, "cuda13"), (12040, "cuda12"), (13000, "cuda13"), (14010, "cuda13")]
)
def test_the_extra_follows_the_driver(version, extra):
    assert Driver(Check("driver", OK, ""), version).extra == extra


def fake_cupy(monkeypatch, installed, module=None, reason=""):
    """Imitate CuPy distributions and what importing cupy comes to."""
    monkeypatch.setattr(cuda, "version", lambda name: installed.get(name, ""))
    monkeypatch.setattr(backend, "cupy_or_reason", lambda: (module, reason))
    if module is None:
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "cupy", module)


def test_cupy_is_missing(monkeypatch):
    fake_cupy(monkeypatch, {}, reason="CuPy is not installed")
    found = cuda.check_cupy(ONE_GPU)
    assert (found.status, found.fix) == (MISSING, check.install("cuda13"))
    assert cuda.check_nvrtc(ONE_GPU).status == MISSING


def test_cupy_twice(monkeypatch):
    fake_cupy(monkeypatch, {"cupy-cuda12x": "14.0", "cupy-cuda13x": "14.2"})
    found = cuda.check_cupy(ONE_GPU)
    assert found.status == FAILED
    assert "pip uninstall -y cupy-cuda13x cupy-cuda12x && " in found.fix


def test_cupy_cannot_be_imported(monkeypatch):
    fake_cupy(monkeypatch, {"cupy-cuda12x": "14.0"}, reason="libcublas is missing")
    found = cuda.check_cupy(ONE_GPU)
    assert found.status == FAILED
    assert "libcublas is missing" in found.detail
    assert found.fix.endswith(check.install("cuda13"))


def test_cupy_has_no_cache_folder(monkeypatch):
    reason = "CuPy is installed but cannot be imported: no; CUPY_CACHE_DIR names another"
    fake_cupy(monkeypatch, {"cupy-cuda12x": "14.0"}, reason=reason)
    found = cuda.check_cupy(NO_GPU)
    assert (found.status, found.fix) == (FAILED, "")  # installing it again would not help


@pytest.mark.parametrize(("driver", "status"), [(NO_GPU, OK), (ONE_GPU, FAILED)])
def test_cupy_sees_no_device(monkeypatch, driver, status):
    fake_cupy(monkeypatch, {"cupy-cuda13x": "14.2"}, reason="no device is visible")
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    assert cuda.check_cupy(driver).status == status


class FakeNVRTC:
    """NVRTC that compiles everything, or raises."""

    def __init__(self, error=None):
        self.error, self.programs, self.sources = error, 0, []

    def getVersion(self):
        return 13, 0

    def createProgram(self, source, name, headers, names):
        self.programs += 1
        self.sources.append(source)
        return self.programs

    def compileProgram(self, program, options):
        if self.error:
            raise self.error

    def destroyProgram(self, program):
        self.programs -= 1


@pytest.mark.parametrize("error", [None, RuntimeError("libnvrtc.so.13 is missing")], ids=str)
def test_nvrtc_and_headers(monkeypatch, tmp_path, error):
    binding = FakeNVRTC(error)
    cupy = SimpleNamespace(cuda=SimpleNamespace(nvrtc=binding), __version__="14.2")
    fake_cupy(monkeypatch, {"cupy-cuda13x": "14.2"}, cupy)
    (tmp_path / "half").mkdir()
    for folder, name in (("half", "cuda_fp16.h"), ("", "cuda_fp16.h"), ("", "cuda_bf16.h")):
        (tmp_path / folder / name).touch()
    folders = [tmp_path / "none", tmp_path / "half", tmp_path]
    monkeypatch.setattr(compiler, "include_folders", lambda: iter(folders))
    for found in (cuda.check_nvrtc(ONE_GPU), cuda.check_headers(ONE_GPU)):
        assert found.status == (FAILED if error else OK)
        assert found.fix == (check.install("cuda13") if error else "")
        assert error is None or str(error) in found.detail
    assert error or found.detail == str(tmp_path)
    assert binding.programs == 0
    assert ["cuda_fp16.h" in source for source in binding.sources] == [False, True]


class FakeArray:
    """An array of the imitated CuPy, which gets its products wrong by `error`."""

    def __init__(self, array, error):
        self.array, self.error = array, error

    T = property(lambda self: FakeArray(self.array.T, self.error))

    def __add__(self, other):
        return FakeArray(self.array + other.array, self.error)

    def __matmul__(self, other):
        if isinstance(self.error, Exception):
            raise self.error
        return FakeArray(self.array @ other.array + self.error, self.error)


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (0.0, OK, "are right"),
        (0.5, FAILED, "is wrong"),
        (OSError("libcublas.so.13 is missing"), FAILED, "OSError: libcublas.so.13 is missing"),
    ],
    ids=["right", "wrong", "no cuBLAS"],
)
def test_computing_on_the_gpu(monkeypatch, error, status, detail):
    cupy = SimpleNamespace(
        asarray=lambda array: FakeArray(array, error), asnumpy=lambda array: array.array
    )
    fake_cupy(monkeypatch, {"cupy-cuda13x": "14.2"}, cupy)
    found = cuda.check_computing(ONE_GPU)
    assert found.status == status
    assert detail in found.detail
    assert bool(found.fix) == isinstance(error, Exception)


def test_cublaslt(monkeypatch):
    def missing():
        raise RuntimeError("all of it") from OSError("libcublasLt.so.13 is missing")

    monkeypatch.setattr(cuda.cublaslt, "library", missing)
    found = cuda.check_cublaslt(ONE_GPU)
    assert (found.status, found.detail) == (MISSING, "libcublasLt.so.13 is missing")
    assert "[cuda13]" in found.fix
    there = SimpleNamespace(version=130100, path="/here/libcublasLt.so.13")
    monkeypatch.setattr(cuda.cublaslt, "library", lambda: there)
    found = cuda.check_cublaslt(ONE_GPU)
    assert (found.status, found.detail) == (OK, "130100 (/here/libcublasLt.so.13)")


def test_headers_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "include_folders", lambda: iter([tmp_path]))
    found = cuda.check_headers(ONE_GPU)
    assert (found.status, found.fix) == (MISSING, check.install("cuda13"))
    compiler.include_folder.cache_clear()
    with pytest.raises(RuntimeError, match="or /usr/local/cuda; pip install") as caught:
        compiler.include_folder()
    assert str(caught.value).startswith(found.detail)


def test_headers_are_looked_for_in_wheels_and_toolkits(monkeypatch, tmp_path):
    (tmp_path / "cuda_runtime" / "include").mkdir(parents=True)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    wheel = tmp_path / "cuda_runtime" / "include"
    toolkits = [tmp_path / "home" / "include", tmp_path / "path" / "include"]
    system = Path("/usr/local/cuda/include")
    assert list(compiler.include_folders()) == [wheel, *toolkits, system]
    asked = SimpleNamespace(find_nvidia_header_directory=lambda name: f"/found/{name}")
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", asked)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("CUDA_PATH", "")
    assert list(compiler.include_folders()) == [Path("/found/cudart"), wheel, system]


class FakeLibrary:
    """The driver's library: `code` is what cuInit returns."""

    def __init__(self, version, code=0, count=1):
        self.version, self.code, self.count = version, code, count

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self.version

    def cuInit(self, flags):
        return self.code

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.count
        return 0

    def cuGetErrorName(self, code, pointer):
        pointer._obj.value = b"CUDA_ERROR_NO_DEVICE" if code == 100 else None

    def cuDeviceGet(self, pointer, number):
        pointer._obj.value = number

    def cuDeviceGetName(self, name, size, device):
        name.value = f"Imitation {device.value}".encode()

    def cuDeviceTotalMem_v2(self, pointer, device):
        pointer._obj.value = 24 * 2**30

    def cuDeviceGetAttribute(self, pointer, attribute, device):
        pointer._obj.value = {75: 9, 76: 0}[attribute]


@pytest.mark.parametrize(
    ("library", "status", "detail", "devices"),
    [
        (FakeLibrary(13010, count=2), OK, "for CUDA 13.1", 2),
        (FakeLibrary(13000, count=0), OK, "for CUDA 13.0", 0),
        (FakeLibrary(11080), FAILED, "for CUDA 11.8: too old", 1),
        (FakeLibrary(12040, code=100), FAILED, "it says CUDA_ERROR_NO_DEVICE", 0),
        (FakeLibrary(12040, code=999), FAILED, "it says error 999", 0),
    ],
    ids=["two devices", "none", "old", "no device", "unknown error"],
)
def test_drivers(monkeypatch, library, status, detail, devices):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    driver = cuda.find_driver()
    assert driver.check.status == status
    assert detail in driver.check.detail
    assert len(driver.devices) == devices
    assert bool(driver.check.fix) == (status != OK)
    wanted = "Imitation 0, 24 GiB, compute capability 9.0"
    found = cuda.check_device(driver)
    assert (found.status, wanted in found.detail) == ((OK, True) if devices else (MISSING, False))


@pytest.mark.parametrize("plugged", [True, False])
def test_no_driver(monkeypatch, plugged):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(cuda, "on_bus", lambda: plugged)
    driver = cuda.find_driver()
    assert driver.check.status == MISSING
    assert ("install the NVIDIA driver" in driver.check.fix) == plugged
    assert driver.devices == ()


def test_hidden_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = cuda.check_device(Driver(Check("driver", OK, ""), 13000))
    assert found.fix == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(("vendors", "wanted"), [(["0x8086"], False), (["0x8086", "0x10de"], True)])
def test_what_is_plugged_in(tmp_path, vendors, wanted):
    for number, vendor in enumerate(vendors):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(vendor + "\n")
    assert cuda.on_bus(tmp_path) is wanted
    assert cuda.on_bus(tmp_path / "none") is False


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "apk", None])
def test_no_compiler(monkeypatch, manager):
    monkeypatch.setattr(cpu.shutil, "which", lambda name: "/usr/bin/x" if name == manager else None)
    found = cpu.check_compiler()
    assert found.status == MISSING
    assert found.fix == (cpu._COMPILER[manager] if manager else "install GCC's C++ compiler")


def test_a_compiler_that_does_not_compile(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(cpu.shutil, "which", lambda name: str(broken))
    found = cpu.check_compiler()
    assert found.status == FAILED
    assert "no headers" in found.detail


def test_a_compiler_that_is_too_old(monkeypatch, tmp_path):
    old = tmp_path / "g++"
    old.write_text("#!/bin/sh\necho 9.4.0\n")
    old.chmod(0o755)
    monkeypatch.setattr(cpu.shutil, "which", lambda name: str(old))
    found = cpu.check_compiler()
    assert (found.status, found.fix) == (FAILED, "apt-get install g++")
    assert "needs g++ (12 or newer)" in found.detail
    assert "is version 9.4.0" in found.detail


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path / "new"))
    assert cpu.check_cache() == Check("kernel cache", OK, str(tmp_path / "new"))
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path / "file"))
    found = cpu.check_cache()
    assert (found.status, found.fix) == (FAILED, "let GPUGRAD_CACHE name another folder")
    assert str(tmp_path / "file") in found.detail


def test_a_library_that_is_missing():
    found = cpu.check_library("no-such-library", "plot", "for curves")
    assert found == Check(
        "no-such-library", MISSING, "not installed (for curves)", check.install("plot")
    )
