"""The way of CuPy arrays to a kernel, without a GPU.

CuPy's arrays work on any memory as long as nothing is computed: here they lie in host memory, and
a stand-in for CuPy's loaded module hands the raw pointers of a launch to the emulator. What a
launcher passes, in which order, of which type, from which address, is then what a GPU would get.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, random
from gpugrad.cuda import (
    _gemm_numpy,
    arguments,
    device,
    gemm_plans,
    kernel,
    tensor_map,
    transfer,
)
from gpugrad.cuda.compiler import Cubin
from gpugrad.fused import FUSED, _attention_sm90, cross_entropy, dropout, dropout_add, embedding
from gpugrad.fused.embedding import write_gradient
from gpugrad.models import GPT, GPTConfig
from gpugrad.ops.random import Draw
from gpugrad.tensor import Tensor
from gpugrad.testing.kernels import drawn

cupy = pytest.importorskip("cupy")


class Host:
    """Memory that CuPy takes for a GPU's, and the launches made on it."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.attributes: list[tuple[int, int]] = []
        self.launched: list[str] = []
        self.encoded = 0  # tensor maps
        self.captured: list[Any] | None = None  # calls, while a stream captures them

    def allocate(self, size: int) -> Any:
        memory = np.full(size + 512, 0xA5, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % 256
        self.blocks[start] = memory[start - memory.ctypes.data :][:size]
        unowned = cupy.cuda.UnownedMemory(start, size, memory, 0)
        return cupy.cuda.MemoryPointer(unowned, 0)

    def to_device(self, array: np.ndarray) -> Any:
        made = cupy.empty(array.shape, array.dtype)
        self.view(made)[...] = array
        return made

    def moved(self, array: Any) -> Any:
        return array if isinstance(array, cupy.ndarray) else self.to_device(array)

    def uploading(self, xp: Any, target: Any) -> Callable[[np.ndarray], None]:
        return lambda values: self.view(target).__setitem__(..., values)

    def duplicate(self, array: Any) -> Any:
        return self.to_device(self.view(array))

    def fill(self, array: Any, value: float) -> None:
        if self.captured is not None:
            self.captured.append(lambda: self.fill(array, value))
        else:
            self.view(array)[...] = value

    def behind(self, address: int) -> np.ndarray:
        """Return the bytes from an address to the end of its block."""
        for start, block in self.blocks.items():
            if start <= address < start + max(block.nbytes, 1):
                return block[address - start :]
        raise AssertionError(f"no array holds the address {address:#x}")

    def described(self, value: np.ndarray) -> cuda.Strided:
        """Return what a tensor map describes, after checking that it can be passed by value."""
        assert (value.size, value.nbytes, value.ctypes.data % 64) == (1, 128, 0)
        axes = int(value["axes"])
        lengths, strides, box = (value[key][:axes][::-1] for key in ("lengths", "strides", "box"))
        dtype = next(d for d, code in tensor_map._DTYPES.items() if code == value["dtype"])
        bytes_ = self.behind(int(value["start"]))
        array: np.ndarray = np.ndarray(lengths, dtype, bytes_, 0, strides)
        return cuda.Strided(array, tuple(map(int, box)) if box.all() else None)

    def encode(self, to: Any, dtype: Any, axes: Any, start: Any, *rest: Any) -> int:
        """Stand in for cuTensorMapEncodeTiled: a map in the open of what it is asked for."""
        *lists, interleave, swizzle, _promotion, fill = rest
        kinds = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32)
        lengths, strides, box, steps = (
            list((kind * axes).from_address(at)) for kind, at in zip(kinds, lists, strict=True)
        )
        assert (steps, interleave, swizzle, fill) == ([1] * axes, 0, 3, 0)
        assert to % 64 == 0
        made = np.frombuffer((ctypes.c_char * 128).from_address(to), tensor_map.LAYOUT)
        itemsize = 128 // box[0]
        for i in range(axes):
            made["lengths"][0, i], made["box"][0, i] = lengths[i], box[i]
            made["strides"][0, i] = strides[i - 1] if i else itemsize
        made["start"], made["axes"], made["itemsize"], made["dtype"] = start, axes, itemsize, dtype
        made["swizzle"], made["mark"] = swizzle, tensor_map._MARK
        self.encoded += 1
        return 0

    def view(self, array: Any) -> np.ndarray:
        """Return a CuPy array as the numpy array on the same memory."""
        if isinstance(array, np.ndarray):
            return array
        bytes_ = self.behind(array.data.ptr)
        base = np.frombuffer(bytes_, np.uint8)
        return np.lib.stride_tricks.as_strided(
            base[: base.nbytes // array.itemsize * array.itemsize].view(array.dtype),
            array.shape,
            array.strides,
        )


class Loaded:
    """Stands in for CuPy's module of a cubin: its functions run in the emulator."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def load(self, code: bytes) -> None:
        self.source, self.defines = SOURCES[code]

    def get_function(self, name: str) -> Any:
        module = emulator.Module(self.source, self.defines)
        found = module.get_function(name)

        def run(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            assert len(grid) == len(block) == 3
            values: list[Any] = []
            for parameter, value in zip(found.parameters, args, strict=True):
                if parameter.dtype is not None:
                    assert value.dtype == parameter.dtype
                    values.append(value)
                    continue
                if parameter.type == tensor_map.NAME:
                    values.append(self.host.described(value))
                    continue
                assert value.dtype == np.uint64
                element = arguments._element(parameter, self.defines) or np.dtype("uint8")
                memory = self.host.behind(int(value)) if value else None
                if memory is not None:
                    memory = memory[: memory.nbytes // element.itemsize * element.itemsize]
                    memory = memory.view(element)
                values.append(memory)
            if self.host.captured is not None:
                self.host.captured.append(lambda: run(grid, block, args, shared_mem))
                return
            found(grid, block, values, shared_mem)
            self.host.launched.append(name)

        return _Function(run)


class _Function:
    ptr = 1234

    def __init__(self, run: Any) -> None:
        self.run = run

    def __call__(self, *args: Any) -> None:
        self.run(*args)


SOURCES: dict[bytes, tuple[str, dict]] = {}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Give memory in place of a GPU's, of compute capability 9.0."""
    made = Host()

    def compile_cubin(source: str, name: str, arch: str, options: Any) -> Cubin:
        assert arch == "sm_90a"
        code = repr((name, arch, options)).encode()
        defines = dict(option[2:].split("=") for option in options)
        SOURCES[code] = source, defines
        return Cubin(code, {}, "")

    modules = {
        "cupy.cuda.function": types.SimpleNamespace(Module=lambda: Loaded(made)),
        "cupy.cuda": types.SimpleNamespace(
            driver=types.SimpleNamespace(
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
                funcSetAttribute=lambda ptr, what, size: made.attributes.append((what, size)),
            )
        ),
    }

    class Device(contextlib.nullcontext):
        compute_capability = "90"
        attributes: ClassVar[dict[str, int]] = {"MultiProcessorCount": 2}

        def __init__(self, number: int) -> None:
            super().__init__()
            assert number == 0

    class Stream(contextlib.nullcontext):
        ptr = 0

        def __init__(self, non_blocking: bool = False) -> None:
            super().__init__()

        def record(self) -> None:
            pass

        def wait_event(self, event: Any) -> None:
            pass

        def begin_capture(self) -> None:
            made.captured = []

        def end_capture(self) -> Any:
            calls, made.captured = made.captured, None
            return types.SimpleNamespace(launch=lambda stream: [call() for call in calls])

    there = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        get_current_stream=Stream,
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0),
        UnownedMemory=cupy.cuda.UnownedMemory,
        MemoryPointer=cupy.cuda.MemoryPointer,
    )
    Device.use = lambda self: None
    fake = types.SimpleNamespace(
        cuda=there, ndarray=cupy.ndarray, empty=cupy.empty, asarray=made.moved
    )
    monkeypatch.setattr(transfer, "duplicate", made.duplicate)
    monkeypatch.setattr(transfer, "fill", made.fill)
    monkeypatch.setattr(transfer, "Upload", made.uploading)

    def multiply(problem: Any, *arrays: Any) -> None:
        if made.captured is not None:
            made.captured.append(lambda: multiply(problem, *arrays))
            return
        views = [made.view(x) if isinstance(x, cupy.ndarray) else x for x in arrays]
        a, b, out, bias, aux, alpha = views
        _gemm_numpy.run(a, b, out, problem.epilogue, bias, aux, alpha, problem.beta)
        made.launched.append("gemm")

    monkeypatch.setattr(gemm_plans, "run", multiply)
    monkeypatch.setattr(gemm_plans, "supports", lambda problem: True)
    monkeypatch.setattr(device, "compile_cubin", compile_cubin)
    importing = types.SimpleNamespace(import_module=modules.__getitem__)
    monkeypatch.setattr(device, "importlib", importing)
    monkeypatch.setattr(backend, "cupy_module", lambda: fake)
    monkeypatch.setitem(kernel._capabilities, 0, 90)
    cupy.cuda.set_allocator(made.allocate)
    yield made
    cupy.cuda.set_allocator(None)
    for source in cuda.SOURCES.values():  # what was loaded belongs to this memory
        for loaded in (source._modules, source._functions):
            for key in [key for key in loaded if 0 in key[:2]]:
                del loaded[key]


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


@pytest.mark.parametrize("kernels", ["auto", "tma"])
@pytest.mark.parametrize("width", [64, 128])
def test_attention_takes_the_kernels_for_this_gpu(width, kernels, host, monkeypatch):
    """Where the emulator, told to, takes them too; tensor maps are what the driver is asked for."""
    op, given = FUSED["packed_attention"], {"scale": 0.2, "is_causal": True, "offset": 0}
    given |= {"dropout_p": 0.0, "draw": Draw(0, 0, None)}
    qkv = np.random.default_rng(4).normal(size=(2, 70, 3, 3, width)).astype("bfloat16")
    implementation = op.implementations["cuda"]
    with emulator.enabled("plain"), _attention_sm90.kernels("wgmma"):
        expected = both(op, implementation, [qkv], given, lambda x: x, lambda x: x)
    on_device = [host.to_device(qkv)]
    encode = ctypes.CFUNCTYPE(ctypes.c_int, *tensor_map._ARGUMENTS)(host.encode)
    monkeypatch.setattr(tensor_map, "_encoder", lambda: encode)
    monkeypatch.setattr(tensor_map, "_encoded", tensor_map._encoded.__wrapped__)
    with _attention_sm90.kernels(kernels):
        found = both(op, implementation, on_device, given, host.to_device, host.view)
    assert [name for name in host.launched if "sm90" in name] == [
        "attention_forward_sm90",
        "attention_backward_sm90_keys",
        "attention_backward_sm90_queries",
    ]
    assert host.encoded == (0 if kernels == "auto" else 3 + 4 + 4)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_driver_that_refuses_a_tensor_map(host, monkeypatch):
    monkeypatch.setattr(tensor_map, "_encoder", lambda: lambda *given: 1)
    x = host.to_device(np.zeros((1, 1, 128, 64), np.float16))
    with pytest.raises(RuntimeError, match=r"(?s)EncodeTiled returns 1 .*ATTENTION=wgmma"):
        tensor_map.by_driver(x, (1, 1, 64, 64), x.data.ptr)


def test_a_driver_without_tensor_maps(monkeypatch):
    def none(name):
        raise OSError(f"{name}: no such file")

    monkeypatch.setattr(tensor_map.ctypes, "CDLL", none)
    with pytest.raises(RuntimeError, match=r"(?s)version 12\.0 .*no such file.*ATTENTION=wgmma"):
        tensor_map._encoder.__wrapped__()


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
def test_a_gradient_of_many_ids(kind, host):
    rng = np.random.default_rng(3)
    ids = rng.integers(-1, 301, (5, 1000)).astype(kind)
    g = rng.integers(-9, 9, (*ids.shape, 2)).astype(np.float32)
    expected = np.full((300, 2), np.nan, np.float32)
    on_device = host.to_device(expected)
    with emulator.enabled("plain"):
        write_gradient(expected, ids, g, None)
    write_gradient(on_device, host.to_device(ids), host.to_device(g), None)
    assert host.launched[0] == "sort_ids_count"
    np.testing.assert_array_equal(host.view(on_device), expected)
    assert expected.any()


def test_ids_on_a_gpu_are_not_looked_at(host):
    """CuPy can compute nothing here: a look at values would be an error of the driver."""
    ids = Tensor(host.to_device(np.array([0, 7, -1])))
    x, table = (Tensor(host.to_device(np.ones((n, 7), np.float32))) for n in (3, 7))
    for found in (embedding(ids, table), cross_entropy(x, ids, reduction="none")):
        rows = host.view(found._data).reshape(3, -1)
        assert np.isnan(rows).all(1).tolist() == [False, True, True]


def test_draws_on_a_gpu_begin_at_a_state_in_its_memory(host):
    x = np.linspace(1, 2, 53, dtype=np.float32)
    state = host.to_device(np.array([2**63 + 1, 40], np.uint64))

    def run(x):
        attend = FUSED["scaled_dot_product_attention"].implementations["cuda"].forward
        return [
            random.normal(size=9)._data,
            random.integers(7, size=5)._data,
            dropout(Tensor(x), 0.4)._data,
            dropout_add(Tensor(x), Tensor(x), 0.4)._data,
            attend(
                *(x[:48].reshape(1, 1, 3, 16) for _ in range(3)),
                None,
                scale=0.25,
                is_causal=False,
                offset=0,
                dropout_p=0.4,
                draw=random.reserve(3),
            )[0],
        ]

    with random.recording(state):
        found = run(host.to_device(x))
    random.set_state({"seed": 2**63 + 1, "offset": 40})
    with emulator.enabled("plain"):
        expected = run(x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(host.view(a), b)


def test_dynamic_shared_memory_is_asked_for_before_it_is_used(host, tmp_path):
    """Untold a kernel has 48 KiB, static ones counted: how many those are nobody needs to know."""
    text = 'extern "C" __global__ void much(float* x) { x[threadIdx.x] = 1.0f; }'
    (tmp_path / "much.cu").write_text(text)
    source = cuda.Source(tmp_path / "much.cu")
    x = host.to_device(np.zeros(32, np.float32))
    for size in (0, 1 << 10, 48 << 10, 100_000, 60_000, 0, 100_000):
        source.launch("much", (1,), (32,), (x,), size)
    assert host.attributes == [(8, 1 << 10), (8, 48 << 10), (8, 100_000)]
    source._functions.clear()  # the first launches of two threads may make two of one kernel
    source.launch("much", (1,), (32,), (x,), 60_000)
    assert len(host.attributes) == 3
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


def test_a_recorded_step_runs_captures_and_replays(host, monkeypatch):
    """The losses and gradients of a compiled step are those of NumPy arrays in the emulator."""
    rng = np.random.default_rng()
    config = GPTConfig(vocab_size=33, block_size=8, n_layer=1, n_head=2, n_embd=64, dropout=0.1)
    runs = []
    for on_gpu in (False, True):
        gg.manual_seed(5)
        with contextlib.nullcontext() if on_gpu else emulator.enabled("plain"):
            with cuda.emulation.disabled():
                model = GPT(config)
            if on_gpu:
                monkeypatch.setenv("GPUGRAD_DEVICE", "cuda")
                for p in model.parameters():
                    p.data = host.to_device(p.data)

            def step(x, y, model=model):
                model.zero_grad()
                loss = model.loss(x, y)
                loss.backward()
                return loss

            compiled = gg.compile(step) if on_gpu else step
            found = []
            for number in range(4):
                rng = np.random.default_rng(number)
                batch = rng.integers(0, 33, (2, 2, 8))
                before = len(host.launched)
                outs = [compiled(*batch), *(p.grad for p in model.parameters())]
                found += [(host.view(o.data) if on_gpu else o.data).copy() for o in outs]
                assert (len(host.launched) > before) == on_gpu
            runs.append((found, gg.random.get_state()))
    assert runs[0][1] == runs[1][1]
    assert compiled.recordings == 1
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [gg.optim.AdamW, gg.optim.SGD])
def test_optimisers_update_what_lies_on_a_gpu(kind, compiled, host, monkeypatch):
    """Tables of pointers, settings, steps and the loss scale: CuPy itself computes nothing."""
    shapes = [(40, 3), (), (301,)]
    runs = []
    for on_gpu in (False, True):
        place = host.to_device if on_gpu else np.array
        rng = np.random.default_rng(0)
        drawn = [rng.normal(size=s).astype(np.float32) for s in shapes]
        params = [gg.Tensor(place(x), requires_grad=True) for x in drawn]
        optimizer = kind([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
        scaler = gg.optim.LossScaler(64.0, device="cuda:0" if on_gpu else "cpu")

        def step(*given, params=params, optimizer=optimizer, scaler=scaler):
            for p, g in zip(params, given, strict=True):
                p._grad = g
            norm = optimizer.step(max_norm=1.0, scaler=scaler)
            optimizer.zero_grad()
            return norm

        call = gg.compile(step) if compiled and on_gpu else step
        if on_gpu:
            monkeypatch.setenv("GPUGRAD_DEVICE", "cuda")
        found = []
        with contextlib.nullcontext() if on_gpu else emulator.enabled("plain"):
            for number in range(4):
                optimizer.param_groups[1]["lr"] = 0.05 * number
                gradients = [np.asarray(rng.normal(size=s) * 64, np.float32) for s in shapes]
                if number == 1:
                    gradients[2][7] = np.inf
                place = host.to_device if on_gpu and not compiled else np.array
                norm = call(*(gg.Tensor(place(g)) for g in gradients))
                steps = [state.steps for state in optimizer._states.values()]
                seen = [norm.data, *(p.data for p in params), *steps, *scaler.arguments()[:2]]
                found += [(host.view(x) if on_gpu else x).copy() for x in seen]
        runs.append(found)
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs[0][-1].tolist() == [2, 1]  # steps since the overflow, overflows
    assert set(host.launched) == {"grad_norm_partial", "grad_norm_finish", kind.kernel}


def test_tables_on_their_way_keep_their_pinned_memory(host, monkeypatch):
    alive = weakref.WeakSet()

    class Upload:
        def __init__(self, xp, target):
            self.copy = host.uploading(xp, target)
            alive.add(self)

        def __call__(self, values):
            self.copy(values)

    monkeypatch.setattr(transfer, "Upload", Upload)
    monkeypatch.setenv("GPUGRAD_DEVICE", "cuda")
    x = gg.Tensor(host.to_device(np.ones(5, np.float32)), requires_grad=True)
    optimizer = gg.optim.SGD([x], lr=0.1)

    @gg.compile
    def step(g):
        x._grad = g
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()

    step(gg.Tensor(np.ones(5, np.float32)))
    assert len(alive) == 5  # tensors, chunks, settings, the argument, the state of random numbers


def test_zeros_are_not_written_between_the_elements_of_a_view():
    filled: list[float] = []
    flags = types.SimpleNamespace(c_contiguous=False)
    transfer.fill(types.SimpleNamespace(flags=flags, fill=filled.append), 0)
    assert filled == [0]


@pytest.mark.parametrize("epilogue", ["bias", "gelu", "dgelu", "dgelu_bgrad", "bgrad"])
def test_products_in_several_launches(epilogue, host):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((7, 40), (7, 9)))
    given = {"out": np.zeros((40, 9), np.float32)}
    if epilogue != "dgelu":
        given["bias"] = rng.integers(-3, 4, 40 if epilogue == "bgrad" else 9).astype(np.float32)
    if epilogue not in ("bias", "bgrad"):
        given["aux"] = rng.normal(size=(40, 9)).astype(np.float32)
    if epilogue == "bias":  # a wide bias for a narrow result is what cublasLt does not take
        a, b, given["out"] = (x.astype(backend.float16) for x in (a, b, given["out"]))
    there = {name: host.to_device(x) for name, x in given.items()}
    with emulator.enabled("plain"):
        cuda.gemm(a.T, b, epilogue=epilogue, **given)
    cuda.gemm(host.to_device(a).T, host.to_device(b), epilogue=epilogue, **there)
    assert sum(name == "gemm" for name in host.launched) == 1
    assert len(host.launched) > 1
    for name, x in given.items():
        np.testing.assert_array_equal(host.view(there[name]), x)


def test_a_step_that_reads_arrays_of_two_gpus_is_refused(host, monkeypatch):
    monkeypatch.setenv("GPUGRAD_DEVICE", "cuda")
    there = np.ones(3, np.float32)
    owner = cupy.cuda.UnownedMemory(there.ctypes.data, there.nbytes, there, 1)
    other = gg.Tensor(cupy.ndarray(3, np.float32, cupy.cuda.MemoryPointer(owner, 0)))
    own = gg.Tensor(host.to_device(there))
    step = gg.compile(lambda x: x * own + other, device="cuda:0")
    with pytest.raises(RuntimeError, match=r"an array on cuda:1 is read in a step .* on cuda:0"):
        step(np.ones(3, np.float32))
