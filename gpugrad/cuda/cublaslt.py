"""cublasLt by ctypes: what is needed of it for gemm. Nothing is loaded before the first product.

cublasLt stores matrices by columns. A row-major matrix is its own transpose read by columns, so
out = a @ b is computed as out.T = b.T @ a.T: cublasLt's A is our b, its B our a, its D our out,
its rows are our columns. Its "bias" runs along rows of D, our columns, and BGRADB, the sums of its
B over K, are the row sums of our a.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ._gemm_problem import Matrix, Problem

MAX_WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for Hopper
SUCCESS, NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 7, 15

DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # CUDA_R_...
COMPUTE_32F = 68  # float32 accumulation, and no TF32
EPILOGUES = {
    None: 1,
    "bias": 4,
    "gelu": 160,  # GELU_AUX; 164 with a bias
    "dgelu": 192,
    "dgelu_bgrad": 208,
    "bgrad": 512,  # BGRADB
}
BIAS = 4
# attributes of an operation
POINTER_MODE, TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 2, 3, 4, 7, 8
AUX_POINTER, AUX_LD, AUX_DATA_TYPE, BIAS_DATA_TYPE = 11, 12, 22, 26
# of a layout
BATCH_COUNT, STRIDED_BATCH_OFFSET = 5, 6
# of a preference
MAX_WORKSPACE_BYTES, REDUCTION_SCHEME_MASK, MIN_ALIGNMENT_A = 1, 3, 5  # B, C and D follow A
REDUCTION_IN_COMPUTE_TYPE = 2  # partial sums stay float32, so that the result is rounded once
POINTER_MODE_DEVICE = 1

Algorithm = ctypes.c_uint64 * 8


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class CublasLtError(RuntimeError):
    """A call of cublasLt failed; ``status`` is what it returned."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_ARGUMENTS: dict[str, Sequence[Any]] = {
    "cublasLtCreate": [_POINTER],
    "cublasLtMatmulDescCreate": [_POINTER, _INT, _INT],
    "cublasLtMatmulDescSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
    "cublasLtMatmulDescDestroy": [_POINTER],
    "cublasLtMatrixLayoutCreate": [
        _POINTER,
        _INT,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int64,
    ],
    "cublasLtMatrixLayoutSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
    "cublasLtMatrixLayoutDestroy": [_POINTER],
    "cublasLtMatmulPreferenceCreate": [_POINTER],
    "cublasLtMatmulPreferenceSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
    "cublasLtMatmulPreferenceDestroy": [_POINTER],
    "cublasLtMatmulAlgoGetHeuristic": [*[_POINTER] * 7, _INT, _POINTER, _POINTER],
    "cublasLtMatmulAlgoCheck": [_POINTER] * 8,
    "cublasLtMatmul": [*[_POINTER] * 14, _SIZE, _POINTER],
}


class Library:
    """The loaded library. ``functions`` is what ctypes loaded, or stands for it."""

    def __init__(self, functions: Any, path: str) -> None:
        self.functions, self.path = functions, path
        version = functions.cublasLtGetVersion
        version.argtypes, version.restype = [], ctypes.c_size_t
        name = functions.cublasLtGetStatusName
        name.argtypes, name.restype = [_INT], ctypes.c_char_p
        for function, arguments in _ARGUMENTS.items():
            found = getattr(functions, function)
            found.argtypes, found.restype = arguments, _INT
        self.version = int(version())

    def call(self, function: str, *args: Any, problem: Problem | None = None) -> None:
        """Call a function; CublasLtError if it does not succeed."""
        status = getattr(self.functions, function)(*args)
        if status != SUCCESS:
            raise self.error(function, status, problem)

    def error(self, function: str, status: int, problem: Problem | None = None) -> CublasLtError:
        """Return the error of a call that returned a status."""
        name = self.functions.cublasLtGetStatusName(status).decode()
        of = "" if problem is None else f"\n  for {described(problem)}"
        hint = ""
        if status == NOT_INITIALIZED:
            hint = "; is there a GPU, and is its driver new enough for this version?"
        return CublasLtError(
            f"{function} of cublasLt {self.version} ({self.path}) returned {name} ({status})"
            f"{hint}{of}",
            status,
        )


@functools.cache
def library() -> Library:
    """Load cublasLt; RuntimeError that says what to install where there is none."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
        return Library(ctypes.CDLL(path), path)
    except Exception as error:  # its type depends on the version of pathfinder
        reason = str(error).partition("\n")[0]
        raise RuntimeError(
            f"matrix products on a GPU need cublasLt ({reason}); "
            'pip install "gpugrad[cuda13]" brings it, `gpugrad doctor` checks'
        ) from error


def described(problem: Problem) -> str:
    """Return a problem in words, for messages."""

    def matrix(name: str, x: Matrix, dtype: str | None) -> str:
        kind = "columns" if x.transposed else "rows"
        batch = f", matrices {x.stride} apart" if problem.batch > 1 else ""
        return f"{name} {dtype} with {kind} {x.leading} apart{batch}, {x.alignment}-byte aligned"

    parts = [
        f"({problem.m}, {problem.k}) @ ({problem.k}, {problem.n}), {problem.batch} times",
        f"epilogue {problem.epilogue!r}",
        f"beta {problem.beta:g}",
        matrix("a", problem.a, problem.dtype),
        matrix("b", problem.b, problem.dtype),
        matrix("out", problem.out, problem.out_dtype),
    ]
    if problem.aux is not None:
        parts.append(matrix("aux", problem.aux, problem.out_dtype))
    if problem.bias_dtype is not None:
        parts.append(f"bias {problem.bias_dtype}, {problem.bias_alignment}-byte aligned")
    return "; ".join(parts)


# Descriptors


class Layout(NamedTuple):
    """A matrix as cublasLt sees it: by columns, ``leading`` elements from one to the next."""

    data_type: int
    rows: int
    columns: int
    leading: int
    batch: int
    stride: int


def layouts(problem: Problem) -> tuple[Layout, Layout, Layout]:
    """Return the layouts of cublasLt's A, B and D (C has D's)."""

    def layout(x: Matrix, dtype: str, rows: int, columns: int) -> Layout:
        if not x.transposed:  # by columns it is the transpose
            rows, columns = columns, rows
        kind = DATA_TYPES[dtype]
        return Layout(kind, rows, columns, x.leading, problem.batch, x.stride)

    m, n, k = problem.m, problem.n, problem.k
    return (
        layout(problem.b, problem.dtype, k, n),
        layout(problem.a, problem.dtype, m, k),
        layout(problem.out, problem.out_dtype, m, n),
    )


def attributes(problem: Problem) -> list[tuple[int, Any]]:
    """Return what is set in the operation's descriptor, as ctypes values, but for pointers."""
    epilogue = EPILOGUES[problem.epilogue]
    if problem.epilogue == "gelu" and problem.bias_dtype is not None:
        epilogue |= BIAS
    found: list[tuple[int, Any]] = [
        (TRANSA, ctypes.c_int32(problem.b.transposed)),
        (TRANSB, ctypes.c_int32(problem.a.transposed)),
        (EPILOGUE, ctypes.c_uint32(epilogue)),
    ]
    if problem.device_alpha:
        found.append((POINTER_MODE, ctypes.c_int32(POINTER_MODE_DEVICE)))
    if problem.bias_dtype is not None:
        found.append((BIAS_DATA_TYPE, ctypes.c_int32(DATA_TYPES[problem.bias_dtype])))
    if problem.aux is not None:
        found.append((AUX_LD, ctypes.c_int64(problem.aux.leading)))
        found.append((AUX_DATA_TYPE, ctypes.c_int32(DATA_TYPES[problem.out_dtype])))
    return found


def preferences(problem: Problem) -> list[tuple[int, Any]]:
    """Return what the search for an algorithm may assume and use."""
    out = problem.out.alignment
    alignments = (problem.b.alignment, problem.a.alignment, out, out)
    return [
        (MAX_WORKSPACE_BYTES, ctypes.c_uint64(MAX_WORKSPACE)),
        (REDUCTION_SCHEME_MASK, ctypes.c_uint32(REDUCTION_IN_COMPUTE_TYPE)),
        *((MIN_ALIGNMENT_A + i, ctypes.c_uint32(n)) for i, n in enumerate(alignments)),
    ]


class Operation:
    """The descriptors of a problem: ``descriptor``, and the layouts ``a``, ``b`` and ``d``."""

    def __init__(self, lt: Library, problem: Problem) -> None:
        self.lt, self.problem = lt, problem
        self.descriptor = ctypes.c_void_p()
        data_type = DATA_TYPES["float32"]  # of alpha and beta
        lt.call("cublasLtMatmulDescCreate", ctypes.byref(self.descriptor), COMPUTE_32F, data_type)
        for attribute, value in attributes(problem):
            self._set("cublasLtMatmulDescSetAttribute", self.descriptor, attribute, value)
        self.a, self.b, self.d = map(self._layout, layouts(problem))
        self.point(problem.bias_alignment, problem.aux.alignment if problem.aux else 0)

    def _layout(self, layout: Layout) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.lt.call(
            "cublasLtMatrixLayoutCreate", ctypes.byref(made), *layout[:4], problem=self.problem
        )
        if layout.batch > 1:
            count, stride = ctypes.c_int32(layout.batch), ctypes.c_int64(layout.stride)
            set_attribute = "cublasLtMatrixLayoutSetAttribute"
            self._set(set_attribute, made, BATCH_COUNT, count)
            self._set(set_attribute, made, STRIDED_BATCH_OFFSET, stride)
        return made

    def _set(self, function: str, descriptor: Any, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self.lt.call(
            function, descriptor, attribute, ctypes.byref(value), size, problem=self.problem
        )

    def point(self, bias: int, aux: int) -> None:
        """Set where bias and aux lie; heuristics look at the alignment of these addresses."""
        for attribute, address, wanted in (
            (BIAS_POINTER, bias, self.problem.bias_dtype is not None),
            (AUX_POINTER, aux, self.problem.aux is not None),
        ):
            if wanted:
                pointer = ctypes.c_void_p(address)
                self._set("cublasLtMatmulDescSetAttribute", self.descriptor, attribute, pointer)

    def heuristics(self, handle: Any, count: int) -> list[Heuristic]:
        """Return the algorithms that cublasLt proposes, the most promising first; none if none."""
        preference, found = ctypes.c_void_p(), ctypes.c_int()
        results = (Heuristic * count)()
        self.lt.call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        try:
            for attribute, value in preferences(self.problem):
                self._set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value)
            self.lt.call(
                "cublasLtMatmulAlgoGetHeuristic",
                handle,
                self.descriptor,
                self.a,
                self.b,
                self.d,
                self.d,
                preference,
                count,
                results,
                ctypes.byref(found),
                problem=self.problem,
            )
        except CublasLtError as error:
            if error.status not in (INVALID_VALUE, NOT_SUPPORTED):
                raise
            return []
        finally:
            self.lt.call("cublasLtMatmulPreferenceDestroy", preference)
        return [r for r in results[: found.value] if r.state == SUCCESS]

    def is_valid(self, handle: Any, algorithm: Any) -> bool:
        """Return whether an algorithm, from a file say, computes this here."""
        result = Heuristic()
        status = self.lt.functions.cublasLtMatmulAlgoCheck(
            handle,
            self.descriptor,
            self.a,
            self.b,
            self.d,
            self.d,
            ctypes.byref(algorithm),
            ctypes.byref(result),
        )
        return status == SUCCESS and result.workspace <= MAX_WORKSPACE

    def run(
        self,
        handle: Any,
        algorithm: Any,
        addresses: tuple[int, int, int],
        alpha: Any,
        beta: Any,
        workspace: int,
        stream: int,
    ) -> None:
        """Queue the product of a and b at ``addresses`` into out, the third of them."""
        a, b, out = addresses
        self.lt.call(
            "cublasLtMatmul",
            handle,
            self.descriptor,
            alpha,
            b,
            self.a,
            a,
            self.b,
            beta,
            out,
            self.d,
            out,
            self.d,
            ctypes.byref(algorithm),
            workspace,
            MAX_WORKSPACE,
            stream,
            problem=self.problem,
        )

    def close(self) -> None:
        """Free the descriptors."""
        for layout in (self.a, self.b, self.d):
            self.lt.call("cublasLtMatrixLayoutDestroy", layout)
        self.lt.call("cublasLtMatmulDescDestroy", self.descriptor)
