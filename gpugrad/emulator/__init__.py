"""Runs CUDA kernels on the CPU, and reports what is wrong with them.

The sources that NVRTC compiles for the GPU are compiled by g++ here; threads become fibers, blocks
run one after another. In the "checked" build the compiler hands over every load and store, so data
races, reads of uninitialised memory, accesses out of bounds, misalignment and overflow become
Python exceptions that name the kernel, block, thread, variable and line. Of the instructions of
newer GPUs it knows mma, bulk copies (of boxes too, by the bits of a tensor map) and the products of
warpgroups (wgmma, by the bits of a descriptor): these are under way until they are waited for, and
see ordinary stores only behind a proxy fence.

A barrier is for all threads of its block: one that returned before ``__syncthreads`` makes it
divergent, though a GPU may let it pass.

A plain read beside atomics is a race, as in CUDA's memory model (one through a pointer to volatile
is none); volatile accesses race with each other. A thread that waits in a loop for another one lets
it run if the loop has an atomic and both are of one block: blocks run one after another.
``__device__`` variables keep their values from run to run, also from one of ``check`` to the next.

What it cannot tell:

- an index that leaves a shared array through a pointer and lands in the next one, or a local array;
- a shared array read as float4 without ``__align__(16)``: here arrays lie at multiples of 16 bytes;
- in some order of threads, a race with the third of several unordered reads of one place: two are
  remembered;
- in structs that are copied whole an unwritten member from padding, if it is smaller than another
  member (in an array from ``empty`` it reports both);
- reads of local variables that nobody set, unless g++ warns of them or two contents of them, as
  ``check`` compares, change the results;
- static shared memory beyond what a block has, where functions that the kernel calls declare it;
- speed;
- the last bits of results (libm instead of the GPU's functions, no contraction to fma, another
  order inside mma);
- whether inline assembly does what its emulated body does.
"""

from ..cuda.emulation import Settings, active, enabled, settings
from .check import SWEEP, check, sweep
from .faults import (
    AssertionFailed,
    Deadlock,
    DivergentBarrier,
    Division,
    Fault,
    MemoryFault,
    Misaligned,
    OrderDependent,
    OutOfBounds,
    Overflow,
    Place,
    Race,
    ReadOnly,
    StackOverflow,
    Timeout,
    Undefined,
    Uninitialised,
    WarpMismatch,
)
from .memory import empty
from .module import Kernel, Module

__all__ = [
    "SWEEP",
    "AssertionFailed",
    "Deadlock",
    "DivergentBarrier",
    "Division",
    "Fault",
    "Kernel",
    "MemoryFault",
    "Misaligned",
    "Module",
    "OrderDependent",
    "OutOfBounds",
    "Overflow",
    "Place",
    "Race",
    "ReadOnly",
    "Settings",
    "StackOverflow",
    "Timeout",
    "Undefined",
    "Uninitialised",
    "WarpMismatch",
    "active",
    "check",
    "empty",
    "enabled",
    "settings",
    "sweep",
]
