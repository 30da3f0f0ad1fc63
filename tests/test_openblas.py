"""OpenBLAS's threads: found where it is loaded, one for each product while somebody is inside."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import openblas

MAPS = """7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libc.so.6
7f02-7f03 r-xp 00000000 08:01 2 /env/numpy.libs/libscipy_openblas64_-1.so
7f04-7f05 r--p 00000000 08:01 2 /env/numpy.libs/libscipy_openblas64_-1.so
"""


def test_the_loaded_library_is_found(tmp_path):
    (tmp_path / "maps").write_text(MAPS)
    found = openblas._loaded(tmp_path / "maps")
    assert found == ["/env/numpy.libs/libscipy_openblas64_-1.so"]
    (tmp_path / "maps").write_text("7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libmkl_rt.so\n")
    assert openblas._loaded(tmp_path / "maps") == []


def test_where_nothing_tells_what_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "__file__", str(tmp_path / "numpy" / "__init__.py"))
    (tmp_path / "numpy.libs").mkdir()
    library = tmp_path / "numpy.libs" / "libscipy_openblas64_-1.dll"
    library.touch()
    assert openblas._loaded(tmp_path / "none") == [str(library)]


@pytest.fixture
def threads(monkeypatch):
    """What OpenBLAS was set to, four threads before."""
    seen = [4]
    found = openblas._Threads(lambda: seen[-1], seen.append)
    monkeypatch.setattr(openblas, "_threads", lambda: found)
    return seen


def test_one_thread_until_the_last_one_leaves(threads):
    with openblas.serial:
        assert threads == [4, 1]
        with openblas.serial:
            assert threads == [4, 1]
        assert threads == [4, 1]
    assert threads == [4, 1, 4]
    with pytest.raises(KeyError), openblas.serial:
        raise KeyError
    assert threads == [4, 1, 4, 1, 4]


def test_the_number_can_be_set(threads):
    assert openblas.set_openblas_threads(2)
    assert threads == [4, 2]


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(openblas, "_threads", lambda: None)
    assert not openblas.set_openblas_threads(2)
    with openblas.serial:
        pass


@pytest.mark.skipif(not openblas.available(), reason="NumPy has another BLAS here")
def test_the_library_itself():
    threads = openblas._threads()
    assert threads is not None
    before = threads.get()
    with openblas.serial:
        assert threads.get() == 1
    assert threads.get() == before
