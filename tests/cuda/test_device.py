"""The way of CuPy arrays to a kernel, without a GPU.

``host`` (conftest.py) gives CuPy arrays in host memory, and the emulator what a launch passes.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import backend, cuda, emulator
from gpugrad.cuda import device
from gpugrad.fused import FUSED, cross_entropy, embedding
from gpugrad.fused.embedding import add_to
from gpugrad.tensor import Tensor
from gpugrad.testing.kernels import drawn

BY_CUPY = ("linear_cross_entropy", "none")  # products of elements that end its gradients
CASES = [
    pytest.param(op, sample, dtype, id=f"{name}-{sample!r}-{dtype}")
    for name, op in FUSED.items()
    if "cuda" in op.implementations
    for sample in op.samples
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("op", "sample", "dtype"), CASES)
def test_cupy_arrays_give_what_numpy_arrays_give(op, sample, dtype, host):
    implementation = op.implementations["cuda"]
    arrays = []
    for name, x in zip(op.arguments, drawn(op, sample), strict=True):
        array = None if x is None else x.data
        if array is not None and array.dtype.kind == "f":  # class weights and masks stay float32
            array = array.astype(dtype if name in op.differentiable else "float32")
        arrays.append(array)
    if implementation.fits is not None and not implementation.fits(*arrays, **sample.statics):
        return
    with emulator.enabled("plain"):
        expected = both(op, implementation, arrays, sample.statics, lambda x: x, lambda x: x)
    on_device = [None if a is None else host.to_device(a) for a in arrays]
    found = both(op, implementation, on_device, sample.statics, host.to_device, host.view)
    assert host.launched
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)


def both(op, implementation, arrays, statics, to_device, view):
    """Return results and gradients, these unless CuPy itself has to compute something for them."""
    out, kept = implementation.forward(*arrays, **statics)
    outs = out if isinstance(out, tuple) else (out,)
    upstream = [to_device(np.cos(np.arange(o.size)).reshape(o.shape).astype(o.dtype)) for o in outs]
    if statics.get("chunk") or (op.name, statics.get("reduction")) == BY_CUPY:
        return [view(o) for o in outs]
    wanted = tuple(a is not None and backend.is_float(a.dtype) for a in arrays)
    g = upstream if isinstance(out, tuple) else upstream[0]
    grads = implementation.backward(wanted, g, arrays, kept, **statics)
    return [x if x is None else view(x) for x in (*outs, *grads)]


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_a_gradient_of_many_ids_is_added_to_a_part(kind, host):
    rng = np.random.default_rng(3)
    ids = rng.integers(-1, 301, (5, 1000)).astype(kind)
    there, g = (rng.integers(-9, 9, (*n, 2)).astype(np.float32) for n in [(300,), ids.shape])
    expected, on_device = there.copy(), host.to_device(there)
    with emulator.enabled("plain"):
        add_to(expected, ids, g)
    add_to(on_device, host.to_device(ids), host.to_device(g))
    assert host.launched[0] == "sort_ids_count"
    np.testing.assert_array_equal(host.view(on_device), expected)
    assert (expected != there).any()


def test_ids_on_a_gpu_are_not_looked_at(host):
    """CuPy can compute nothing here: a look at values would be an error of the driver."""
    ids = Tensor(host.to_device(np.array([0, 7, -1])))
    x, table = (Tensor(host.to_device(np.ones((n, 7), np.float32))) for n in (3, 7))
    for found in (embedding(ids, table), cross_entropy(x, ids, reduction="none")):
        rows = host.view(found._data).reshape(3, -1)
        assert np.isnan(rows).all(1).tolist() == [False, True, True]


def test_much_shared_memory_is_asked_for_once(host, tmp_path):
    text = 'extern "C" __global__ void much(float* x) { x[threadIdx.x] = 1.0f; }'
    (tmp_path / "much.cu").write_text(text)
    source = cuda.Source(tmp_path / "much.cu")
    x = host.to_device(np.zeros(32, np.float32))
    for size in (1 << 10, device.OPT_IN, device.OPT_IN + 1, 100_000, 60_000):
        source.launch("much", (1,), (32,), (x,), size)
    assert host.attributes == [(8, device.OPT_IN + 1), (8, 100_000)]
    assert (host.view(x) == 1).all()
    del cuda.SOURCES[str(tmp_path / "much.cu")]


def test_arrays_of_two_devices_are_refused(host):
    source = cuda.SOURCES["dropout.cu"]
    x = host.to_device(np.zeros(32, np.float32))
    with pytest.raises(ValueError, match=r"kernel 'dropout': its arrays are on \['0', 'cpu'\]"):
        source.launch("dropout", (1,), (32,), (x, np.zeros(32, np.float32)))


def test_an_older_gpu_is_refused(host):
    with pytest.raises(RuntimeError, match=r"a\.cu needs a GPU of compute capability 10\.0"):
        device.Module("", {}, "a.cu", 0, 100)
