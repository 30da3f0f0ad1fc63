"""Every planted mistake is reported: the right kind, variable and line, under every order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gpugrad.cuda import source
from gpugrad.emulator import Module, Settings, faults

PLANTED = Path(__file__).with_name("planted.cu")


class Planted(NamedTuple):
    """A kernel, the fault it must raise, the lines it may be reported at."""

    kernel: str
    fault: type[faults.Fault]
    variable: str | None
    grid: int
    lines: frozenset[int]


def planted() -> list[Planted]:
    """Read planted.cu: a comment per kernel says the fault, ``// HERE`` the lines."""
    found = []
    text = PLANTED.read_text(encoding="utf-8")
    heads = list(re.finditer(r"^// (\w+)(?: variable=(\w+))?:(.*)\nextern.* (\w+)\(", text, re.M))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        end = following.start() if following else len(text)
        first = text.count("\n", 0, head.start()) + 1
        lines = text[head.start() : end].split("\n")
        marked = frozenset(first + i for i, line in enumerate(lines) if line.endswith("// HERE"))
        grid = re.search(r"GRID (\d+)", head[3])
        fault = getattr(faults, head[1])
        found.append(Planted(head[4], fault, head[2], int(grid[1]) if grid else 1, marked))
    return found


CASES = planted()
SETTINGS = (
    Settings("checked", "ascending", seconds=0.3),
    Settings("checked", "descending", poison=0x7E, seconds=0.3),
    Settings("checked", "random", seed=7, seconds=0.3),
)


@pytest.fixture(scope="module")
def module() -> Module:
    return Module(source.inline(PLANTED), name="planted.cu")


def test_there_are_at_least_24_kinds() -> None:
    assert len(CASES) >= 36
    assert all(case.lines for case in CASES)
    assert len({case.fault for case in CASES}) >= 12


def arguments(kernel: str, module: Module) -> list:
    """Arrays of 64 elements (60 for x where a bound is crossed), 64 for n."""
    values: list = []
    for parameter in module.signatures[kernel]:
        if parameter.dtype is None:
            dtype = np.int32 if "int" in parameter.type else np.float32
            values.append(np.arange(2 * 64, dtype=dtype))
        else:
            values.append(number(kernel))
    if kernel in ("one_past_the_end", "one_before_the_start", "vector_past_the_end"):
        memory = np.zeros(4096, np.float32)
        values[0] = memory[1024 : 1024 + 62 - 2 * (kernel != "vector_past_the_end")]
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
        "overflowing_offset": 2**30,
        "division_by_zero": 10,
        "early_return": 40,
        "barrier_in_loop": 63,
        "shuffle_of_ended_lanes": 20,
        "failed_assertion": 7,
    }.get(kernel, 64)


@pytest.mark.parametrize("how", SETTINGS, ids=lambda how: how.order)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kernel)
def test_is_reported(case: Planted, how: Settings, module: Module) -> None:
    threads = 32 if case.kernel in ("missing_syncwarp", "shuffle_as_fence", "half_syncwarp") else 64
    shared = 256 if "dynamic" in case.kernel else 0
    kernel = module.get_function(case.kernel)
    with pytest.raises(faults.Fault) as caught:
        kernel((case.grid,), (threads,), arguments(case.kernel, module), shared, how=how)
    fault = caught.value
    assert type(fault) is case.fault, fault
    assert (fault.file, fault.line in case.lines) == ("planted.cu", True), fault
    assert fault.kernel == case.kernel
    assert fault.block is not None
    assert fault.thread is not None
    if case.variable:
        assert fault.variable is not None, fault
        assert fault.variable.split()[0] == case.variable, fault
    if case.fault is faults.Race:
        assert fault.other is not None
        assert (fault.other.file, fault.other.line in case.lines) == ("planted.cu", True), fault
        assert (fault.block, fault.thread) != (fault.other.block, fault.other.thread)
