"""Loading a state dict: everything is checked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..engine import no_grad
from ..tensor import Tensor


class LoadedKeys(NamedTuple):
    """The names a state dict did not have, and those it had that the module does not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load(
    title: str, targets: Mapping[str, Tensor], values: Mapping[str, Any], strict: bool
) -> LoadedKeys:
    """Copy values into the targets of the same names; see Module.load_state_dict."""
    given = {id(target) for name, target in targets.items() if name in values}
    missing = [name for name, target in targets.items() if id(target) not in given]
    unexpected = [name for name in values if name not in targets]
    problems = []
    if strict and missing:
        problems.append(f"missing: {', '.join(missing)}")
    if strict and unexpected:
        problems.append(f"unexpected: {', '.join(map(str, unexpected))}")
    staged: dict[int, tuple[str, Tensor, Any]] = {}
    for name, target in targets.items():
        if name not in values:
            continue
        try:
            array = _array(values[name])
        except (TypeError, ValueError, RuntimeError) as error:
            raise type(error)(f"load_state_dict of {title}: {name}: {error}") from error
        if array.shape != target.shape:
            problems.append(f"{name}: the module has shape {target.shape}, got {array.shape}")
        elif backend.is_float(array.dtype) and not backend.is_float(target.dtype):
            problems.append(f"{name}: the module has dtype {target.dtype}, got {array.dtype}")
        elif not _fits(array, target.dtype):
            problems.append(f"{name}: {array.dtype} holds numbers too large for {target.dtype}")
        elif id(target) not in staged:
            staged[id(target)] = name, target, array.astype(target.dtype, copy=False)
        elif not _same(staged[id(target)][2], array):
            problems.append(
                f"{staged[id(target)][0]} and {name}: one tensor here, two values given"
            )
    if problems:
        raise ValueError("\n  ".join([f"load_state_dict of {title}:", *problems]))
    with no_grad():
        for _, target, array in staged.values():
            target.copy_(backend.to_device(array, target.device))
    return LoadedKeys(missing, unexpected)


def _array(value: Any) -> Any:
    """Return a value of a state dict as an array, whoever's tensor it is.

    PyTorch gives NumPy no bfloat16, no gradient and nothing from a GPU; in NumPy's files bfloat16
    becomes bare pairs of bytes, and no other dtype does.
    """
    if isinstance(value, Tensor):
        return value._data
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    elif isinstance(value, np.ndarray) and value.dtype == np.dtype("V2"):
        value = value.view(backend.bfloat16)
    return backend.as_array(value)


def _fits(array: Any, dtype: np.dtype) -> bool:
    """Return whether a conversion keeps integers in range and finite numbers finite."""
    if array.dtype == dtype or not array.size or isinstance(array, backend.Symbolic):
        return True
    if not backend.is_float(dtype):
        first, last = backend.whole_numbers(dtype)
        return first <= int(array.min()) and int(array.max()) <= last
    if array.dtype.itemsize < dtype.itemsize or array.dtype == backend.bool_:
        return True
    values = backend.to_numpy(array)
    with np.errstate(over="ignore"):
        lost = np.isfinite(values) & ~np.isfinite(values.astype(dtype))
    return not lost.any()


def _same(x: Any, y: Any) -> bool:
    x, y = backend.to_numpy(x), backend.to_numpy(y).astype(x.dtype)
    return np.array_equal(x, y, equal_nan=True)
