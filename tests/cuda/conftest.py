"""cublasLt without a GPU: a stand-in that takes the same calls and computes by columns with NumPy.

Its functions are C functions to ctypes, called with pointers like those of the library. What it
multiplies it finds through the descriptors, layouts and addresses that it is given, nothing else.
CuPy's arrays lie in host memory here.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpugrad import backend
from gpugrad.cuda import cublaslt, gemm_plans

SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15
_NAMES = {
    INVALID_VALUE: b"CUBLAS_STATUS_INVALID_VALUE",
    NOT_SUPPORTED: b"CUBLAS_STATUS_NOT_SUPPORTED",
}
_DTYPES = {0: backend.float32, 2: backend.float16, 14: backend.bfloat16}
_MAGIC = 0xA190

# in the numbers of cublasLt.h, written down here once more on purpose
_POINTER_MODE, _TRANSA, _TRANSB, _EPILOGUE, _BIAS_POINTER = 2, 3, 4, 7, 8
_AUX_POINTER, _AUX_LD, _AUX_TYPE, _BIAS_TYPE = 11, 12, 22, 26
_ATTRIBUTES = {
    **dict.fromkeys((_POINTER_MODE, _TRANSA, _TRANSB, _AUX_TYPE, _BIAS_TYPE), "i"),
    _EPILOGUE: "I",
    **dict.fromkeys((_BIAS_POINTER, _AUX_POINTER), "Q"),
    _AUX_LD: "q",
}
_SIZES = {"i": 4, "I": 4, "Q": 8, "q": 8}


def gelu(h: np.ndarray) -> np.ndarray:
    """Return GELU by tanh, in float64."""
    h = h.astype(np.float64)
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def gelu_derivative(h: np.ndarray) -> np.ndarray:
    """Return the derivative of gelu, in float64."""
    h = h.astype(np.float64)
    t = np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))
    return 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * h * h)


def memory(address: int, dtype: np.dtype, shape: tuple, strides: tuple) -> np.ndarray:
    """Return the array of elements at an address; strides in elements."""
    if not address or address % dtype.itemsize:
        raise AssertionError(f"{address:#x} is no address of a {dtype}")
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    raw = (ctypes.c_char * (extent * dtype.itemsize)).from_address(address)
    strides = tuple(s * dtype.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(np.frombuffer(raw, dtype), shape, strides)


class StandIn:
    """The functions of cublasLt that gpugrad uses.

    ``seconds`` are those each proposed algorithm takes, None for one that fails to run;
    ``unknown`` are epilogues it has no algorithm for. ``failures`` collects what went wrong inside
    a function, where no exception can pass.
    """

    def __init__(self) -> None:
        self.version = 130100
        self.seconds: list[float | None] = [3.0, 1.0, 2.0]
        self.unknown: set[int] = set()
        self.clock = 0.0
        self.ran: list[tuple[int, int]] = []  # algorithm and the address of the result
        self.objects: dict[int, dict] = {}
        self.failures: list[BaseException] = []
        self._number = 0x1000
        self._names = {k: ctypes.create_string_buffer(v) for k, v in _NAMES.items()}
        self._other = ctypes.create_string_buffer(b"CUBLAS_STATUS_OTHER")
        self.cublasLtGetVersion = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: self.version)
        self.cublasLtGetStatusName = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(
            lambda status: ctypes.addressof(self._names.get(status, self._other))
        )
        for name, arguments in cublaslt._ARGUMENTS.items():
            kind = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)
            setattr(self, name, kind(self._guarded(getattr(self, f"_{name[8:]}"))))

    def _guarded(self, function: Callable[..., int | None]) -> Callable[..., int]:
        def run(*args: Any) -> int:
            try:
                return function(*args) or SUCCESS
            except BaseException as error:
                self.failures.append(error)
                return 14

        return run

    def _new(self, place: int, **values: Any) -> None:
        self._number += 16
        self.objects[self._number] = values
        ctypes.c_void_p.from_address(place).value = self._number

    def _Create(self, place: int) -> None:
        self._new(place, kind="handle")

    def _MatmulDescCreate(self, place: int, compute: int, scale: int) -> None:
        assert (compute, scale) == (68, 0)
        self._new(place, kind="operation", **{str(k): 0 for k in _ATTRIBUTES})

    def _MatmulDescSetAttribute(self, at: int, attribute: int, value: int, size: int) -> None:
        code = _ATTRIBUTES[attribute]
        assert size == _SIZES[code], attribute
        (number,) = np.frombuffer(ctypes.string_at(value, size), code)
        self._object(at, "operation")[str(attribute)] = int(number)

    def _MatrixLayoutCreate(self, place: int, dtype: int, rows: int, columns: int, ld: int) -> int:
        if not (rows and columns and ld >= rows):
            return INVALID_VALUE
        layout = {"dtype": _DTYPES[dtype], "rows": rows, "columns": columns, "ld": ld}
        self._new(place, kind="layout", batch=1, stride=0, **layout)
        return SUCCESS

    def _MatrixLayoutSetAttribute(self, at: int, attribute: int, value: int, size: int) -> None:
        name, code = {5: ("batch", "i"), 6: ("stride", "q")}[attribute]
        assert size == _SIZES[code]
        (number,) = np.frombuffer(ctypes.string_at(value, size), code)
        self._object(at, "layout")[name] = int(number)

    def _MatmulPreferenceCreate(self, place: int) -> None:
        self._new(place, kind="preference")

    def _MatmulPreferenceSetAttribute(self, at: int, attribute: int, value: int, size: int) -> None:
        assert size == (8 if attribute == 1 else 4)
        number = int.from_bytes(ctypes.string_at(value, size), "little")
        self._object(at, "preference")[str(attribute)] = number

    def _destroyed(self, at: int) -> None:
        del self.objects[at]

    _MatmulDescDestroy = _MatrixLayoutDestroy = _MatmulPreferenceDestroy = _destroyed

    def _object(self, at: int, kind: str) -> dict:
        found = self.objects[at]
        assert found["kind"] == kind
        return found

    def _MatmulAlgoGetHeuristic(self, handle: int, op: int, a: int, b: int, *rest: int) -> int:
        c, d, preference, count, results, returned = rest
        operation = self._object(op, "operation")
        assert c == d
        if operation[str(_EPILOGUE)] in self.unknown:
            return NOT_SUPPORTED
        asked = self._object(preference, "preference")
        assert asked["1"] == 32 << 20
        assert asked["3"] == 2  # partial sums in float32
        operation["alignment"] = [asked[str(k)] for k in (5, 6, 8)]
        for name in (_BIAS_POINTER, _AUX_POINTER):
            address = operation[str(name)]
            operation[f"{name} alignment"] = min(16, address & -address)
        found = min(count, len(self.seconds))
        out = (cublaslt.Heuristic * found).from_address(results)
        for i in range(found):
            out[i].algorithm[0], out[i].algorithm[1] = i, _MAGIC
            out[i].state, out[i].workspace = SUCCESS, 1 << 20
        ctypes.c_int.from_address(returned).value = found
        return SUCCESS

    def _MatmulAlgoCheck(
        self, handle: int, op: int, a: int, b: int, c: int, d: int, algorithm: int, result: int
    ) -> int:
        number, magic = np.frombuffer(ctypes.string_at(algorithm, 16), np.uint64)
        known = magic == _MAGIC and number < len(self.seconds)
        return SUCCESS if known else INVALID_VALUE

    def _Matmul(
        self,
        handle: int,
        op: int,
        alpha: int,
        a: int,
        a_layout: int,
        b: int,
        b_layout: int,
        beta: int,
        c: int,
        c_layout: int,
        d: int,
        d_layout: int,
        algorithm: int,
        workspace: int,
        size: int,
        stream: int | None,
    ) -> int:
        self._object(handle, "handle")
        operation = self._object(op, "operation")
        number, magic = np.frombuffer(ctypes.string_at(algorithm, 16), np.uint64)
        assert magic == _MAGIC
        assert size == 32 << 20
        memory(workspace, np.dtype("uint8"), (size,), (1,))[...] = 0xEE  # it is there
        seconds = self.seconds[int(number)]
        if seconds is None:
            return NOT_SUPPORTED
        assert (c, c_layout) == (d, d_layout)
        for address, bytes_ in zip((a, b, d), operation.get("alignment", ()), strict=False):
            assert address % bytes_ == 0
        self.clock += seconds
        self.ran.append((int(number), d))
        factors = [ctypes.c_float.from_address(x).value for x in (alpha, beta)]
        layouts = [self._object(x, "layout") for x in (a_layout, b_layout, d_layout)]
        self._multiply(operation, (a, b, d), layouts, *factors)
        return SUCCESS

    def _multiply(
        self, operation: dict, addresses: tuple, layouts: list, alpha: float, beta: float
    ) -> None:
        x, y, out = (
            memory(
                address,
                at["dtype"],
                (at["batch"], at["rows"], at["columns"]),
                (at["stride"], 1, at["ld"]),
            )
            for address, at in zip(addresses, layouts, strict=True)
        )
        assert x.dtype == y.dtype
        x = x.swapaxes(1, 2) if operation[str(_TRANSA)] else x
        y = y.swapaxes(1, 2) if operation[str(_TRANSB)] else y
        rows, columns = out.shape[1:]
        product = alpha * (x.astype(np.float64) @ y.astype(np.float64))
        assert product.shape == out.shape
        if beta:
            product += beta * out.astype(np.float64)
        epilogue = operation[str(_EPILOGUE)]
        if epilogue & (4 | 16 | 256 | 512):
            length = columns if epilogue == 512 else rows
            kind = _DTYPES[operation[str(_BIAS_TYPE)]]
            assert kind == out.dtype
            address = operation[str(_BIAS_POINTER)]
            assert address % operation.get(f"{_BIAS_POINTER} alignment", 1) == 0
            bias = memory(address, kind, (length,), (1,))
        if epilogue & 4:
            product += bias[:, None].astype(np.float64)
        if epilogue & 128:
            ld, address = operation[str(_AUX_LD)], operation[str(_AUX_POINTER)]
            assert ld % 8 == 0
            assert ld >= rows
            assert address % 16 == 0
            assert len(product) == 1
            assert _DTYPES[operation[str(_AUX_TYPE)]] == out.dtype
            aux = memory(address, out.dtype, (rows, columns), (1, ld))
        if epilogue & 32:
            aux[...] = product[0]
            product = gelu(product)
        if epilogue & 64:
            product *= gelu_derivative(aux)
        out[...] = product
        if epilogue & 16:
            bias[...] = product[0].sum(1)
        if epilogue == 512:
            bias[...] = y[0].astype(np.float64).sum(0)
        assert epilogue in (1, 4, 160, 164, 192, 208, 512)


class Memory:
    """Bytes in the place of a GPU's."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size + 256, 0xA5, np.uint8)
        self.ptr = self.bytes.ctypes.data + -self.bytes.ctypes.data % 256

    def memset_async(self, value: int, size: int) -> None:
        memory(self.ptr, np.dtype("uint8"), (size,), (1,))[...] = value


class Stream:
    ptr = 77
    capturing = False

    def is_capturing(self) -> bool:
        return self.capturing

    def synchronize(self) -> None:
        assert not self.capturing


class GPU:
    """A stand-in for CuPy and cublasLt; ``array`` puts a numpy array's memory on the device."""

    def __init__(self, lt: StandIn) -> None:
        self.lt, self.stream = lt, Stream()
        self.allocated: list[int] = []
        self.room = True
        gpu = self

        class Event:
            def record(self, stream: Stream) -> None:
                assert stream is gpu.stream
                assert not stream.capturing
                self.at = gpu.lt.clock

        self.cupy = types.SimpleNamespace(
            asarray=self.array,
            cuda=types.SimpleNamespace(
                runtime=types.SimpleNamespace(
                    getDevice=lambda: 0, getDeviceProperties=lambda number: {"name": b"stand-in"}
                ),
                get_current_stream=lambda: self.stream,
                alloc=self._alloc,
                Event=Event,
                get_elapsed_time=lambda start, stop: 1e3 * (stop.at - start.at),
            ),
        )

    def _alloc(self, size: int) -> Memory:
        if not self.room and size != 32 << 20:
            raise MemoryError
        self.allocated.append(size)
        return Memory(size)

    def array(self, x: np.ndarray) -> Any:
        """Return a CuPy array on the memory of a numpy array, with its strides."""
        cupy = pytest.importorskip("cupy")
        owner = cupy.cuda.UnownedMemory(x.ctypes.data, max(x.nbytes, 1), x, 0)
        return cupy.ndarray(x.shape, x.dtype, cupy.cuda.MemoryPointer(owner, 0), x.strides)

    def restart(self) -> None:
        """Forget what a process knows; files stay."""
        for known in (gemm_plans._devices, gemm_plans._plans, gemm_plans._supported):
            known.clear()
        self.lt.ran.clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[GPU]:
    """Give a GPU that multiplies in host memory, with a cache folder of its own."""
    lt = StandIn()
    made = GPU(lt)
    loaded = cublaslt.Library(lt, "stand-in")
    monkeypatch.setattr(gemm_plans, "library", lambda: loaded)
    monkeypatch.setattr(gemm_plans, "_cupy", lambda: made.cupy)
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path))
    made.restart()
    yield made
    made.restart()
    if lt.failures:
        raise lt.failures[0]
