"""The tests marked ``gpu``, in processes of their own, on the stand-in of CuPy (cupy_stand_in)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "operations": ["tests/ops/test_devices.py", "tests/test_tensor.py"],
    "kernels": [
        "tests/cuda/test_graph.py",
        "tests/fused/test_cuda.py",
        "tests/kernels/test_adamw.py",
        "tests/kernels/test_dropout.py",
        "tests/kernels/test_grad_norm.py",
        "tests/kernels/test_random.py",
        "tests/kernels/test_sgd.py",
    ],
    "models": [
        "tests/models/test_beside.py",
        "tests/models/test_variants.py",
        "tests/reliability/test_determinism.py",
        "tests/testing/test_crosscheck.py",
    ],
    "whole things": ["tests/test_on_a_gpu.py"],
}
LEFT_OUT = {  # whole files; see ELSEWHERE in cupy_stand_in/plugin.py for why, and for single tests
    "tests/benchmarks/test_harness.py",
    "tests/benchmarks/test_train_step.py",
    "tests/cuda/test_gemm.py",
    "tests/emulator/test_conformance.py",
    "tests/kernels/test_attention_sm90.py",
}
LEAST = {"operations": 800, "kernels": 120, "models": 12, "whole things": 25}  # tests that run

needs = pytest.mark.skipif(
    not (importlib.util.find_spec("cupy") and shutil.which("g++")),
    reason="the stand-in of CuPy needs cupy, for its tables, and g++, for the emulator",
)


def test_every_file_with_tests_for_a_gpu_is_named() -> None:
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__) and "mark.gpu" in path.read_text(encoding="utf-8")
    }
    assert marked == {*LEFT_OUT, *(name for part in PARTS.values() for name in part)}


@needs
@pytest.mark.parametrize(
    ("part", "capability"), [*((part, "90") for part in PARTS), ("whole things", "75")]
)
def test_on_the_stand_in(part: str, capability: str) -> None:
    """Every test of the part passes; none is skipped. GPUs before 8.0 have no kernels of attention,
    so that CuPy's operations compute it.
    """
    options = ["-p", "tests.cupy_stand_in.plugin", "-p", "no:cacheprovider", "-n0", "-m", "gpu"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--tb=short", "--no-header", *PARTS[part]],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OPENBLAS_NUM_THREADS": "1",
            "GPUGRAD_STAND_IN": capability,
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts.keys() <= {"passed", "deselected"}
    assert counts["passed"] >= LEAST[part], counts


REFUSED = """
import numpy as np
from tests import cupy_stand_in
cupy_stand_in.install()
import cupy
x = cupy.asarray([[1.0, 2.0], [3.0, 4.0]])
row, mask = cupy.asarray([0, 1]), cupy.asarray([True, False])
def update(a, index, value):
    a[index] = value
cases = [
    (TypeError, "Implicit conversion", lambda: np.asarray(x)),
    (TypeError, "no implementation", lambda: np.concatenate([np.ones((2, 2)), x])),
    (TypeError, "Unsupported type", lambda: x + np.ones(2)),
    (TypeError, "Unsupported type", lambda: cupy.add(x, [1.0, 2.0])),
    (TypeError, "Unsupported type", lambda: cupy.where(x > 1, x, np.ones(2))),
    (TypeError, "can be concatenated", lambda: cupy.concatenate([x, np.ones((2, 2))])),
    (TypeError, "is needed", lambda: cupy.sum([1.0, 2.0])),
    (TypeError, "unexpected keyword", lambda: cupy.sum(x, where=x > 1)),
    (TypeError, "Wrong type", lambda: cupy.bitwise_and(x, x)),
    (TypeError, "boolean subtract", lambda: cupy.subtract(mask, mask)),
    (ValueError, "Unsupported dtype", lambda: cupy.asarray(["a"])),
    (ValueError, "one boolean array", lambda: x[mask, row]),
    (IndexError, "integer or boolean", lambda: x[x]),
    (ValueError, "could not be broadcast", lambda: update(x, 0, cupy.ones((1, 2)))),
    (ValueError, "non-scalar", lambda: update(x, 0, np.ones(2))),
    (TypeError, "could not be cast", lambda: cupy.add(row, x[0], out=row)),
    (TypeError, "does not support int64", lambda: cupy.add.at(row, row, row)),
    (NotImplementedError, "not supported", lambda: cupy.multiply.at(x, row, x)),
    (AssertionError, "out of bounds", lambda: x[row + 1]),
    (AssertionError, "out of bounds", lambda: cupy.take(x, row + 1, axis=0)),
]
for kind, message, case in cases:
    try:
        made = case()
    except kind as error:
        assert message in str(error), (message, error)
    else:
        raise SystemExit(f"{kind.__name__} {message!r}: nothing is refused, {made!r} is made")
assert (x * 2 + cupy.float32(1)).dtype == x.dtype == "float64"
assert (cupy.ones(2, "f") * 2.0).dtype == "float32"
assert (cupy.ones(2, "f") * np.float64(2)).dtype == "float64"
assert np.isnan(cupy.empty(3).get()).all()
view = x[0]
view += 1
assert x.tolist() == [[2.0, 3.0], [3.0, 4.0]] and view.base is x
"""


@needs
def test_the_stand_in_refuses_what_cupy_refuses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
