"""Expressions of elements as kernels: one launch for what would be one per operation.

    program = Program("silu", [dtype], [expression])     # from symbols, see cuda/symbolic.py
    (out,) = program.run([x])

The kernel loads every input once, computes in float32 and stores every output once; what lies
between is rounded only where the expression casts. Python numbers are parameters of the kernel, so
that a changing learning rate compiles nothing. Inputs may have any layout: broadcast and strided
ones are read in place where two levels of strides describe them, otherwise copied first.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from . import symbolic
from .emulation import expected
from .kernel import DTYPE_CODES, Source, empty, emulated, strided
from .symbolic import TEMPLATES, Symbol, Untraceable

THREADS = 256
MOST_OPERATIONS = 512  # of one kernel: the compiler's time and the GPU's registers have an end
MOST_ARRAYS = 32
KEPT = 256  # programs kept per operation
SMALL = 2**31  # elements that broadcast and strided inputs are indexed with
_LITERALS = {repr(value): f"{value}f" for value in (0.0, 1.0, -1.0, 2.0, 0.5)}
_FULL, _ONE, _PLACED = "full", "one", "placed"

_sources: dict[str, Source] = {}


class _Layout(NamedTuple):
    """How a kernel reads an input: all of it, one element, or by ``place`` in elementwise.cuh."""

    kind: str
    array: Any
    place: tuple[int, ...] = ()


class Program:
    """Some expressions of the same inputs, computed by one kernel.

    ``dtypes`` are those of the inputs, by number; ``outputs`` the expressions, each stored in its
    own dtype. With ``share`` an output that is an input is handed back as it is, not copied.
    Raises Untraceable for what no kernel can be.
    """

    def __init__(
        self,
        name: str,
        dtypes: Sequence[Any],
        outputs: Sequence[Symbol],
        share: bool = False,
    ) -> None:
        self.name = "elementwise_" + re.sub(r"\W+", "_", name)
        self.shapes = [out.inputs for out in outputs]
        self.shared = [out.value if share and out.op == "input" else None for out in outputs]
        self.dtypes = [out.dtype for out in outputs]
        if any(d is None or d == backend.bool_ for d in self.dtypes):
            raise Untraceable("an output is no floating array")
        stored = [
            _uncast(out) for out, shared in zip(outputs, self.shared, strict=True) if shared is None
        ]
        self.statements: list[tuple[str, str, str]] = []  # C type, name, value
        self.constants: list[float] = []
        self.inputs: list[int] = []
        self.operations = 0
        self.launches = 0  # of a library that runs one operation at a time
        narrow = {d for d in self.dtypes if d is not None}
        self._results = self._write_down(stored, narrow)
        narrow |= {dtypes[i] for i in self.inputs}
        narrow &= {backend.bfloat16, backend.float16}
        if len(narrow) > 1:
            raise Untraceable("bfloat16 and float16 meet")
        if self.operations > MOST_OPERATIONS or len(self.inputs) + len(stored) > MOST_ARRAYS:
            raise Untraceable("one kernel would be too large")
        self.code = DTYPE_CODES[narrow.pop() if narrow else backend.float32]
        self.width = 8 if self.code else 4
        self._types = {i: _c_type(dtypes[i]) for i in self.inputs}
        self._by_layout: dict[tuple[str, ...], Source] = {}
        used = frozenset[int]().union(*self.shapes)
        self._shaping = sorted(used)

    def _write_down(self, outputs: Sequence[Symbol], narrow: set) -> list[str]:
        """Turn expressions into statements, equal ones into one; return the outputs' names."""
        names: dict[Symbol, str] = {}
        known: dict[Hashable, str] = {}
        for symbol in _in_order(outputs):
            args = tuple(names[a] for a in symbol.args)
            key: Hashable = (symbol.op, args, symbol.dtype if symbol.op == "cast" else None)
            if not args:
                key = (symbol.op, repr(symbol.value))
            if key not in known:
                known[key] = self._named(symbol, args, narrow)
            names[symbol] = known[key]
        return [names[out] for out in outputs]

    def _named(self, symbol: Symbol, args: tuple[str, ...], narrow: set) -> str:
        if symbol.op == "input":
            self.inputs.append(symbol.value)
            return f"x{symbol.value}"
        if symbol.op == "constant":
            self.launches += bool(symbol.inputs)  # zeros_like
            if isinstance(symbol.value, bool):
                return str(symbol.value).lower()
            text = repr(float(symbol.value))
            if text in _LITERALS:
                return _LITERALS[text]
            self.constants.append(float(symbol.value))
            return f"c{len(self.constants) - 1}"
        if symbol.op == "cast":
            narrow.add(symbol.dtype)
            self.launches += 1
            if symbol.dtype == backend.float32:
                return args[0] if not symbol.args[0].is_mask else self._statement("float", args[0])
            return self._statement("float", f"rounded({args[0]})")
        self.operations += 1
        self.launches += 3 if symbol.op == "erf" else 1  # CuPy has it for wide types only
        kind = "bool" if symbol.is_mask else "float"
        return self._statement(kind, TEMPLATES[symbol.op].format(*args))

    def _statement(self, kind: str, value: str) -> str:
        name = f"t{len(self.statements)}"
        self.statements.append((kind, name, value))
        return name

    def run(self, arrays: Sequence[Any]) -> list[Any] | None:
        """Return the outputs for these inputs; None where a kernel does not fit them.

        All arrays are on one GPU, or NumPy's while the emulator is active.
        """
        shapes = {arrays[i].shape for i in self._shaping}
        if len(shapes) == 1:
            (shape,) = shapes
        else:
            try:
                shape = np.broadcast_shapes(*shapes)
            except ValueError:
                return None  # the operations themselves say what is wrong
            if any(
                np.broadcast_shapes(*(arrays[i].shape for i in inputs)) != shape
                for inputs in self.shapes
            ):
                return None
        n = math.prod(shape)
        if not n:
            return None
        layouts = [_layout(arrays[i], shape, n) for i in self.inputs]
        like = arrays[self._shaping[0]]
        outputs = [
            empty(shape, dtype, like) if shared is None else arrays[shared]
            for dtype, shared in zip(self.dtypes, self.shared, strict=True)
        ]
        stored = [out for out, shared in zip(outputs, self.shared, strict=True) if shared is None]
        if not stored:
            return outputs
        args: list[Any] = []
        for layout in layouts:
            args += [layout.array, *layout.place]
        self._source(tuple(layout.kind for layout in layouts)).launch(
            self.name,
            (-(-n // (THREADS * self.width)),),
            (THREADS,),
            [*args, *stored, *self.constants, n],
            GPUGRAD_DTYPE=self.code,
        )
        return outputs

    def _source(self, kinds: tuple[str, ...]) -> Source:
        found = self._by_layout.get(kinds)
        if found is None:
            text = _header() + self.kernel(kinds)
            found = _sources.get(text)
            if found is None:
                found = _sources[text] = Source(f"{self.name}.cu", large=True, text=text)
            self._by_layout[kinds] = found
        return found

    def kernel(self, kinds: Sequence[str] | None = None) -> str:
        """Return the kernel for inputs of these layouts, by default full ones, as CUDA C++."""
        kinds = (_FULL,) * len(self.inputs) if kinds is None else kinds
        inputs = [(i, self._types[i], kind) for i, kind in zip(self.inputs, kinds, strict=True)]
        outputs = [
            (k, _c_type(dtype))
            for k, dtype in enumerate(
                d for d, shared in zip(self.dtypes, self.shared, strict=True) if shared is None
            )
        ]
        return _kernel_text(self, inputs, outputs)


def _kernel_text(
    program: Program, inputs: list[tuple[int, str, str]], outputs: list[tuple[int, str]]
) -> str:
    """Write the kernel; x are values of inputs, p and q pointers to inputs and outputs."""
    value = {i: "bool" if c_type == "uint8_t" else "float" for i, c_type, _ in inputs}
    constants = [f"c{k}" for k in range(len(program.constants))]
    places = {i: [f"{w}{i}" for w in ("inner", "outer", "far", "near")] for i, _, _ in inputs}
    parameters: list[str] = []
    for i, c_type, kind in inputs:
        parameters.append(f"const {c_type}* p{i}")
        if kind == _PLACED:
            parameters += [f"uint32_t {name}" for name in places[i]]
    parameters += [f"{c_type}* q{k}" for k, c_type in outputs]
    parameters += [f"float {c}" for c in constants] + ["int64_t n"]
    passed = [f"{value[i]} x{i}" for i, _, _ in inputs] + [f"float {c}" for c in constants]
    passed += [f"float& y{k}" for k, _ in outputs]

    element = program.name.replace("elementwise", "element", 1)

    def call(index: str) -> str:
        given = [f"x{i}" if kind == _ONE else f"x{i}{index}" for i, _, kind in inputs]
        taken = ", ".join([*given, *constants, *(f"y{k}{index}" for k, _ in outputs)])
        return f"{element}({taken});"

    full = [f"p{i}" for i, _, kind in inputs if kind == _FULL] + [f"q{k}" for k, _ in outputs]
    packs, elements = [], []
    for i, _, kind in inputs:
        if kind == _FULL:
            packs += [f"{value[i]} x{i}[WIDTH];", f"load(p{i} + pack * WIDTH, x{i});"]
            elements.append(f"const {value[i]} x{i} = decoded(p{i}[i]);")
        elif kind == _PLACED:
            place = ", ".join(places[i])
            packs.append(f"{value[i]} x{i}[WIDTH];")
            packs.append(f"load_placed(p{i}, uint32_t(pack * WIDTH), {place}, x{i});")
            elements.append(f"const {value[i]} x{i} = decoded(p{i}[place(uint32_t(i), {place})]);")
    packs += [f"float y{k}[WIDTH];" for k, _ in outputs]
    packs += ["#pragma unroll", f"for (int k = 0; k < WIDTH; k++) {call('[k]')}"]
    packs += [f"store(q{k} + pack * WIDTH, y{k});" for k, _ in outputs]
    if outputs:
        elements.append(f"float {', '.join(f'y{k}' for k, _ in outputs)};")
    elements.append(call(""))
    elements += [f"q{k}[i] = encoded<{c_type}>(y{k});" for k, c_type in outputs]
    ones = [f"const {value[i]} x{i} = decoded(p{i}[0]);" for i, _, kind in inputs if kind == _ONE]

    sizes = {"T": 2 if program.code else 4, "float": 4, "uint8_t": 1}
    moved = sum(sizes[c_type] for _, c_type, kind in inputs if kind == _FULL)
    moved += sum(sizes[c_type] for _, c_type in outputs)
    layouts = [f"x{i} {c_type} ({kind})" for i, c_type, kind in inputs]
    named = ", ".join([*layouts, *(f"y{k} {c_type}" for k, c_type in outputs)])
    body = [f"const {kind} {name} = {text};" for kind, name, text in program.statements]
    body += [f"y{k} = {name};" for (k, _), name in zip(outputs, program._results, strict=True)]
    aligned = " && ".join(f"aligned16({p})" for p in full)
    return f"""#line 1 "{program.name}.cu"
// Generated by gpugrad/cuda/elementwise.py: {program.name}.
//
// n elements of each of {named}.
// Inputs that are "one" have one element, "placed" ones are broadcast or strided. One thread
// computes WIDTH neighbouring elements at a time, arithmetic in float32. Saves nothing.
// Bytes: {moved} n and the inputs that are not full.  FLOPs: {program.operations} n.
__device__ __forceinline__ void {element}({", ".join(passed)}) {{
{_indented(body, 4)}}}

extern "C" __global__ void __launch_bounds__(THREADS)
    {program.name}({", ".join(parameters)}) {{
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t step = int64_t(gridDim.x) * THREADS;
    const bool together = {aligned};
    const int64_t packs = together ? n / WIDTH : 0;
{_indented(ones, 4)}    for (int64_t pack = first; pack < packs; pack += step) {{
{_indented(packs, 8)}    }}
    for (int64_t i = packs * WIDTH + first; i < n; i += step) {{
{_indented(elements, 8)}    }}
}}
"""


def _indented(lines: Sequence[str], spaces: int) -> str:
    return "".join(
        line + "\n" if line.startswith("#") else " " * spaces + line + "\n" for line in lines
    )


@functools.cache
def _header() -> str:
    sources = importlib.import_module("gpugrad.cuda.source")
    return sources.inline(sources.folder() / "elementwise.cuh") + "\n"


def _uncast(out: Symbol) -> Symbol:
    """Return an output before it is cast to the dtype in which it is stored anyway."""
    if out.op == "cast" and out.dtype != backend.float32:
        inner = out.args[0]
        return inner if not inner.is_mask else out
    return out


def _in_order(outputs: Sequence[Symbol]) -> list[Symbol]:
    """Return all that the outputs are made of, arguments first."""
    order: list[Symbol] = []
    seen: set[Symbol] = set()
    stack = [(out, False) for out in reversed(outputs)]
    while stack:
        symbol, is_ready = stack.pop()
        if is_ready:
            order.append(symbol)
        elif symbol not in seen:
            seen.add(symbol)
            stack.append((symbol, True))
            stack += [(a, False) for a in reversed(symbol.args)]
    return order


def _c_type(dtype: Any) -> str:
    if dtype == backend.bool_:
        return "uint8_t"
    return "float" if dtype == backend.float32 else "T"


def _layout(array: Any, shape: tuple[int, ...], n: int) -> _Layout:
    """Return how a kernel reads an array broadcast to a shape of n elements."""
    if array.size == n and array.flags.c_contiguous:
        return _Layout(_FULL, array)
    view = backend.xp_of(array).broadcast_to(array, shape)
    axes: list[list[int]] = []  # lengths and distances in elements, innermost first
    for length, distance in zip(reversed(shape), reversed(view.strides), strict=True):
        distance //= array.itemsize
        if length > 1 and axes and distance == axes[-1][0] * axes[-1][1]:
            axes[-1][0] *= length
        elif length > 1:
            axes.append([length, distance])
    if not axes or axes == [[n, 0]]:
        return _Layout(_ONE, strided(array))
    if len(axes) == 1:
        axes.append([1, 0])
    if len(axes) == 2:
        axes.append([1, 0])
    (inner, near), (outer, far), (_, furthest) = axes[:3]
    reach = (inner - 1) * near + (outer - 1) * far
    if len(axes) > 3 or furthest or near < 0 or far < 0 or max(n, reach) >= SMALL:
        return _Layout(_FULL, view.copy(order="C"))
    again = inner * outer < n
    return _Layout(_PLACED, strided(array), (inner, outer if again else 0, far, near))


class Programs:
    """The programs of one operation, one for each combination of dtypes and numbers it meets."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Program | None] = {}

    def get(self, key: Hashable, trace: Callable[[], Program | None]) -> Program | None:
        """Return the program for a key, traced when first asked for; None if there is none."""
        if key not in self._found:
            if len(self._found) >= KEPT:
                self._found.clear()
            try:
                self._found[key] = trace()
            except Exception:  # whatever a rule cannot do with symbols, it does with arrays
                self._found[key] = None
        return self._found[key]


def key_of(value: Any) -> Hashable:
    """Return what a trace depends on of an argument: an array's dtype, a number itself.

    Raises TypeError for what is neither an array, a number nor None.
    """
    if backend.is_array(value):
        return value.dtype
    if value is None:
        return None
    if isinstance(value, (bool, int, float)):
        return type(value), repr(value)
    raise TypeError(f"no expression depends on a {type(value).__name__}")


def chain(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward over xp, of several elementwise steps, that is one kernel where it can be:
    on a GPU, and on the CPU while the emulator is active.
    """
    programs = Programs()

    @functools.wraps(forward)
    def run(xp: Any, *arrays: Any, **statics: Any) -> Any:
        if (xp is np and not expected()) or xp is symbolic.xp:
            return forward(xp, *arrays, **statics)
        out = _by_kernel(name, programs, forward, arrays, statics)
        return forward(xp, *arrays, **statics) if out is None else out

    return run


def _by_kernel(
    name: str,
    programs: Programs,
    forward: Callable[..., Any],
    arrays: Sequence[Any],
    statics: dict[str, Any],
) -> Any:
    if not emulated() and any(isinstance(a, np.ndarray) for a in arrays):
        return None
    try:
        key = tuple(map(key_of, (*arrays, *statics.values())))
    except TypeError:
        return None

    def trace() -> Program | None:
        args = [
            symbolic.argument(i, a.dtype) if backend.is_array(a) else a
            for i, a in enumerate(arrays)
        ]
        out = forward(symbolic.xp, *args, **statics)
        program = Program(f"{name}_forward", [getattr(a, "dtype", None) for a in arrays], [out])
        return program if program.launches > 1 else None

    program = programs.get(key, trace)
    found = None if program is None else program.run(arrays)
    return None if found is None else found[0]
