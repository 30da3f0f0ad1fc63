"""Kernels of one's own as operations: registered, dispatched, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.cuda import compiler
from gpugrad.cuda import kernel as launch
from gpugrad.fused import FUSED

SAMPLES = [gg.Sample((3, 4), (4,), factor=2.0), gg.Sample((17, 5), (5,), factor=-0.5)]


def forward(file: cuda.Source, x: Any, shift: Any, factor: float) -> Any:
    out = cuda.empty(x.shape, x.dtype, like=x)
    args = (x, shift, out, x.size, x.shape[-1], factor)
    code = cuda.dtype_code(x.dtype)
    file.launch("scale_shift_forward", (-(-x.size // 64),), (64,), args, GPUGRAD_DTYPE=code)
    return out


def backward(
    file: cuda.Source, g: Any, arrays: Any, kept: tuple, factor: float, **macros: object
) -> Any:
    dx, dshift = (cuda.empty(a.shape, a.dtype, like=a) for a in arrays)
    args = (g, dx, dshift, g.size // g.shape[-1], g.shape[-1], factor)
    macros = {"GPUGRAD_DTYPE": cuda.dtype_code(g.dtype), **macros}
    file.launch("scale_shift_backward", (1,), (256,), args, **macros)
    return dx, dshift


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that registers the operation anew with other launchers."""
    monkeypatch.setattr(launch, "SOURCES", {})
    text = Path(__file__).with_name("scale_shift.cu").read_text()
    (tmp_path / "own.cu").write_text(text)

    def make(forward: Any = forward, backward: Any = backward, **more: Any) -> Any:
        def scale_shift(x: Any, shift: Any, *, factor: float) -> Any:
            return x * factor + shift

        FUSED.pop("scale_shift", None)
        settings = {"samples": SAMPLES, "variants": cuda.variants(GPUGRAD_DTYPE=(0, 1)), **more}
        decorate = gg.kernel(tmp_path / "own.cu", forward=forward, backward=backward, **settings)
        return decorate(scale_shift)

    yield make
    FUSED.pop("scale_shift", None)


def test_it_runs_where_it_can(register):
    op = register()
    x, shift = np.ones((3, 4), np.float32), np.arange(4, dtype=np.float32)
    expected = x * 2 + shift
    np.testing.assert_array_equal(op(x, shift, factor=2.0).data, expected)
    assert op.launches == {"spec": 1}
    with emulator.enabled("checked"):
        np.testing.assert_array_equal(op(x, shift, factor=2.0).data, expected)
        assert op.launches == {"spec": 1, "cuda": 1}
        op(x.astype("d"), shift.astype("d"), factor=2.0)
        op(x.astype(np.float16), shift.astype(np.float16), factor=2.0)
        assert op.launches == {"spec": 3, "cuda": 1}
        tensor = gg.tensor(x.T[:3], requires_grad=True)
        (op(tensor, shift[:3], factor=3.0) * gg.tensor(x.T[:3])).sum().backward()
    np.testing.assert_array_equal(tensor.grad.data, np.full((3, 3), 3.0))
    assert op.launches["cuda"] == 2


def test_check_kernel_passes(register):
    testing.check_kernel(register(), dtypes=[gg.float32, gg.bfloat16])


def test_without_a_backward_the_definition_is_differentiated(register):
    op = register(backward=None)
    before = cuda.launches["scale_shift_backward"]
    testing.check_kernel(op)
    assert cuda.launches["scale_shift_backward"] == before
    x = gg.tensor(np.ones((3, 4)), dtype="float32", requires_grad=True)
    with emulator.enabled(), gg.no_grad():
        assert not op(x, np.ones(4, "f"), factor=1.0).requires_grad
    with emulator.enabled():
        out = op(x, np.ones(4, "f"), factor=2.0)
    with gg.no_grad():
        out.backward(gg.ones_like(out))
    np.testing.assert_array_equal(x.grad.data, np.full((3, 4), 2.0))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("uint32_t bits = 0; x[bits] = 1;", r'"uint32_t" is undefined'),
        ("x[0] = -INFINITY;", r'"INFINITY" is undefined'),
        ("x[0] = std::sqrt(x[1]);", 'name must be a namespace|has no member "sqrt"'),
    ],
)
def test_check_kernel_finds_what_no_gpu_compiler_takes(register, tmp_path, body, message):
    op, own = register(), tmp_path / "own.cu"
    bad = f'extern "C" __global__ void bad(float* x) {{ {body} }}\n'
    own.write_text(bad + own.read_text())
    with pytest.raises(compiler.CompileError, match=message):
        testing.check_kernel(op)


def test_check_kernel_does_without_nvrtc(register, monkeypatch):
    def missing() -> None:
        raise RuntimeError("no NVRTC")

    monkeypatch.setattr(compiler, "nvrtc", missing)
    testing.check_kernel(register())


def test_check_kernel_finds_a_race(register):
    def racing(*args: Any, **statics: Any) -> Any:
        return backward(*args, **statics, RACE=1)

    with pytest.raises(emulator.Race, match="sums") as caught:
        testing.check_kernel(register(backward=racing))
    assert caught.value.file.endswith("own.cu")


def test_check_kernel_finds_a_wrong_gradient(register):
    def wrong(file: Any, g: Any, arrays: Any, kept: Any, factor: float) -> Any:
        return backward(file, g, arrays, kept, factor * 1.001)

    with pytest.raises(AssertionError, match="scale_shift: the gradient of input 0"):
        testing.check_kernel(register(backward=wrong))


def test_check_kernel_finds_a_kernel_that_never_runs(register):
    with pytest.raises(ValueError, match="scale_shift: the kernels do not run for float16"):
        testing.check_kernel(register(), dtypes=[gg.float16])
    with pytest.raises(ValueError, match="the kernels do not run for float32"):
        testing.check_kernel(register(fits=lambda x, shift, factor: False))


def test_check_kernel_finds_a_launcher_that_launches_nothing(register):
    def by_hand(file: Any, x: Any, shift: Any, factor: float) -> Any:
        return x * factor + shift

    with pytest.raises(ValueError, match="the kernels do not run for float32"):
        testing.check_kernel(register(forward=by_hand, backward=None))


def test_a_definition_may_be_made_anew_as_in_a_notebook(register):
    first = register()
    assert FUSED["scale_shift"] is first

    def scale_shift(x: Any, *, factor: float) -> Any:
        return x

    settings = {"samples": [], "forward": forward}
    second = gg.kernel(first.source.path, **settings)(scale_shift)
    assert FUSED["scale_shift"] is second
    second.spec.__module__ = "another"
    with pytest.raises(ValueError, match="'scale_shift' is registered already"):
        register_again(first.source.path, settings)


def register_again(path: Path, settings: dict[str, Any]) -> None:
    @gg.kernel(path, **settings)
    def scale_shift(x: Any, *, factor: float) -> Any:
        return x


def test_a_file_that_is_not_there(register):
    with pytest.raises(FileNotFoundError, match=r"nosuch: there is no .*fused/nosuch\.cu; a"):

        @gg.kernel("nosuch.cu", samples=[], forward=forward)
        def nosuch(x: Any) -> Any:
            return x


def test_misuse(register):
    listing = register(forward=lambda file, x, shift, factor: [x])
    with (
        emulator.enabled(),
        pytest.raises(TypeError, match=r"forward must return an array .* it returned list"),
    ):
        listing(np.ones((3, 4), "f"), np.ones(4, "f"), factor=1.0)
    with pytest.raises(TypeError, match=r"scale_shift takes 2 tensors \(x, shift\), not 3"):
        register()(1.0, 2.0, 3.0, factor=1.0)
    short = register(backward=lambda file, g, arrays, kept, factor: (g,))
    x = gg.tensor(np.ones((3, 4), "f"), requires_grad=True)
    with emulator.enabled():
        out = short(x, np.ones(4, "f"), factor=1.0)
        with pytest.raises(TypeError, match=r"must return 2 gradients \(x, shift\)"):
            out.backward(gg.ones_like(out))
    with pytest.raises(TypeError, match="the definition takes at least one tensor"):
        gg.kernel(short.source.path, samples=[], forward=forward)(lambda *, factor: factor)


def test_what_has_no_default_must_be_given(register):
    with pytest.raises(TypeError, match=r"scale_shift takes 2 tensors \(x, shift\), not 1"):
        register()(np.ones((3, 4), "f"), factor=1.0)


PAIR = r"""
extern "C" __global__ void pair(const float* x, float* doubled, float* squared, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n - LEFT_OUT) doubled[i] = 2 * x[i], squared[i] = x[i] * x[i];
}
"""


@pytest.fixture(params=[0, 1])
def left_out(request: pytest.FixtureRequest) -> Any:
    """How many of the last elements the kernel forgets."""
    yield request.param
    FUSED.pop("pair", None)


def test_two_results_are_no_result_and_what_it_keeps(tmp_path, left_out):
    (tmp_path / "pair.cu").write_text(f"#define LEFT_OUT {left_out}\n{PAIR}")

    def forward(file, x):
        doubled, squared = (cuda.empty(x.shape, x.dtype, like=x) for _ in range(2))
        file.launch("pair", (-(-x.size // 64),), (64,), (x, doubled, squared, x.size))
        return doubled, squared

    @gg.kernel(tmp_path / "pair.cu", samples=[gg.Sample((65,))], forward=forward)
    def pair(x):
        return x * 2, x * x

    if left_out:
        message = r"element 64 of the result.*; no kernel wrote it: this is what memory held before"
        with pytest.raises(emulator.OrderDependent, match=message):
            testing.check_kernel(pair)
    else:
        testing.check_kernel(pair)
        with emulator.enabled():
            doubled, squared = pair([1.0, 3.0])
        assert (doubled.tolist(), squared.tolist()) == ([2.0, 6.0], [1.0, 9.0])
