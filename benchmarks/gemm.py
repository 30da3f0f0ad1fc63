"""Matrix products of GPT-2 with what surrounds them: one launch against several, and the peers.

"cuda" is ``cuda.gemm`` with its epilogue, "composed" the same by a plain product and kernels of
ours, "matmul" the product alone by CuPy or NumPy. No fused operation.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import bench
from bench import Built, Call, Cost, Work

import gpugrad as gg
from gpugrad import backend, cuda

gemm = importlib.import_module("gpugrad.cuda.gemm")


class Operands(NamedTuple):
    """a (M, K) and b (K, N), transposed by their strides where training has them so."""

    a: Any
    b: Any
    bias: Any
    aux: Any


def _operands(epilogue: str | None, size: tuple[int, int, int], device: str, dtype: str) -> Any:
    m, n, k = size
    draw = functools.partial(bench.normal, dtype=dtype, device=device)
    gradient = epilogue == "bgrad"  # of a weight: both operands are activations
    a = draw((k, m)).data.T if gradient else draw((m, k)).data
    b = draw((k, n)).data if gradient or epilogue == "dgelu_bgrad" else draw((n, k)).data.T
    bias = None if epilogue is None else draw((m if gradient else n,)).data
    aux = draw((m, n)).data if epilogue in ("gelu", "dgelu_bgrad") else None
    return Operands(a, b, bias, aux)


def _torch(torch: Any, epilogue: str | None, x: Operands) -> tuple[Any, ...]:
    """Return what the epilogue defines, by PyTorch's functions."""
    if epilogue is None:
        return (x.a @ x.b,)
    if epilogue == "bias":
        return (torch.addmm(x.bias, x.a, x.b),)
    if epilogue == "bgrad":
        return x.a @ x.b, x.a.sum(1)
    if epilogue == "gelu":
        before = torch.addmm(x.bias, x.a, x.b)
        return torch.nn.functional.gelu(before, approximate="tanh"), before
    out = torch.ops.aten.gelu_backward(x.a @ x.b, x.aux, approximate="tanh")
    return out, out.sum(0)


def _make(epilogue: str | None, size: Any, device: str, dtype: str, torch: Any) -> Built:
    gg.manual_seed(0)
    m, n, k = size
    x = _operands(epilogue, size, device, dtype)
    xp = backend.xp_of(x.a)
    out = xp.empty((m, n), x.a.dtype)

    def run() -> tuple[Any, ...]:
        cuda.gemm(x.a, x.b, out, epilogue=epilogue, bias=x.bias, aux=x.aux)
        written = {"gelu": (x.aux,), "bgrad": (x.bias,), "dgelu_bgrad": (x.bias,)}
        return (out, *written.get(epilogue or "", ()))

    def composed() -> None:
        problem = gemm.describe(x.a, x.b, out, epilogue, x.bias, x.aux)
        gemm._composed(problem, x.a, x.b, out, x.bias, x.aux, 1.0)

    makers: dict[str, Any] = {bench.fast_path(device): bench.only(run)}
    makers["matmul"] = bench.only(lambda: xp.matmul(x.a, x.b))
    if device != "cpu" and epilogue is not None:
        makers["composed"] = bench.only(composed)
    if torch is not None:
        makers["torch"] = lambda: [_by_torch(torch, epilogue, x, run)]
    arrays = [*x, out]
    nbytes = sum(array.nbytes for array in arrays if array is not None)
    return Built(Cost(nbytes, 2 * m * n * k), makers)


def _by_torch(torch: Any, epilogue: str | None, x: Operands, run: Callable[[], Any]) -> Call:
    def tensor(array: Any) -> Any:
        if array is None:
            return None
        by_rows = array.flags.c_contiguous
        t = bench.to_torch(torch, array if by_rows else array.T)
        return t if by_rows else t.T

    given = Operands(*map(tensor, x))
    call = bench.without_graph(torch, lambda: _torch(torch, epilogue, given))
    found = [bench.from_torch(torch, t) for t in _torch(torch, epilogue, given)]
    return Call("forward", call, bench.difference(found, run()))


def _case(label: str, epilogue: str | None, size: tuple[int, int, int]) -> Work:
    """Return a case; on a CPU the tokens, 65536 of them on a GPU, are fewer."""
    smaller = tuple(min(length, 1024) for length in size)
    return Work("gemm", size, smaller, functools.partial(_make, epilogue), label)


TOKENS = 65536  # 64 sequences of 1024
CASES = [
    _case("queries, keys, values", "bias", (TOKENS, 2304, 768)),
    _case("projection", "bias", (TOKENS, 768, 768)),
    _case("up, GELU", "gelu", (TOKENS, 3072, 768)),
    _case("down", "bias", (TOKENS, 768, 3072)),
    _case("gradient of GELU", "dgelu_bgrad", (TOKENS, 3072, 768)),
    _case("gradient of the up weight", "bgrad", (3072, 768, TOKENS)),
    _case("gradient of the down weight", "bgrad", (768, 3072, TOKENS)),
    _case("head", None, (TOKENS // 4, 50304, 768)),
]

if __name__ == "__main__":
    sys.exit(bench.main(["gemm", *sys.argv[1:]]))
