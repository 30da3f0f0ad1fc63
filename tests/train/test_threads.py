"""Threads of matrix products: set where OpenBLAS is loaded, unless the environment decides."""

from __future__ import annotations

import ctypes

import pytest

from gpugrad.train import threads

MAPS = """7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libc.so.6
7f02-7f03 r-xp 00000000 08:01 2 /env/numpy.libs/libscipy_openblas64_-1.so
7f04-7f05 r--p 00000000 08:01 2 /env/numpy.libs/libscipy_openblas64_-1.so
"""


@pytest.fixture
def opened(monkeypatch):
    """What was set in which library, none of them real."""
    calls = []

    class Library:
        def __init__(self, path):
            self.scipy_openblas_set_num_threads64_ = lambda n: calls.append((path, n.value))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_loaded_library_is_set(opened, tmp_path):
    (tmp_path / "maps").write_text(MAPS)
    assert threads.limit_threads(3, tmp_path / "maps")
    assert opened == [("/env/numpy.libs/libscipy_openblas64_-1.so", 3)]


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_the_environment_decides(opened, tmp_path, monkeypatch, name):
    (tmp_path / "maps").write_text(MAPS)
    monkeypatch.setenv(name, "4")
    assert not threads.limit_threads(3, tmp_path / "maps")
    assert opened == []


@pytest.mark.parametrize("maps", [None, "7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libmkl_rt.so\n"])
def test_other_libraries_are_left_alone(opened, tmp_path, maps):
    if maps:
        (tmp_path / "maps").write_text(maps)
    assert not threads.limit_threads(3, tmp_path / "maps")
    assert opened == []
