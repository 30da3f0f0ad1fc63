"""What the compiler says while one waits for it."""

from __future__ import annotations

import threading

import pytest

from gpugrad.cuda import compiler

SOURCE = 'extern "C" __global__ void own(float* x) { x[0] = 1.0f; }\n'
SAID = "gpugrad: compiling own.cu for sm_90a, once on this machine\n"


class Slow:
    """NVRTC's binding, with a compilation that lasts until something has been said."""

    def __init__(self, binding: object, said: threading.Event) -> None:
        self.binding, self.said = binding, said

    def __getattr__(self, name: str) -> object:
        return getattr(self.binding, name)

    def compileProgram(self, *args: object) -> None:
        assert self.said.wait(30)
        self.binding.compileProgram(*args)


def test_a_long_compilation_says_so_while_it_lasts(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "LONG_COMPILE", 0.01)
    said = threading.Event()

    def show(*args: object, **kwargs: object) -> None:
        print(*args, **kwargs)
        said.set()

    monkeypatch.setattr(compiler, "print", show, raising=False)
    slow = Slow(compiler.nvrtc(), said)
    monkeypatch.setattr(compiler, "nvrtc", lambda: slow)
    first = compiler.compile_cubin(SOURCE, "own.cu", "sm_90a")
    assert capsys.readouterr().err == SAID
    assert compiler.compile_cubin(SOURCE, "own.cu", "sm_90a") == first
    assert capsys.readouterr().err == ""  # it came from the cache


def test_nvrtc_lets_other_threads_run(monkeypatch):
    """Else nothing could be said before the compilation is over."""
    loops = "".join(f"x[{i}] = erff(x[{i}]) + powf(x[{i}], x[0]);" for i in range(10))
    ended, said = threading.Event(), []
    monkeypatch.setattr(compiler, "LONG_COMPILE", 0.01)
    monkeypatch.setattr(
        compiler, "print", lambda *args, **kwargs: said.append(not ended.is_set()), raising=False
    )
    source = f'extern "C" __global__ void own(float* x) {{ {loops} }}\n'
    compiler.compile_cubin(source, "own.cu", "sm_90a", cache=False)
    ended.set()
    assert said == [True]


@pytest.mark.parametrize("source", [SOURCE, "broken"])
def test_a_short_compilation_says_nothing(monkeypatch, tmp_path, capsys, source):
    monkeypatch.setattr(compiler, "LONG_COMPILE", 60.0)
    if source == SOURCE:
        compiler.compile_cubin(source, "own.cu", "sm_90a", cache=False)
    else:
        with pytest.raises(compiler.CompileError, match=r"own\.cu does not compile for sm_90a"):
            compiler.compile_cubin(source, "own.cu", "sm_90a", cache=False)
    assert capsys.readouterr().err == ""
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
