"""Arrays of more elements than 32 bits count: what the last blocks of a launch write.

The first ones would take hours in the emulator. The arrays' memory is a file that is all holes but
for the last rows; kernels run on those rows alone say what is expected, bit for bit.
"""

from __future__ import annotations

import mmap
import tempfile

import numpy as np
import pytest

from gpugrad import backend, emulator
from gpugrad.cuda import symbolic
from gpugrad.cuda.elementwise import Program
from gpugrad.fused import FUSED, _cross_entropy_cuda

ROWS = 5  # that exist


def large(x):
    """Return an array of more than 2**31 elements whose last rows are those of x."""
    rows = 2**31 // x[0].size + 64
    with tempfile.TemporaryFile() as file:
        file.truncate(rows * x[0].nbytes)
        made = np.frombuffer(mmap.mmap(file.fileno(), 0), x.dtype).reshape(rows, *x.shape[1:])
    made[-ROWS:] = x
    return made


def agrees(run, *shape, inputs=1, few=()):
    """Compare the last rows that ``run`` computes from so many large arrays, whose rows have this
    shape, and some arrays with a number for each row.
    """
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((ROWS, *shape)).astype("bfloat16") for _ in range(inputs)]
    with emulator.enabled():
        expected = run(*(x.copy() for x in rows), *few)
    many = [large(x) for x in rows]
    padded = [np.concatenate([np.zeros(len(many[0]) - ROWS, x.dtype), x]) for x in few]
    with emulator.enabled(order="descending", blocks=256):
        found = run(*many, *padded)
    for a, b in zip(found, expected, strict=True):
        assert a[-ROWS:].tobytes() == b.tobytes()


def both_ways(name, *arguments, wanted=(True,), **statics):
    op = FUSED[name].implementations["cuda"]

    def run(x, g):
        out, kept = op.forward(x, *arguments, **statics)
        found = op.backward(wanted, g, (x, *arguments), kept, **statics)
        return out, found[0]

    return run


@pytest.mark.parametrize("columns", [768, 4104])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_rows_of_softmax(name, columns):
    agrees(both_ways(name, axis=1), columns, inputs=2)
    agrees(both_ways(name, axis=1), 3, columns // 3, inputs=2)  # lines with others between


@pytest.mark.parametrize("columns", [768, 4104])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_of_cross_entropy(columns, smoothing):
    statics = {"ignore_index": -1, "label_smoothing": smoothing, "reduction": "none"}
    op = FUSED["cross_entropy"].implementations["cuda"]

    def run(x, target, g):
        losses, kept = op.forward(x, target, None, **statics)
        dx = op.backward((True, False, False), g, (x, target, None), kept, **statics)[0]
        again = _cross_entropy_cuda.in_place(x, target, None, g, **statics)
        return losses, dx, again, x

    few = [np.arange(ROWS) * 7, np.arange(1.0, ROWS + 1, dtype=np.float32)]
    agrees(run, columns, few=few)


@pytest.mark.parametrize("columns", [4105, 16384])  # no packs; more than registers hold
def test_rows_of_layer_norm(columns):
    statics = {"eps": 1e-5}
    run = both_ways("layer_norm", None, None, None, wanted=(True, False, False, False), **statics)
    agrees(run, columns, inputs=2)


def test_rows_of_rms_norm_that_registers_hold():
    op = FUSED["rms_norm"].implementations["cuda"]
    agrees(lambda x: op.forward(x, None, None, eps=1e-5)[:1], 768)


def test_gelu():
    agrees(both_ways("gelu", approximate="tanh"), 4104, inputs=2)
    bias = np.ones(4104, "bfloat16")
    run = both_ways("bias_gelu", bias, wanted=(True, False), approximate="tanh")
    agrees(run, 4104, inputs=2)


def test_generated_kernels():
    x, y = (symbolic.argument(i, backend.bfloat16) for i in range(2))
    program = Program("product", [backend.bfloat16] * 2, [symbolic.xp.exp(x) * y])
    agrees(lambda *arrays: program.run(arrays), 4104, inputs=2)


def test_rows_of_a_table():
    table = np.random.default_rng(0).standard_normal((ROWS, 4104)).astype("bfloat16")
    ids = np.array([4, 0, 2, 4])
    op = FUSED["embedding"].implementations["cuda"]
    many = large(table)
    with emulator.enabled():
        out, _ = op.forward(ids + len(many) - ROWS, many, padding_idx=None)
    np.testing.assert_array_equal(out, table[ids])
