"""A stand-in of CuPy on NumPy's memory: gpugrad's path on CuPy arrays runs where there is no GPU.

    python -m pytest -p tests.cupy_stand_in.plugin -n0 -m gpu tests/ops

``install`` puts it in the place of ``cupy`` in a process that has not imported gpugrad yet. It
needs CuPy itself, which can be imported without a GPU, and computes nothing by it: it looks up the
types that CuPy's ufuncs take, the parameters of its functions and the names it has. Kernels run in
the emulator, products by NumPy's reference of ``gemm``. Whatever is marked ``gpu`` and neither
times nor inspects a GPU can run on it.

What it refuses is what CuPy 14 refuses, as its documentation and the installed one's errors say:

- turning an array into a NumPy array without being asked (``__array__``);
- NumPy arrays, lists and other objects as operands, and beside arrays in one call;
- dtypes without a loop in a ufunc's table, and parameters that CuPy's function does not have;
- ``ufunc.at`` but for a few, sums at indices in dtypes without such atomics, sorting bfloat16;
- a mask beside other arrays in an index, arrays as ends of slices;
- results of a wrong shape or dtype, values with more axes than what they are assigned to.

An index out of bounds, with which CuPy goes on at another place, is an error here (``Unnoticed``).
New memory is filled with bytes of ones: NaN as a float.

What it cannot tell:

- whether a result awaits what is queued on another stream: work is done when it is queued; graphs
  are captured and launched, of kernels, products and plain copies only;
- what a GPU computes: the last bits, the order of sums, the values of CuPy's own kernels;
- dtypes of results beyond the tables of ufuncs: those of other functions are NumPy's (sums and
  extremes of bfloat16 stay bfloat16);
- whether NVRTC compiles a kernel, whether the driver takes a launch, which algorithms cublasLt has;
- memory of a GPU, several GPUs, speed.
"""

from __future__ import annotations

import sys

from . import cuda, functions, kernels


def install(capability: int = 90) -> None:
    """Let ``import cupy`` mean the stand-in, a GPU of a compute capability (as in 90, for 9.0).

    Below 75 no kernel takes arrays, so that CuPy's operations do everything. Raises RuntimeError if
    gpugrad may have seen CuPy already.
    """
    if "gpugrad.backend" in sys.modules:
        raise RuntimeError("the stand-in of cupy has to be installed before gpugrad is imported")
    cuda.Device.compute_capability = str(capability)
    sys.modules["cupy"] = functions.module()
    sys.modules["cupyx.scipy.special"] = functions.special()
    kernels.install()
