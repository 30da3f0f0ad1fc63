"""OpenBLAS's threads: found where it is loaded, one for each product while somebody is inside.

And a x + b y in one pass: what NumPy computes to a rounding, or nothing at all.
"""

from __future__ import annotations

import platform
import types

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


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(openblas, "_threads", lambda: None)
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


# a x + b y


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not any("scipy_openblas64" in p for p in openblas._loaded()),
    reason="NumPy is no wheel for x86 here",
)
def test_wheels_have_the_pass():
    """Or all that follows is left out."""
    assert openblas._axpby().keys() == {np.dtype("f"), np.dtype("d")}


one_pass = pytest.mark.skipif(not openblas._axpby(), reason="NumPy has another BLAS here")


def drawn(size, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


@one_pass
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 2, 15, 63, 64, 131, 4097])
@pytest.mark.parametrize(("a", "b"), [(0.1, 0.9), (-1e-3, 1.0), (1.0, -2.0)])
def test_add_scaled(size, dtype, a, b):
    x, memory = drawn(size, dtype), drawn(size + 5, dtype, 1)
    y, around = memory[3 : 3 + size], memory.copy()
    assert openblas.add_scaled(x, a, y, b)
    terms = (
        np.dtype(dtype).type(a) * x.astype(np.longdouble),
        np.dtype(dtype).type(b) * around[3:-2],
    )
    bound = sum(map(np.abs, terms)) * np.finfo(dtype).eps
    assert (np.abs(y - sum(terms)) <= bound).all()
    np.testing.assert_array_equal(np.delete(memory, np.s_[3:-2]), np.delete(around, np.s_[3:-2]))
    np.testing.assert_array_equal(x, drawn(size, dtype))


@one_pass
def test_an_element_has_the_same_bits_anywhere():
    x, y = drawn(1000, np.float32), drawn(1000, np.float32, 1)
    whole = y.copy()
    assert openblas.add_scaled(x, 0.1, whole, 0.9)
    for start, stop in [(0, 7), (7, 8), (8, 70), (70, 333), (333, 1000)]:
        assert openblas.add_scaled(x[start:stop], 0.1, y[start:stop], 0.9)
    np.testing.assert_array_equal(y, whole)


@one_pass
def test_a_read_only_or_a_single_array():
    x = drawn(9, np.float64)
    twice = x * 2
    x.flags.writeable = False
    y = np.ones(9)
    assert openblas.add_scaled(x, 1.0, y, 1.0)
    np.testing.assert_allclose(y, 1 + x, rtol=1e-15)
    assert openblas.add_scaled(y, 1.0, y, 1.0)
    np.testing.assert_allclose(y, 2 + twice, rtol=1e-15)


class Derived(np.ndarray):
    pass


def read_only():
    y = np.ones(4, np.float32)
    y.flags.writeable = False
    return y


ONES = np.ones(4, np.float32)
ODD = np.zeros(17, np.uint8)[1:].view(np.float32)


@pytest.mark.parametrize(
    ("x", "a", "y", "b"),
    [
        (ONES, 0.0, np.ones(4, np.float32), 1.0),
        (ONES, 1.0, np.ones(4, np.float32), 0.0),
        (ONES, np.nan, np.ones(4, np.float32), 1.0),
        (ONES, 1.0, np.ones(4, np.float32), np.inf),
        (ONES, 1e-39, np.ones(4, np.float32), 1.0),
        (ONES, 1e39, np.ones(4, np.float32), 1.0),
        (ONES, 1.0, np.ones(8, np.float32)[::2], 1.0),
        (np.ones(8, np.float32)[::2], 1.0, np.ones(4, np.float32), 1.0),
        (np.broadcast_to(np.float32(1), 4), 1.0, np.ones(4, np.float32), 1.0),
        (ODD, 1.0, np.ones(4, np.float32), 1.0),
        (ONES, 1.0, ODD.copy()[:3], 1.0),
        (ONES, 1.0, read_only(), 1.0),
        (ONES, 1.0, np.ones(4), 1.0),
        (ONES.astype(">f4"), 1.0, np.ones(4, ">f4"), 1.0),
        (ONES.astype("f2"), 1.0, np.ones(4, "f2"), 1.0),
        (np.ones(4, int), 1.0, np.ones(4, int), 1.0),
        (ONES.reshape(2, 2), 1.0, np.ones((2, 2), np.float32), 1.0),
        (ONES, 1.0, np.ones(4, np.float32).view(Derived), 1.0),
        ([1.0] * 4, 1.0, np.ones(4, np.float32), 1.0),
    ],
    ids=str,
)
def test_what_one_pass_does_not_take_stays(x, a, y, b):
    before = y.copy()
    assert not openblas.add_scaled(x, a, y, b)
    np.testing.assert_array_equal(y, before)


def looked_for_in(monkeypatch, **functions):
    """Return what is found in a library of these functions."""
    monkeypatch.setattr(openblas, "_loaded", lambda: ["libopenblas.so"])
    library = types.SimpleNamespace(**functions)
    monkeypatch.setattr(openblas.ctypes, "CDLL", lambda path: library)
    return openblas._axpby.__wrapped__()


def test_integers_of_unknown_width_are_not_passed(monkeypatch):
    def refuse(*args):
        raise AssertionError("called")

    names = ["cblas_saxpby", "scipy_cblas_saxpby", "cblas_saxpby64_", "saxpby_", "scipy_daxpby_64_"]
    assert looked_for_in(monkeypatch, **dict.fromkeys(names, refuse)) == {}


def test_a_kernel_that_rounds_its_rest_otherwise_is_not_used(monkeypatch):
    def exact(n, *args):
        pass

    def odd(n, a, x, _, b, y, __):
        if n == 1:
            openblas.ctypes.c_float.from_address(y).value += 1

    assert looked_for_in(monkeypatch, scipy_cblas_saxpby64_=odd) == {}
    assert [*looked_for_in(monkeypatch, scipy_cblas_saxpby64_=exact)] == [np.dtype("f")]


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_other_files_of_that_name_are_passed_over(monkeypatch, tmp_path, content):
    """Data that is mapped, in a folder of that name say, or a file that is gone."""
    data = tmp_path / "openblas.bin"
    if content:
        data.write_bytes(content)
    real = openblas._loaded()
    monkeypatch.setattr(openblas, "_loaded", lambda: [str(data), *real])
    assert openblas._axpby.__wrapped__().keys() == openblas._axpby().keys()
    assert (openblas._threads.__wrapped__() is None) == (openblas._threads() is None)
