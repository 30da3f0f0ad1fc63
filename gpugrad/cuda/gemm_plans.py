"""Plans: which of cublasLt's algorithms computes a Problem fastest on a GPU.

A plan is made when a Problem first comes up on a device: the algorithms that cublasLt proposes are
timed there, in turns, and the fastest is kept in memory and in a file. While a stream is being
captured nothing is timed. A plan that was made stays, so results do not change within a process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import json
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend
from . import cache
from ._gemm_problem import Problem
from .compiler import cache_folder
from .cublaslt import (
    MAX_WORKSPACE,
    NOT_SUPPORTED,
    Algorithm,
    CublasLtError,
    Heuristic,
    Operation,
    described,
    library,
)
from .kernel import address

PROPOSED = 16  # algorithms that are timed
ROUNDS = 5
_MAGIC = b"gpugrad gemm 1\n"

_lock = threading.RLock()
_devices: dict[int, Device] = {}
_plans: dict[tuple[int, Problem], Plan] = {}
_supported: dict[tuple[int, Problem], bool] = {}


def _cupy() -> Any:
    return backend.cupy_module()


class Device:
    """What all plans of one GPU share: the handle, and a workspace for each stream.

    Products on one stream run one after the other, so they can share a workspace. A captured graph
    keeps the workspace of the stream it was captured on: launch it on that stream.
    """

    def __init__(self, number: int) -> None:
        cupy = _cupy()
        self.lt = library()
        self.handle = ctypes.c_void_p()
        self.lt.call("cublasLtCreate", ctypes.byref(self.handle))
        name = cupy.cuda.runtime.getDeviceProperties(number)["name"]
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.betas = cupy.asarray(np.array([0, 1], np.float32))  # for an alpha on the device
        self._workspaces: dict[int, Any] = {}

    def workspace(self, stream: int) -> int:
        """Return the address of a stream's workspace."""
        memory = self._workspaces.get(stream)
        if memory is None:
            memory = self._workspaces[stream] = _cupy().cuda.alloc(MAX_WORKSPACE)
        return int(memory.ptr)


@dataclasses.dataclass
class Plan:
    """A Problem on a device, with the algorithm that computes it."""

    device: Device
    operation: Operation
    algorithm: Any
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class _Call:
    """The addresses and numbers of one product, in the order in which cublasLt takes them."""

    def __init__(
        self, device: Device, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any, beta: float
    ) -> None:
        self.device = device
        self.matrices = address(a), address(b), address(out)
        self.bias = 0 if bias is None else address(bias)
        self.aux = 0 if aux is None else address(aux)
        self.stream = int(_cupy().cuda.get_current_stream().ptr)
        if backend.is_array(alpha):
            self.alpha: Any = address(alpha)
            self.beta: Any = address(device.betas) + 4 * int(beta)
        else:
            self.alpha = ctypes.byref(ctypes.c_float(alpha))
            self.beta = ctypes.byref(ctypes.c_float(beta))

    def run(self, operation: Operation, algorithm: Any, out: int | None = None) -> None:
        """Queue the product; ``out`` is another place for the result."""
        a, b, place = self.matrices
        operation.point(self.bias, self.aux)
        operation.run(
            self.device.handle,
            algorithm,
            (a, b, place if out is None else out),
            self.alpha,
            self.beta,
            self.device.workspace(self.stream),
            self.stream,
        )


def run(problem: Problem, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any) -> None:
    """Queue a product of cupy arrays on the current stream.

    Raises CublasLtError, which names the library, its version, the function, the status and the
    problem.
    """
    number = out.device.id
    cuda = _cupy().cuda
    if cuda.runtime.getDevice() != number:
        with cuda.Device(number):
            run(problem, a, b, out, bias, aux, alpha)
        return
    call = _Call(_device(number), a, b, out, bias, aux, alpha, problem.beta)
    plan = _plans.get((number, problem))
    if plan is None:
        with _lock:
            plan = _plans.get((number, problem))
            if plan is None:
                plan = _plans[number, problem] = _made(problem, call)
    with plan.lock:  # the descriptor holds the addresses of bias and aux
        call.run(plan.operation, plan.algorithm)


def supports(problem: Problem) -> bool:
    """Return whether cublasLt knows an algorithm for a problem on the current device."""
    if problem.epilogue is None:
        return True
    key = (_cupy().cuda.runtime.getDevice(), problem)
    known = _supported.get(key)
    if known is None:
        device = _device(key[0])
        operation = Operation(device.lt, problem)
        known = _supported[key] = bool(operation.heuristics(device.handle, 1))
        operation.close()
    return known


def _device(number: int) -> Device:
    found = _devices.get(number)
    if found is None:
        with _lock:
            found = _devices.get(number)
            if found is None:
                found = _devices[number] = Device(number)
    return found


def _made(problem: Problem, call: _Call) -> Plan:
    """Return a plan with the algorithm of an earlier run, or of the fastest tried now."""
    device = call.device
    operation = Operation(device.lt, problem)
    algorithm = _remembered(device, problem)
    if algorithm is not None and operation.is_valid(device.handle, algorithm):
        return Plan(device, operation, algorithm)
    found = operation.heuristics(device.handle, PROPOSED)
    if not found:
        raise device.lt.error("cublasLtMatmulAlgoGetHeuristic", NOT_SUPPORTED, problem)
    best = 0
    if len(found) > 1 and not _cupy().cuda.get_current_stream().is_capturing():
        times = _times(operation, call, found)
        if times:
            best = min(range(len(times)), key=times.__getitem__)
            _remember(device, problem, found[best].algorithm, times)
    algorithm = Algorithm(*found[best].algorithm)
    return Plan(device, operation, algorithm)


# Timing


def _times(operation: Operation, call: _Call, found: Sequence[Heuristic]) -> list[float]:
    """Return the median milliseconds of each algorithm; nothing if there is no room to try them.

    What is added to, or lies where an operand does, is tried on other memory.
    """
    cuda = _cupy().cuda
    problem, place, scratch = operation.problem, None, None
    if problem.beta or _overlaps(problem, call):
        try:
            scratch = cuda.alloc(_extent(problem, "out"))
        except MemoryError:
            return []
        scratch.memset_async(0, _extent(problem, "out"))
        place = int(scratch.ptr)
    works: list[int] = []
    for i, heuristic in enumerate(found):
        try:
            call.run(operation, heuristic.algorithm, place)
        except CublasLtError:
            continue
        works.append(i)
    samples = _interleaved(
        [functools.partial(call.run, operation, found[i].algorithm, place) for i in works]
    )
    times = [float("inf")] * len(found)
    for i, sample in zip(works, samples, strict=True):
        times[i] = statistics.median(sample)
    return times if works else []


def _interleaved(runs: Sequence[Callable[[], None]]) -> list[list[float]]:
    """Return the milliseconds of each run in each of ROUNDS rounds of all of them."""
    cuda = _cupy().cuda
    stream = cuda.get_current_stream()
    pairs: list[list[tuple[Any, Any]]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run_once, events in zip(runs, pairs, strict=True):
            start, stop = cuda.Event(), cuda.Event()
            start.record(stream)
            run_once()
            stop.record(stream)
            events.append((start, stop))
    stream.synchronize()
    return [[cuda.get_elapsed_time(*events) for events in each] for each in pairs]


def _overlaps(problem: Problem, call: _Call) -> bool:
    a, b, out = call.matrices
    others = [(a, _extent(problem, "a")), (b, _extent(problem, "b"))]
    if problem.aux is not None:
        others.append((call.aux, _extent(problem, "aux")))
    size = _extent(problem, "out")
    return any(out < start + length and start < out + size for start, length in others)


def _extent(problem: Problem, name: str) -> int:
    """Return how many bytes lie between the begin and the end of an operand."""
    m, n, k = problem.m, problem.n, problem.k
    rows, columns = {"a": (m, k), "b": (k, n)}.get(name, (m, n))
    matrix = getattr(problem, name)
    if matrix.transposed:
        rows, columns = columns, rows
    elements = (problem.batch - 1) * matrix.stride + (rows - 1) * matrix.leading + columns
    dtype = problem.dtype if name in ("a", "b") else problem.out_dtype
    return int(elements) * backend.as_dtype(dtype).itemsize


# Memory beyond the process


def _path(device: Device, problem: Problem) -> Any:
    key = json.dumps([device.name, device.lt.version, MAX_WORKSPACE, PROPOSED, problem])
    return cache_folder() / "gemm" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _remembered(device: Device, problem: Problem) -> Any:
    """Return the algorithm of an earlier run, None if there was none or its file is damaged."""
    try:
        body = cache.read(_path(device, problem), _MAGIC)
    except OSError:
        return None
    if body is None:
        return None
    return Algorithm.from_buffer_copy(bytes.fromhex(json.loads(body)["algorithm"]))


def _remember(
    device: Device, problem: Problem, algorithm: Any, milliseconds: Sequence[float]
) -> None:
    entry = {
        "device": device.name,
        "cublasLt": device.lt.version,
        "problem": described(problem),
        "algorithm": bytes(algorithm).hex(),
        "milliseconds": [t if t < float("inf") else None for t in milliseconds],
    }
    try:
        cache.write(_path(device, problem), _MAGIC, json.dumps(entry, indent=1).encode())
    except OSError:  # a folder that cannot be written costs time in the next process, no more
        return
