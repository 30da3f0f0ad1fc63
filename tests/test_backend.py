"""Devices and dtypes: the three states of CuPy, GPUGRAD_DEVICE, promotion, a cheap import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.registry import OPS

# What CuPy is like in each state; the ndarray is enough for isinstance.
RUNTIME = """
class CUDARuntimeError(RuntimeError):
    pass

def getDeviceCount():
    {count}
"""
CUPY = """
import types
from numpy import *
from . import _runtime
cuda = types.SimpleNamespace(runtime=_runtime)
class ndarray:
    pass
def asarray(*args, **kwargs):
    raise _runtime.CUDARuntimeError("cudaErrorInsufficientDriver: first array")
"""
STATES = {
    "absent": 'raise ModuleNotFoundError("No module named \'cupy\'", name="cupy")',
    "unwritable": 'raise PermissionError(13, "Permission denied", "/nowhere/.cupy")',
    "broken": 'raise ImportError("libcublas.so.13: cannot open shared object file")',
    "no-driver": "raise CUDARuntimeError('cudaErrorInsufficientDriver: too old')",
    "no-device": "return 0",
    "one-gpu": "return 1",
}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run a program in a Python where CuPy is in one of the states."""

    def run(state: str, program: str, device: str | None = None) -> str:
        package = tmp_path / "cupy"
        package.mkdir()
        body = STATES[state]
        if state in ("absent", "broken", "unwritable"):
            (package / "__init__.py").write_text(body)
        else:
            (package / "__init__.py").write_text(CUPY)
            (package / "_runtime.py").write_text(RUNTIME.format(count=body))
        environment = {k: v for k, v in os.environ.items() if k != "GPUGRAD_DEVICE"}
        if device is not None:
            environment["GPUGRAD_DEVICE"] = device
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


ROOT = Path(gg.__file__).parents[1]
SHOW_ERRORS = """
import gpugrad as gg
for call in {calls}:
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("state", ["absent", "broken", "unwritable", "no-driver", "no-device"])
def test_without_a_usable_gpu_everything_runs_on_the_cpu(run: Any, state: str) -> None:
    program = (
        "import gpugrad as gg; x = gg.tensor([3.0], requires_grad=True); (x * x).backward(); "
        "print(gg.cuda_is_available(), gg.default_device(), x.grad.device, x.grad.item()); "
        "gg.synchronize()"
    )
    assert run(state, program) == "False cpu cpu 6.0"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("absent", 'CuPy is not installed: pip install "gpugrad[cuda13]"'),
        ("broken", "CuPy is installed but cannot be imported: libcublas.so.13"),
        (
            "unwritable",
            "cannot be imported: [Errno 13] Permission denied: '/nowhere/.cupy'; if that",
        ),
        ("no-driver", "no usable CUDA driver or device: cudaErrorInsufficientDriver: too old"),
        ("no-device", "the CUDA driver works, but no device is visible"),
    ],
)
@pytest.mark.parametrize(
    ("calls", "device"),
    [
        ("(lambda: gg.tensor([1.0], device='cuda'), lambda: gg.ones(2).to('cuda:0'))", None),
        ("(lambda: gg.zeros(2), gg.ones(2, device='cpu').cuda)", "cuda:0"),
    ],
    ids=["argument", "environment"],
)
def test_asking_for_cuda_says_what_is_missing(
    run: Any, state: str, reason: str, calls: str, device: str | None
) -> None:
    messages = run(state, SHOW_ERRORS.format(calls=calls), device).splitlines()
    assert len(messages) == 2
    for message in messages:
        assert re.match(r"RuntimeError [\w.]+: device 'cuda' is not available\. ", message)
        assert reason in message
        assert "gpugrad doctor" in message


def test_with_a_gpu_it_is_the_default(run: Any) -> None:
    program = (
        "import gpugrad as gg, cupy; from gpugrad import backend; "
        "print(gg.cuda_is_available(), gg.default_device(), backend.namespace() is cupy)"
    )
    assert run("one-gpu", program) == "True cuda True"


@pytest.mark.parametrize("state", ["one-gpu", "no-driver"])
def test_the_environment_can_ask_for_the_cpu(run: Any, state: str) -> None:
    program = "import gpugrad as gg, sys; print(gg.ones(2).device, 'cupy' in sys.modules)"
    assert run(state, program, " CPU ") == "cpu False"


def test_a_device_that_does_not_exist_is_refused(run: Any) -> None:
    message = run("one-gpu", SHOW_ERRORS.format(calls="[lambda: gg.ones(2, device='cuda:3')]"))
    assert message.startswith("RuntimeError ones: device 'cuda:3' does not exist: 1 visible")


@pytest.mark.parametrize("value", ["gpu", "cuda0", "mps", "0"])
def test_a_wrong_environment_variable_is_named(monkeypatch: Any, value: str) -> None:
    monkeypatch.setenv("GPUGRAD_DEVICE", value)
    with pytest.raises(ValueError, match=f"GPUGRAD_DEVICE='{value}' is not a device; use cpu"):
        gg.ones(2)


@pytest.mark.parametrize("value", ["", "auto", "AUTO", "cpu", " CPU "])
def test_the_environment_variable_is_forgiving(monkeypatch: Any, value: str) -> None:
    monkeypatch.setattr(backend, "cuda_is_available", lambda: False)
    monkeypatch.setenv("GPUGRAD_DEVICE", value)
    assert gg.ones(2).device == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:x", "cuda:-1"])
def test_device_names(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' is not a device; use 'cpu', 'cuda'"):
        gg.ones(2, device=device)


# Import


def python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


def test_import_loads_no_optional_dependency() -> None:
    optional = ["cupy", "matplotlib", "tokenizers", "torch", "yaml", "tqdm", "mpi4py", "pytest"]
    program = f"import sys, gpugrad; print([m for m in {optional} if m in sys.modules])"
    assert python(program) == "[]"


LATER = [*(f"gpugrad.{m}" for m in gg._ON_DEMAND), "gpugrad.anomaly", "gpugrad.compiled"]
SLOW = ["asyncio", "dataclasses", "email", "hashlib", "http", "json", "random", "ssl", "string"]
SLOW += ["pathlib", "subprocess", "tempfile", "urllib", "xml"]


@pytest.mark.parametrize(
    ("module", "later"),
    [("gpugrad", LATER + SLOW), ("gpugrad.models", ["email", "http", "ssl", "gpugrad.compiled"])],
)
def test_import_loads_nothing_before_it_is_needed(module: str, later: list[str]) -> None:
    program = (
        "import sys, numpy, ml_dtypes; there = set(sys.modules); import {module}; "
        "print([m for m in {later} if m in sys.modules and m not in there])"
    )
    assert python(program.format(module=module, later=later)) == "[]"


def test_what_is_imported_later_is_listed_and_found() -> None:
    program = "import gpugrad as gg; print({*gg.__all__} <= {*dir(gg)}, gg.compile.__module__)"
    assert python(program) == "True gpugrad.compiled"


def test_import_is_cheap(tmp_path: Path) -> None:
    # the first of the processes compiles the modules, whatever the environment says of that
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    clock = "time.thread_time()"  # the machine may be busy, and BLAS threads spin
    program = f"import time, numpy; t = {clock}; import gpugrad; print({clock} - t)"
    taken = (float(python(program, **compiled)) for _ in range(20))  # whose clock may be slowed
    assert any(seconds < 0.1 for seconds in taken)


# dtypes


@pytest.mark.parametrize("dtype", backend.DTYPES, ids=lambda dtype: dtype.name)
def test_every_spelling_of_a_dtype(dtype: np.dtype) -> None:
    spellings: list[Any] = [dtype, dtype.name, dtype.type]
    assert [backend.as_dtype(s) for s in spellings] == [dtype] * 3
    assert backend.is_float(dtype) == (dtype in backend.FLOATS)


def test_python_types_are_dtypes() -> None:
    assert backend.as_dtype(float) == backend.float32
    assert backend.as_dtype(int) == backend.int64
    assert backend.as_dtype(bool) == backend.bool_
    assert backend.bfloat16 == np.dtype(ml_dtypes.bfloat16) == gg.bfloat16


@pytest.mark.parametrize("dtype", [complex, object, str, "float128", "U3", "M8[s]", 3, [], {}])
def test_what_is_no_dtype(dtype: Any) -> None:
    with pytest.raises(TypeError, match="is not supported; use one of float16, bfloat16, float32"):
        backend.as_dtype(dtype)


FLOAT_ORDER = {"float16": 0, "bfloat16": 0, "float32": 1, "float64": 2}


@pytest.mark.parametrize("y", backend.DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("x", backend.DTYPES, ids=lambda dtype: dtype.name)
def test_promotion(x: np.dtype, y: np.dtype) -> None:
    out = backend.promote(x, y)
    assert out == backend.promote(y, x)
    floats = [d for d in (x, y) if d in backend.FLOATS]
    if len(floats) == 1:
        assert out == floats[0]  # an integer never widens a float
    elif len(floats) == 2 and x != y:
        widest = max(FLOAT_ORDER[x.name], FLOAT_ORDER[y.name])
        assert out.name == {0: "float32", 1: "float32", 2: "float64"}[widest]
    else:
        assert out == np.promote_types(x, y)
    assert out in backend.DTYPES


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_no_row_widens_a_narrow_float(dtype: str) -> None:
    kind = backend.as_dtype(dtype)
    for op in OPS.values():
        for sample in op.samples:
            if "dtype" in sample.statics or op.name.startswith("bitwise"):
                continue
            arrays = sample.draw(np.random.default_rng(0))
            args = [
                a if a is None else gg.tensor(a.astype(kind) if a.dtype.kind == "f" else a)
                for a in arrays
            ]
            out = op.function(*args, **sample.statics)
            assert out.dtype in (kind, backend.bool_), op.name
            for i in range(1, len(args)):  # and not with integers or doubles of one element
                if args[i] is not None and args[i].dtype == kind and args[0].dtype == kind:
                    mixed = [*args[:i], args[i].astype("int64") * 0 + 1, *args[i + 1 :]]
                    assert op.function(*mixed, **sample.statics).dtype in (kind, backend.bool_)


# Arrays


def test_arrays_are_recognised_by_their_library() -> None:
    x = np.ones(2)
    assert backend.is_array(x)
    assert not backend.is_array(np.float64(1.0))
    assert not backend.is_array([1.0])
    assert backend.xp_of(x) is backend.xp_of(np.float32(1.0)) is np
    assert backend.device_of(x) == "cpu"
    assert backend.to_device(x, "cpu") is backend.to_numpy(x) is x
    assert backend.as_array(x) is x
    assert backend.as_array(x, "float64", "cpu") is x


def test_memory_base() -> None:
    x = np.zeros((4, 4))
    assert backend.memory_base(x) is x
    assert backend.memory_base(x[1:].T[::2]) is x
    assert backend.memory_base(np.frombuffer(b"12345678")).shape == (1,)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64", "int64"])
def test_total_accumulates_in_float32(kind: str) -> None:
    x = np.full((4096, 2), 0.25).astype(backend.as_dtype(kind)) + np.array(1).astype(
        backend.as_dtype(kind)
    )
    out = backend.total(np, x, 0)
    assert out.dtype == x.dtype
    assert out.astype(np.float64).tolist() == [float(x[0, 0]) * 4096] * 2
    assert backend.total(np, x, (0, 1), keepdims=True).shape == (1, 1)
