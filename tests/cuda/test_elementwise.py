"""Generated elementwise kernels: every elementwise row of the registry, in the emulator."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, testing
from gpugrad.cuda import compiler, elementwise, symbolic
from gpugrad.ops import elementwise as rows
from gpugrad.registry import OPS, Op

DTYPES = ["float32", "bfloat16", "float16"]
OPERATIONS = {op.name: op for op in OPS.values() if hasattr(rows, op.name)}
INTEGER = {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"}
NUMBERS = sorted(op.name for op in OPERATIONS.values() if op.rules)
MASKS = sorted(OPERATIONS.keys() - set(NUMBERS) - INTEGER)


def applied(op: Op) -> Any:
    """Return a function to fuse: the operation, or where its mask is true."""

    run, is_mask = op.function, not op.rules

    def function(*args: Any) -> Any:
        return gg.where(run(*args), 1.0, 0.0) if is_mask else run(*args)

    function.__name__ = op.name
    return function


class Group:
    """Kernels that are compiled as one source, which costs far less than one by one.

    Until ``compile`` is called, launches only tell which kernels there are, and for which dtypes.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.sources: dict[int, cuda.Source] = {}

    def text(self, code: int) -> str:
        """Return the source of all kernels for one element type."""
        members = [m.kernel for m in self.members if code in m.codes]
        return elementwise._header() + "".join(members)

    def compile(self) -> None:
        """From now on launches run."""
        for code in set().union(*(m.codes for m in self.members)):
            self.sources[code] = cuda.Source("group.cu", large=True, text=self.text(code))


class Member:
    """One source of a group, in place of a cuda.Source."""

    def __init__(self, group: Group, name: str, large: bool, text: str) -> None:
        self.group, self.number = group, len(group.members)
        self.codes: set[int] = set()
        stem = name.removesuffix(".cu").removeprefix("elementwise_")
        own = text.removeprefix(elementwise._header())
        self.kernel = own.replace(stem, f"{stem}_{self.number}")
        group.members.append(self)

    def launch(self, kernel: str, grid: Any, block: Any, args: Any, GPUGRAD_DTYPE: int) -> None:
        self.codes.add(GPUGRAD_DTYPE)
        source = self.group.sources.get(GPUGRAD_DTYPE)
        if source is not None:
            name = f"{kernel}_{self.number}"
            source.launch(name, grid, block, args, GPUGRAD_DTYPE=GPUGRAD_DTYPE)


def inputs(op: Op, dtype: str, shape: tuple[int, ...] = (3, 67), seed: int = 0) -> list[Any]:
    """Return tensors of one shape in the domain of an operation's first sample."""
    sample = op.samples[0]
    rng = np.random.default_rng(seed)
    tensors = []
    for name, (low, high) in zip(op.arguments, sample.domains, strict=True):
        values = rng.uniform(low, high, shape)
        if name == "condition":
            tensors.append(gg.Tensor(values > 0))
        else:
            tensors.append(gg.Tensor(values.astype(dtype), requires_grad=name in op.rules))
    return tensors


def gradients(function: Any, tensors: list[Any]) -> list[np.ndarray]:
    """Return the result, and the gradients where there are any, as arrays."""
    out = function(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    if not (wanted and out.requires_grad):
        return [out.data]
    g = np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype)
    return [out.data, *(t.data for t in gg.grad(out, wanted, gg.Tensor(g)))]


CASES = [(name, dtype) for dtype in DTYPES[:2] for name in NUMBERS + MASKS]
CASES += [(name, "float16") for name in ("clip", "exp", "multiply", "power", "sigmoid", "where")]


@contextlib.contextmanager
def grouped() -> Iterator[Group]:
    """Collect the kernels that are launched inside; at the end they are compiled."""
    group = Group()
    with pytest.MonkeyPatch.context() as patch, emulator.enabled("plain"):
        patch.setattr(elementwise, "_sources", {})
        patch.setattr(elementwise, "Source", lambda *a, **k: Member(group, *a, **k))
        yield group
    group.compile()


FUSED = {name: gg.fuse(applied(OPERATIONS[name])) for name in NUMBERS + MASKS}


@pytest.fixture(scope="module")
def group() -> Group:
    """The kernels of FUSED."""
    with grouped() as made:
        for name, dtype in CASES:
            gradients(FUSED[name], inputs(OPERATIONS[name], dtype))
    return made


@pytest.fixture(scope="module")
def fused(group: Group) -> dict[str, Any]:
    return FUSED


def test_no_row_is_missing():
    assert len(NUMBERS) > 45
    assert len(MASKS) == 13


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_row_obeys_the_tolerance_rule(fused, name, dtype):
    op, run = OPERATIONS[name], fused[name]
    before = run.launches["cuda"]
    with emulator.enabled("plain"):
        testing.assert_implements(run, applied(op), inputs(op, dtype), dtype)
    assert run.launches["cuda"] == before + 1


@pytest.mark.parametrize(("architecture", "code"), [("sm_80", 0), ("sm_90a", 1)])
def test_the_kernels_of_all_rows_compile_without_spills(group, architecture, code):
    pytest.importorskip("cupy")
    options = [f"-DGPUGRAD_DTYPE={code}"]
    found = compiler.compile_cubin(group.text(code), "group.cu", architecture, options).resources
    assert len(found) > 100
    assert {name: r for name, r in found.items() if r.spill_bytes or r.stack_bytes} == {}
    assert max(r.registers for r in found.values()) <= 64


SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -2.5, 1e-40, 3e38, -3e38, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("name", NUMBERS + MASKS)
def test_special_values_are_those_of_numpy(fused, name):
    op = OPERATIONS[name]
    grid = np.array(list(itertools.product(SPECIAL, repeat=len(op.arguments))), np.float32).T
    tensors = [
        gg.Tensor(values > 0)
        if argument == "condition"
        else gg.Tensor(values.copy(), requires_grad=argument in op.rules)
        for argument, values in zip(op.arguments, grid, strict=True)
    ]
    with emulator.enabled("plain"):
        found = gradients(fused[name], tensors)
    with np.errstate(all="ignore"):
        expected = gradients(applied(op), tensors)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-37, err_msg=f"{name}: {k}")


# What the engine does by itself


def launched(run: Any) -> tuple[Any, dict[str, int]]:
    """Return what run returns, and how often each elementwise kernel ran in it."""
    before = cuda.launches.copy()
    result = run()
    return result, {
        name.removeprefix("elementwise_"): n
        for name, n in (cuda.launches - before).items()
        if name.startswith("elementwise")
    }


def drawn(*shapes: tuple[int, ...], dtype: str = "float32", low: float = 0.5) -> list[Any]:
    rng = np.random.default_rng(len(shapes))
    return [
        gg.Tensor(rng.uniform(low, 2.0, shape).astype(dtype), requires_grad=True)
        for shape in shapes
    ]


CHAINS = {
    "tanh": (gg.tanh, [(3, 67)], {"tanh_backward": 1}),
    "sigmoid": (gg.sigmoid, [(3, 67)], {"sigmoid_forward": 1, "sigmoid_backward": 1}),
    "multiply": (gg.multiply, [(3, 67), (3, 67)], {"multiply_backward": 1}),
    "power": (gg.power, [(3, 67), (67,)], {"power_backward": 1}),
    "clip": (
        lambda x: gg.clip(x, 0.75, 1.5),
        [(3, 67)],
        {"clip_forward": 1, "clip_backward": 1},
    ),
    "erf": (gg.erf, [(3, 67)], {"erf_forward": 1, "erf_backward": 1}),
    "exp": (gg.exp, [(3, 67)], {}),
    "add": (gg.add, [(3, 67), (67,)], {}),
    "matmul": (gg.matmul, [(3, 4), (4, 5)], {}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_launch_and_a_single_operation_none(name):
    function, shapes, kernels = CHAINS[name]
    tensors = drawn(*shapes)
    with emulator.enabled("plain"):
        _, counted = launched(lambda: testing.assert_implements(function, function, tensors))
        assert counted == kernels
    assert launched(lambda: gradients(function, tensors))[1] == {}


def test_backward_goes_by_the_same_kernel():
    (x,) = drawn((3, 67))
    with emulator.enabled("plain"):
        _, counted = launched(lambda: gg.tanh(x).backward(gg.ones(3, 67)))
    assert counted == CHAINS["tanh"][2]


def test_a_gradient_not_wanted_is_not_computed():
    x, y = drawn((3, 67), (3, 67))
    square = x * x
    with emulator.enabled("plain"):
        (g,), counted = launched(lambda: gg.grad((square * y).sum(), [y]))
    assert counted == {}  # g * square alone: not a chain
    np.testing.assert_array_equal(g.data, square.data)


def test_a_recorded_gradient_has_no_kernel_and_a_second_derivative():
    (x,) = drawn((5,))
    with emulator.enabled("plain"):
        (g,), counted = launched(lambda: gg.grad(gg.tanh(x).sum(), [x], create_graph=True))
        assert counted == {}
        (h,) = gg.grad(g.sum(), [x])
    t = np.tanh(x.data)
    np.testing.assert_allclose(h.data, -2 * t * (1 - t * t), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_other_dtypes_stay_with_numpy(dtype):
    x = gg.Tensor(np.arange(1, 5).astype(dtype), requires_grad=dtype == "float64")
    with emulator.enabled("plain"):
        _, counted = launched(lambda: gradients(lambda x: gg.clip(x, 2, 3), [x]))
    assert counted == {}


def test_empty_arrays_stay_with_numpy():
    x = gg.zeros(0, 3, requires_grad=True)
    with emulator.enabled("plain"):
        _, counted = launched(lambda: gradients(gg.sigmoid, [x]))
    assert counted == {}


# Memory layouts


def wide(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LAYOUTS = {
    "equal": lambda: wide((6, 5, 8), 1),
    "unaligned": lambda: wide((241,), 1)[1:].reshape(6, 5, 8),
    "one": lambda: wide((), 1),
    "ones": lambda: wide((1, 1, 1), 1),
    "last axis": lambda: wide((8,), 1),
    "last axis, unaligned": lambda: wide((9,), 1)[1:],
    "first axis": lambda: wide((6, 1, 1), 1),
    "first two axes": lambda: wide((6, 5, 1), 1),
    "middle axis": lambda: wide((5, 1), 1),
    "last two axes": lambda: wide((5, 8), 1),
    "without the middle": lambda: wide((6, 1, 8), 1),
    "rows of a matrix": lambda: wide((6, 5, 24), 1)[..., 8:16],
    "rows, unaligned": lambda: wide((6, 5, 19), 1)[..., 3:11],
    "one column": lambda: wide((5, 3), 1)[:, 1:2],
    "every other": lambda: wide((6, 5, 16), 1)[..., ::2],
    "stride zero": lambda: np.broadcast_to(wide((), 1), (6, 5, 8)),
    "transposed": lambda: wide((8, 5, 6), 1).T,
    "exchanged": lambda: wide((5, 6, 8), 1).swapaxes(0, 1),
    "reversed": lambda: wide((6, 5, 8), 1)[::-1, :, ::-1],
}


@pytest.fixture(scope="module")
def layouts_group() -> tuple[elementwise.Program, Group]:
    x, y, mask = (
        symbolic.argument(i, dtype)
        for i, dtype in enumerate((backend.float32, backend.float32, backend.bool_))
    )
    dtypes = [backend.float32, backend.float32, backend.bool_]
    made = elementwise.Program("layouts", dtypes, [symbolic.xp.where(mask, x - y, y * 3)])
    with grouped() as group:
        for layout in LAYOUTS.values():
            made.run([wide((6, 5, 8), 2), layout(), np.asarray(layout() > 0)])
    return made, group


@pytest.fixture
def layouts(layouts_group: tuple[elementwise.Program, Group]) -> elementwise.Program:
    return layouts_group[0]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_kernels_of_all_layouts_compile_without_spills(layouts_group, architecture):
    pytest.importorskip("cupy")
    text = layouts_group[1].text(0)
    found = compiler.compile_cubin(text, "group.cu", architecture, ["-DGPUGRAD_DTYPE=0"]).resources
    assert len(found) == 5
    assert {name: r for name, r in found.items() if r.spill_bytes or r.stack_bytes} == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_an_input(layouts, layout):
    x, y = wide((6, 5, 8), 2), LAYOUTS[layout]()
    mask = np.asarray(LAYOUTS[layout]() > 0)
    expected = np.where(mask, x - y, y * np.float32(3))
    (found,) = emulator.sweep(lambda: layouts.run([x, y, mask]))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 1023, 1024, 5000])
def test_any_number_of_elements(layouts, n):
    x, y = wide((n,), 3), wide((n,), 4)
    (found,) = emulator.sweep(lambda: layouts.run([x, y, y > 0]))
    np.testing.assert_array_equal(found, np.where(y > 0, x - y, y * np.float32(3)))


def test_shapes_that_do_not_broadcast_are_left_to_the_operations(layouts):
    with emulator.enabled("plain"):
        assert layouts.run([wide((3,), 1), wide((4,), 2), np.ones(3, bool)]) is None


def test_a_small_result_beside_a_large_one_is_not_one_kernel():
    x, y = symbolic.argument(0, backend.float32), symbolic.argument(1, backend.float32)
    made = elementwise.Program("two", [backend.float32] * 2, [x * 3, x + y])
    with emulator.enabled("plain"):
        assert made.run([wide((3,), 1), wide((2, 3), 2)]) is None


# Expressions


def test_numbers_are_parameters_and_equal_terms_are_computed_once():
    def made(factor: float) -> elementwise.Program:
        x = symbolic.argument(0, backend.float32)
        e = symbolic.xp.exp(x * factor)
        return elementwise.Program(
            "numbers", [backend.float32], [e / (symbolic.xp.exp(x * factor) + 1)]
        )

    text = made(0.1).kernel()
    assert text == made(0.25).kernel()
    assert text.count("expf") == 1
    assert "0.1" not in text
    assert made(0.1).constants == [0.1]
    assert made(0.1).operations == 4


def test_mixed_float32_and_bfloat16():
    x = gg.Tensor(wide((3, 67), 1).astype(ml_dtypes.bfloat16))
    y = wide((3, 67), 2)
    a, b = symbolic.argument(0, backend.bfloat16), symbolic.argument(1, backend.float32)
    rounded = (a * b).astype(backend.bfloat16)
    made = elementwise.Program("mixed", [a.dtype, b.dtype], [a + b, rounded * a, rounded - b])
    results = emulator.sweep(lambda: made.run([x.data, y]))
    wide_x = x.data.astype(np.float32)
    product = (wide_x * y).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(results[0], wide_x + y)
    np.testing.assert_array_equal(results[1], (product * wide_x).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(results[2], product - y)


UNTRACEABLE = {
    "a reduction": lambda x, m: symbolic.xp.sum(x),
    "a view": lambda x, m: x[0],
    "a value": lambda x, m: x if x > 0 else -x,
    "a shape": lambda x, m: x * x.shape[0],
    "the shape compared": lambda x, m: x if x.shape == (3,) else -x,
    "a length": lambda x, m: len(x),
    "an array": lambda x, m: x * np.ones(3, np.float32),
    "float64": lambda x, m: x.astype(np.float64),
    "integers": lambda x, m: x.astype(np.int64),
    "a mask as the result": lambda x, m: m | (x > 0),
    "a sum of masks": lambda x, m: m + m,
    "bits": lambda x, m: x & x,
    "a number as the result": lambda x, m: symbolic.xp.where(m, 1, 0),
    "both narrow types": lambda x, m: x.astype(np.float16) + x.astype(ml_dtypes.bfloat16),
    "too long": lambda x, m: [x := x * 2.5 for _ in range(600)][-1],
}


@pytest.mark.parametrize("what", UNTRACEABLE)
def test_what_is_no_expression_is_refused(what):
    x, m = symbolic.argument(0, backend.float32), symbolic.argument(1, backend.bool_)
    with pytest.raises((symbolic.Untraceable, TypeError)):
        elementwise.Program("x", [x.dtype, m.dtype], [UNTRACEABLE[what](x, m)])


def test_constants_are_computed_when_the_expression_is_made():
    x = symbolic.argument(0, backend.float32)
    two = symbolic.xp.asarray(2.0, dtype=backend.float32)
    assert repr(symbolic.xp.where(two == 2, x, two)) == "x0"
    assert repr(x**two) == "multiply(x0, x0)"
    assert repr(x**1.5) == "power(x0, 1.5)"
    assert repr(symbolic.xp.exp(two * 0)) == "1.0"
    assert repr(symbolic.xp.erf(two * 0)) == "0.0"


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_powers_of_known_exponents(dtype):
    exponents = (1, 2, 3, 4, 5, -1, -2, 0, 0.5, 2.5)
    (x,) = drawn((67,), dtype=dtype)
    run = gg.fuse(lambda x: tuple(gg.power(x, e) for e in exponents))
    with emulator.enabled("plain"):
        testing.assert_implements(run, run.function, [x], dtype)
    assert run.launches["cuda"] == 1
