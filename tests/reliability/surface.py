"""The public surface: everything a user can call, found in the package itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import gpugrad as gg

MODULES: dict[str, ModuleType] = {
    "gg": gg,
    "F": gg.nn.functional,
    "nn": gg.nn,
    "init": gg.nn.init,
    "optim": gg.optim,
    "schedule": gg.optim.schedule,
    "random": gg.random,
    "text": gg.text,
    "models": gg.models,
    "generate": gg.generate,
    "testing": gg.testing,
}
NOT_CALLED = {  # and why
    "gg.compile": "records what a function launches; tests/compiled",
    "gg.kernel": "a decorator that reads a CUDA file; tests/fused/test_kernel.py",
    "gg.fuse": "a decorator; tests/fused/test_fuse.py",
    "gg.Function": "a base class; tests/test_function.py",
    "optim.Optimizer": "a base class; its optimisers are called",
    "gg.detect_anomaly": "a context",
    "gg.no_grad": "a context",
    "gg.inference_mode": "a context",
    "gg.enable_grad": "a context",
    "random.drawing_from": "a context",
    "random.recording": "a context of a recorded step",
    "random.give_back": "of a recorded step; tests/compiled/test_failures.py",
    "testing.check_kernel": "compiles CUDA; tests/fused/test_kernel.py",
    "testing.Difference": "a result of crosscheck",
    "testing.Report": "a result of crosscheck",
    "text.Tokenizer": "a protocol",
    "generate.LanguageModel": "a protocol",
    "text.stdlib_files": "takes nothing",
    "text.atomic_write": "a context; tests/text/test_files.py",
}


class Target(NamedTuple):
    """Something public that can be called."""

    id: str
    function: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    is_method: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What a message may call it."""
        own = getattr(self.function, "__name__", "")
        found = {self.id.partition(".")[2].strip("_"), own, own.strip("_")}
        if self.is_in_place:
            found |= {"setitem", "put", "getitem", "in-place"}
        return tuple(found | ({"Tensor."} if self.id == "Tensor.to" else set()))

    @property
    def is_in_place(self) -> bool:
        """Whether it changes its first argument."""
        return self.id.endswith("_")

    @property
    def takes_function(self) -> bool:
        """Whether it calls what it is given, which then is what refuses."""
        return any(p.name in ("f", "function") for p in self.parameters)


def targets() -> Iterator[Target]:
    """Yield all that is public and callable, each once, by the first of its names."""
    seen = set()
    for target in _all():
        if target.function not in seen:
            seen.add(target.function)
            yield target


def _all() -> Iterator[Target]:
    for prefix, module in MODULES.items():
        for name in public(module):
            value, id = getattr(module, name), f"{prefix}.{name}"
            known = isinstance(value, (ModuleType, np.dtype)) or not callable(value)
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            if not (known or is_error or id in NOT_CALLED):
                yield Target(id, value, tuple(inspect.signature(value).parameters.values()))
    for name, value in inspect.getmembers(gg.Tensor, inspect.isroutine):
        if not name.startswith("_") or name in ("__getitem__", "__setitem__"):
            parameters = tuple(inspect.signature(value).parameters.values())
            yield Target(f"Tensor.{name}", value, parameters, is_method=True)


def public(module: ModuleType) -> list[str]:
    """Return the public names of a module, PyTorch's spellings among them."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = module.__name__
        members = vars(module).items()
        names = [n for n, v in members if n[0] != "_" and getattr(v, "__module__", "") == own]
    return sorted({*names, *(gg.pytorch.NAMES if module is gg else ())})
