"""The wrappers of kernels/ptx.cuh on hardware and in the emulator: the same kernels, both outputs.

On a machine with a GPU (of compute capability 9.0, for bulk copies)

    python tests/emulator/conformance.py [box | "not box"]

writes what the hardware computes to hardware.npz beside this file, with the name of the GPU; the
tests hold the emulator against it wherever they run. "box" are copies of boxes by tensor maps (a
wrong count of bytes would hang there), "not box" all the others: what the file holds is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpugrad import backend, cuda

HERE = Path(__file__).resolve().parent
STORED = HERE / "hardware.npz"
SOURCE = HERE / "ptx.cu"


class Case(NamedTuple):
    """One launch; ``args`` with an ``Out`` in place of the array to look at, a ``Map`` of inputs.

    ``rtol`` and ``atol`` are the differences allowed: 0 wherever the result is exact by definition.
    """

    kernel: str
    block: int
    args: tuple[Any, ...]
    rtol: float = 0.0
    atol: float = 0.0


class Out(NamedTuple):
    """An output: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class Map(NamedTuple):
    """An array that the kernel gets as a tensor map, for copies of boxes of a shape."""

    array: np.ndarray
    box: tuple[int, ...]


def cases() -> dict[str, Case]:
    """Return the launches by name; inputs are the same every time."""
    rng = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    bits = rng.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    grid = np.linspace(-130, 128, 8 * 4096, dtype=np.float32)
    edges = np.array([0, -0.0, -126, -126.5, -np.inf, np.inf, np.nan, 128], np.float32)
    halves = np.zeros((16, 16), np.float32)
    halves[0, :8] = [1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-12, 3e4, 3e-6, -0.1, 6e-8, 1 / 3]
    found = {
        "multiply-f16": Case(
            "multiply", 32, (normal(16, 16), normal(8, 16), Out((16, 8)), 0), 1e-6
        ),
        "multiply-bf16": Case(
            "multiply", 32, (normal(16, 16), normal(8, 16), Out((16, 8)), 1), 1e-6
        ),
        "round-f16": Case("multiply", 32, (halves, np.eye(8, 16, dtype="f"), Out((16, 8)), 0)),
        "round-bf16": Case("multiply", 32, (halves, np.eye(8, 16, dtype="f"), Out((16, 8)), 1)),
        "ldmatrix": Case("fragments", 32, (bits, Out((32, 10), "uint32"))),
        "cp-async": Case("pipeline", 64, (normal(700), Out((256,)), 3, 700)),
        "named-barriers": Case("producer", 96, (normal(32), Out((32,)))),
        "mbarrier": Case("ring", 64, (normal(7, 32), Out((32,)), 7)),
        "bulk-copies": Case("bulk_ring", 64, (normal(7, 64), Out((64,)), 7)),
        "exp2-edges": Case("powers", 8, (edges, Out((8,))), 2.0**-21),
    }
    for how in (0, 1, 2, 3, 4, 5, 8, 11, 13, 16, 17, 19, 24, 27, 29, 32, 33, 35, 43):
        kind = "bfloat16" if how & 1 else "float16"
        columns = 128 if how & 16 else 32 if how & 32 else 64
        a, b = (normal(n, 64).astype(backend.as_dtype(kind)).view(np.uint16) for n in (64, columns))
        words = [kind, "registers"[: 9 * (how >> 1 & 1)], "a.T"[: 3 * (how >> 2 & 1)]]
        name = "-".join(filter(None, ["wgmma", *words, "b.T"[: 3 * (how >> 3 & 1)], str(columns)]))
        found[name] = Case("warpgroup", 128, (a, b, Out((64, columns)), how), 1e-5, 1e-5)
    ring = normal(5, 64, 64).astype(backend.bfloat16).view(np.uint16)
    found["wgmma-ring"] = Case("warpgroup_ring", 384, (ring, Out((5, 64, 64)), 5))
    boxes = {"float32": (2, 2, 3, 32), "float16": (2, 1, 5, 64), "bfloat16": (1, 2, 9, 64)}
    # inside, over the ends of every axis, before their starts, outside
    for place in ((0, 0, 0, 0), (8, 1, 1, 0), (40, 3, 2, 1), (-8, -2, -1, -1), (80, 0, 0, 0)):
        for dtype, box in boxes.items():
            x = normal(2, 3, 5, 80).astype(backend.as_dtype(dtype))
            lines = int(np.prod(box[:-1]))
            name = "-".join(["box", dtype, *map(str, place)])
            args = (Map(x, box), Out((lines, 64), "uint16"), *place, lines)
            found[name] = Case("tensor_box", 64, args)
    tiles = normal(5, 64, 64).astype(backend.bfloat16)
    args = (Map(tiles[None], (1, 1, 64, 64)), Out((5, 64, 64)), 5)
    found["box-ring"] = Case("tensor_ring", 256, args)
    for i in range(4):
        part = np.ascontiguousarray(grid[i::4][:1024])
        found[f"exp2-{i}"] = Case("powers", 1024, (part, Out((1024,))), 2.0**-21)
    return found


def run(case: Case, on_gpu: bool) -> np.ndarray:
    """Launch a case on the GPU, or in the emulator, which has to be active."""
    xp = backend.namespace("cuda" if on_gpu else "cpu")
    args: list[Any] = []
    for value in case.args:
        if isinstance(value, Out):
            args.append(xp.zeros(value.shape, value.dtype))
        elif isinstance(value, Map):
            # (batch, row, head, column) in memory, as projections are: heads closer than rows
            memory = xp.asarray(np.ascontiguousarray(value.array.transpose(0, 2, 1, 3)))
            args.append(cuda.strided(memory.transpose(0, 2, 1, 3), value.box))
        else:
            args.append(xp.asarray(value) if isinstance(value, np.ndarray) else value)
    source = cuda.Source(SOURCE, since=90)
    source.launch(case.kernel, (1,), (case.block,), args)
    out = next(i for i, value in enumerate(case.args) if isinstance(value, Out))
    return backend.to_numpy(args[out])


def differences(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> int:
    """Return how many elements differ by more than allowed; NaN equals NaN."""
    same = np.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    return int((~same).sum())


def chosen(which: str = "") -> dict[str, Case]:
    """Return the cases that are asked for: "box", "not box" or all."""
    return {
        key: case
        for key, case in cases().items()
        if not which or key.startswith("box") == (which == "box")
    }


def main(arguments: Sequence[str] = ()) -> int:
    """Store what the hardware computes."""
    cupy = backend.cupy_module()
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    outputs = {}
    if STORED.exists():
        with np.load(STORED, allow_pickle=False) as stored:
            if str(stored["device"]) == name.decode():
                outputs = {key: stored[key] for key in stored.files if key != "device"}
    found = chosen(*arguments)
    outputs |= {key: run(case, on_gpu=True) for key, case in found.items()}
    with open(STORED, "wb") as file:
        np.savez_compressed(file, device=np.array(name.decode()), **outputs)
    print(f"{STORED}: {len(found)} outputs of {name.decode()}, {len(outputs)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
