"""Every planted mistake is reported: the right kind, variable and line, under every order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gpugrad.cuda import Strided, source, tensor_map
from gpugrad.emulator import Module, Settings, faults

PLANTED = Path(__file__).with_name("planted.cu")
PTX = Path(__file__).with_name("ptx.cu")


class Planted(NamedTuple):
    """A kernel, the faults it may raise (by the order), the lines it may be reported at."""

    file: str
    kernel: str
    kinds: tuple[type[faults.Fault], ...]
    variable: str | None
    grid: int
    lines: frozenset[int]


def planted(path: Path) -> list[Planted]:
    """Read a source: a comment per kernel says the kind, ``// HERE`` the lines."""
    found = []
    text = path.read_text(encoding="utf-8")
    heads = list(
        re.finditer(r"^// ([\w/]+)(?: variable=(\w+))?:(.*)\nextern.* (\w+)\(", text, re.M)
    )
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        end = following.start() if following else len(text)
        first = text.count("\n", 0, head.start()) + 1
        lines = text[head.start() : end].split("\n")
        marked = frozenset(first + i for i, line in enumerate(lines) if line.endswith("// HERE"))
        grid = re.search(r"GRID (\d+)", head[3])
        kinds = tuple(getattr(faults, kind) for kind in head[1].split("/"))
        found.append(
            Planted(path.name, head[4], kinds, head[2], int(grid[1]) if grid else 1, marked)
        )
    return found


THREADS = {
    "missing_syncwarp": 32,
    "shuffle_as_fence": 32,
    "half_syncwarp": 32,
    "copy_without_wait": 32,
    "copy_with_weak_wait": 32,
    "copy_without_commit": 32,
    "copy_without_barrier": 32,
    "copy_into_read_buffer": 32,
    "misaligned_copy": 16,
    "copy_past_the_end": 32,
    "misaligned_rows": 32,
    "ldmatrix_from_global": 32,
    "copy_to_global": 32,
    "copy_from_shared": 32,
    "mbarrier_in_global": 32,
    "bulk_copy_to_global": 32,
    "ldmatrix_without_syncwarp": 32,
    "mma_in_divergent_code": 32,
    "mma_at_two_lines": 32,
    "named_barrier_of_others": 96,
    "wgmma_without_proxy_fence": 128,
    "proxy_fence_after_barrier": 256,
    "wgmma_tile_overwritten": 128,
    "wgmma_weak_wait": 128,
    "wgmma_sums_read_early": 128,
    "wgmma_sums_written_early": 128,
    "wgmma_fragments_written_early": 128,
    "wgmma_without_fence": 128,
    "wgmma_without_second_fence": 128,
    "wgmma_sums_behind_fence": 128,
    "wgmma_registers_behind_fence": 128,
    "wgmma_fragments_loaded_behind_fence": 128,
    "wgmma_of_different_tiles": 128,
    "wgmma_of_three_warps": 128,
    "wgmma_wrong_stride": 128,
    "wgmma_unwritten_tile": 128,
}
# how many elements the first argument has, where the others' 128 would do
SHORT = {
    "one_past_the_end": 60,
    "one_before_the_start": 60,
    "vector_past_the_end": 62,
    "copy_past_the_end": 66,
}
CASES = planted(PLANTED) + planted(PTX)
SETTINGS = (
    Settings("checked", "ascending", seconds=0.3),
    Settings("checked", "descending", poison=0x7E, seconds=0.3, late_copies=True),
    Settings("checked", "random", seed=7, seconds=0.3),
)


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return {path.name: Module(source.inline(path), name=path.name) for path in (PLANTED, PTX)}


def test_there_are_at_least_24_kinds() -> None:
    assert len(CASES) >= 56
    assert all(case.lines for case in CASES)
    assert len({kind for case in CASES for kind in case.kinds}) >= 12


def arguments(kernel: str, module: Module) -> list:
    """Arrays of 128 elements (fewer where a bound is crossed), and what n should be."""
    values: list = []
    for parameter in module.signatures[kernel]:
        if parameter.type == tensor_map.NAME:
            box = None if "open" in kernel else (1, 1, 8, 64)
            values.append(Strided(np.ones((1, 1, 8, 64), np.float16), box))
        elif parameter.dtype is None:
            dtype = np.int32 if "int" in parameter.type else np.float32
            values.append(np.arange(2 * 64, dtype=dtype))
        else:
            values.append(number(kernel))
    if kernel in SHORT:
        start = np.zeros(4096, np.float32)
        aligned = -(start.ctypes.data // 4) % 4 + 1024
        values[0] = start[aligned : aligned + SHORT[kernel]]
    if kernel == "null_pointer":
        values[0] = None
    if kernel == "write_to_input":
        values[0].flags.writeable = False
    if kernel == "wait_for_block":
        values[0][:2] = 0
    return values


def number(kernel: str) -> int:
    """The value of ``n`` that makes the mistake matter."""
    return {
        "one_past_the_end": 60,
        "vector_past_the_end": 62,
        "copy_past_the_end": 66,
        "overflowing_offset": 2**30,
        "division_by_zero": 10,
        "early_return": 40,
        "barrier_in_loop": 63,
        "shuffle_of_ended_lanes": 20,
        "failed_assertion": 7,
    }.get(kernel, 64)


@pytest.mark.parametrize("how", SETTINGS, ids=lambda how: how.order)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kernel)
def test_is_reported(case: Planted, how: Settings, modules: dict[str, Module]) -> None:
    module = modules[case.file]
    threads = THREADS.get(case.kernel, 64)
    shared = 256 if "dynamic" in case.kernel else 0
    kernel = module.get_function(case.kernel)
    with pytest.raises(faults.Fault) as caught:
        kernel((case.grid,), (threads,), arguments(case.kernel, module), shared, how=how)
    fault = caught.value
    assert type(fault) in case.kinds, fault
    assert (fault.file, fault.line in case.lines) == (case.file, True), fault
    assert fault.kernel == case.kernel
    assert fault.block is not None
    assert fault.thread is not None
    if case.variable:
        assert fault.variable is not None, fault
        assert fault.variable.split()[0] == case.variable, fault
    if type(fault) is faults.Race:
        if "registers of a wgmma" in str(fault):  # one thread's own
            return
        assert fault.other is not None
        assert (fault.other.file, fault.other.line in case.lines) == (case.file, True), fault
        same_thread = (fault.block, fault.thread) == (fault.other.block, fault.other.thread)
        assert not same_thread or "asynchronous" in str(fault)
