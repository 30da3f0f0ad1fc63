"""Mutants that no test can notice, and why."""

from __future__ import annotations

# file, rule, text of the line, which of the mutants with these three
Key = tuple[str, str, str, int]

_PENDING = "after the last tile only q is on its way, where no key is seen and q is not read"
KERNELS: dict[Key, str] = {
    (
        "sort_ids.cu",
        "bound one too far",
        "for (int64_t at = first; at < end; at += TILE) {",
        0,
    ): "a tile without items has none to place",
    (
        "embedding.cu",
        "bound one too far",
        "if (first < rows) write_zeros(keys, count, dweight, first, rows, columns, col, aligned);",
        0,
    ): "each row is compared with rows again before it is written",
    (
        "softmax.cu",
        "bound one too far",
        "for (int64_t i = threadIdx.y; i < n; i += PARTS * AHEAD) {",
        0,
    ): "each element is compared with n again before it is touched",
    (
        "norm.cuh",
        "bound one too far",
        "for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < rows;",
        0,
    ): "a turn without rows has width 0: it reads nothing and adds zeros",
    (
        "common.cuh",
        "barrier removed",
        "__syncthreads();",
        1,
    ): "no kernel uses the scratch of block_sum a second time; it is for one that will",
    ("attention_forward.cu", "wait removed", "cp_async_wait<0>();", 1): _PENDING,
    ("attention_forward.cu", "waits for one copy less", "cp_async_wait<0>();", 1): _PENDING,
}

_SPEED = "the same numbers; only how the work is cut, and how fast it is"
_CACHE = "the order in which blocks take heads, for the second-level cache: the same numbers"
_TESTS = "an input of the generated tests"
_DEVICE = "needs a second device; tests marked gpu do what the line is for"
_CAPABILITY = "what a GPU of this capability has: none of them is in the tests"
_SHARED = (
    "_SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227}"
)
_SAMPLE = (
    "def _sample(*arguments: Any, is_causal: bool = False, offset: int = 0, "
    "p: float = 0.0) -> Sample:"
)
_NO_SCALE = (
    "NO_SCALE = (None, None, 1.0, 1.0, 1)  # the arguments of grad_norm_finish without a scaler"
)
_FUSED, _OPS, _OPTIM = "gpugrad/fused/", "gpugrad/ops/", "gpugrad/optim/"
PYTHON: dict[Key, str] = {
    (
        "gpugrad/engine.py",
        "condition false",
        "if registry.lift is not None:",
        1,
    ): "a step that is recorded has taken in all tensors that its outputs depend on before",
    (
        "gpugrad/registry.py",
        "None returned",
        "return grads",
        1,
    ): "the rules compute again what the kernel has computed",
    (
        "gpugrad/registry.py",
        "constant",
        "broadcasts: bool = False,",
        0,
    ): "whoever makes an Op says it",
    (
        "gpugrad/registry.py",
        "constant",
        "floats_only: bool = False,",
        0,
    ): "whoever makes an Op says it",
    (
        "gpugrad/registry.py",
        "comparison",
        "if lift is not None:",
        0,
    ): "a recorded step's results are real arrays only as views of those noted when made",
    (
        "gpugrad/registry.py",
        "condition true",
        "if self.metadata:",
        0,
    ): "where none is asked for, none is added",
    (
        "gpugrad/registry.py",
        "condition true",
        "self.domains: Sequence[Any] = [domain] * len(arguments) if one else domain",
        0,
    ): _TESTS,
    (
        "gpugrad/registry.py",
        "condition false",
        "elif name in self.op.arguments and backend.is_array(value):",
        0,
    ): "operations take an array as they take a tensor without a graph",
    (
        _FUSED + "_attention_backward.py",
        "constant",
        "dtype: int, width: int, dropout: int, wanted: int = DK | DV, rows: int = 1024",
        0,
    ): "from 65 rows on the tiles are the same",
    (
        _FUSED + "_attention_backward.py",
        "constant",
        "macros = tiles(2 if dtype else 4, width, rows, rows).macros",
        0,
    ): "tiles only asks whether an element has four bytes",
    (
        _FUSED + "_attention_forward.py",
        "condition false",
        "shared = 16 * (chunks if chunks % 8 == 0 else chunks | 1) * (rows + 4 * keys)",
        0,
    ): "more shared memory than the kernel uses",
    (
        _FUSED + "_attention_forward.py",
        "constant",
        "if head_dim > 128:",
        0,
    ): "a width is a multiple of 16",
    (
        _FUSED + "_attention_forward.py",
        "operator",
        "heads_at_once(batches * heads, keys * width * k.itemsize),",
        2,
    ): _CACHE,
    (
        _FUSED + "_attention_forward.py",
        "arguments swapped",
        "and cuda.fits(query, key, value, since=80)",
        0,
    ): "the same question of the same arrays",
    (
        _FUSED + "_attention_layout.py",
        "constant",
        "return max(1, min(heads, CACHE // (2 * bytes_of_keys)))",
        0,
    ): _CACHE,
    (
        _FUSED + "_attention_sm90.py",
        "arguments swapped",
        "heads_at_once(all_heads, keys * width * q.itemsize),",
        0,
    ): _CACHE,
    (
        _FUSED + "_attention_sm90.py",
        "constant",
        'launch("queries", (dq,), (OWN, 64, 64, OWN), queries, keys, 2 * 2 * width * 64)',
        4,
    ): "more shared memory than the kernel uses",
    (
        _FUSED + "_attention_numpy.py",
        "arguments swapped",
        "np.matmul(h, v[tile.seen].swapaxes(-1, -2), out=ds)",
        1,
    ): "two axes are exchanged in either order",
    (
        _FUSED + "_cross_entropy_cuda.py",
        "constant",
        "def launch(self, kernel: str, args: Sequence[Any], shared_mem: int = 0) -> None:",
        0,
    ): "a byte of shared memory that no kernel uses",
    (
        _FUSED + "_cross_entropy_numpy.py",
        "condition true",
        "if len(ignored):",
        0,
    ): "ids of which none is ignored are copied",
    (
        _FUSED + "_ids.py",
        "condition true",
        "if allowed is not None:",
        0,
    ): "no id is None, so that nothing is taken from what is bad",
    (
        _FUSED + "_norms.py",
        "operator",
        "blocks = min(-(-rows // (threads // team)), BLOCKS * (LARGEST // threads))",
        1,
    ): _SPEED,
    (
        _FUSED + "_rows.py",
        "condition false",
        "if block.dtype == buffer.dtype:",
        0,
    ): "a copy of what could be read where it is",
    (
        _FUSED + "_teams.py",
        "constant",
        _SHARED,
        5,
    ): _CAPABILITY,
    (
        _FUSED + "_teams.py",
        "constant",
        _SHARED,
        6,
    ): _CAPABILITY,
    (
        _FUSED + "_teams.py",
        "constant",
        _SHARED,
        0,
    ): _CAPABILITY,
    (
        _FUSED + "_teams.py",
        "constant",
        _SHARED,
        12,
    ): _CAPABILITY,
    (
        _FUSED + "_tiles.py",
        "operator",
        "self.height = max(1, min(rows, max(16, TILE // max(keys, 1))))",
        0,
    ): _SPEED,
    (
        _FUSED + "_tiles.py",
        "constant",
        "self.height = min(self.height, max(32, min(rows // 4, 128)))",
        2,
    ): _SPEED,
    (
        _FUSED + "_tiles.py",
        "constant",
        "self.group = max(1, TILE // max(self.height * keys, 1))  # heads in a tile",
        0,
    ): _SPEED,
    (
        _FUSED + "_tiles.py",
        "constant",
        "self.group = max(1, TILE // max(self.height * keys, 1))  # heads in a tile",
        1,
    ): _SPEED,
    (
        _FUSED + "attention.py",
        "constant",
        _SAMPLE,
        0,
    ): _TESTS,
    (_FUSED + "dropout.py", "condition true", "if xp is np:", 0): _DEVICE,
    (
        _FUSED + "embed.py",
        "operator",
        "grid = -(-count * -(-columns // width) // (_THREADS // 32))",
        2,
    ): "more blocks, of which the rest has nothing to do",
    (
        _FUSED + "fuse.py",
        "condition true",
        "if key not in self._traced:",
        0,
    ): "traced again: the same kernel, only later",
    (
        _FUSED + "layer_norm.py",
        "arguments swapped",
        "average = np.vecdot(g_block, factor)[:, None] / n",
        0,
    ): "the products of real numbers in either order",
    (
        _FUSED + "rms_norm.py",
        "keyword dropped",
        "u = g_block if factor is None else np.multiply(g_block, factor, out=d)",
        0,
    ): "new memory instead of some at hand",
    (
        _FUSED + "rotary.py",
        "comparison",
        "if x.ndim > 4:",
        0,
    ): "an array of four axes takes this way too: the same numbers, if need be in a copy",
    (
        _FUSED + "softmax.py",
        "constant",
        "return where(total == 0, 1, total)",
        1,
    ): "0 divided by it stays 0, and minus infinity less its logarithm what it is",
    (
        _OPS + "_random.py",
        "constant",
        "xp: ModuleType, kernel: str, dtype: np.dtype, per_block: int, args: tuple, code: int = 0",
        0,
    ): "kernels that make no floats do not ask for their dtype",
    (
        _OPS + "_random.py",
        "constant",
        'return _filled(xp, f"{kernel}_float64", dtype, 2, args)',
        0,
    ): _SPEED,
    (
        _OPS + "elementwise.py",
        "constant",
        "PAIRS = (((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 3), (4, 1)), ((), (2, 3)), ((5,), ()))",
        5,
    ): _TESTS,
    (
        _OPS + "elementwise.py",
        "constant",
        "lambda g, x, out, xp: g * (x / xp.where(out == 0, 1, out)),",
        1,
    ): "0 divided by any number",
    (
        _OPS + "elementwise.py",
        "comparison",
        "return xp.where(x == y, g * 0.5, xp.where(x < y, g, 0))",
        1,
    ): "where both are equal the outer choice decides",
    (
        _OPS + "erf.py",
        "condition true",
        "evaluate = _float64 if x.dtype == np.float64 else _float32",
        0,
    ): "the rule for float64 is as good in float32, only slower",
    (
        _OPS + "erf.py",
        "arguments swapped",
        "np.clip(y, -4, 4, out=y)",
        0,
    ): "-4 clipped to [y, 4] is y clipped to [-4, 4]",
    (
        _OPS + "linalg.py",
        "condition true",
        "if len(xs) == len(ys) or len(ys) > 2:",
        0,
    ): "many small products instead of one: the same up to rounding",
    (
        _OPS + "linalg.py",
        "assignment deleted",
        'OPS["matmul"].function = matmul',
        0,
    ): "tensors have no operation in place that asks for it",
    (
        _OPS + "reduction.py",
        "arguments swapped",
        "return xp.where(out == 0, 0, scale) * _centred(x, axis, xp)",
        0,
    ): "where the spread is 0, so is what the scale is multiplied with",
    (_OPS + "shape.py", "None returned", "return backend.to_device(x, device)", 0): _DEVICE,
    (_OPS + "shape.py", "arguments swapped", "return backend.to_device(x, device)", 1): _DEVICE,
    (_OPTIM + "blocks.py", "constant", "GPU_BLOCK = 1 << 26", 0): _SPEED,
    (_OPTIM + "blocks.py", "constant", "elements = 0", 0): _SPEED,
    (
        _OPTIM + "chunks.py",
        "condition false",
        "if not isinstance(self.tensors, (np.ndarray, backend.Symbolic)):",
        0,
    ): "a GPU's launch is told of arrays that it need not know",
    (
        _OPTIM + "chunks.py",
        "constant",
        'stream = 0 if device == "cpu" else backend.cupy_module().cuda.get_current_stream().ptr',
        0,
    ): "a part of a key, the same for everything on the CPU",
    (
        _OPTIM + "scaler.py",
        "constant",
        _NO_SCALE,
        2,
    ): "without a scale its interval is not read",
    (
        "gpugrad/train/checkpoint.py",
        "keyword dropped",
        "folder.mkdir(parents=True, exist_ok=True)",
        1,
    ): "matters where another process makes the folder after the line above has looked",
}
