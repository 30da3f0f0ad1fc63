"""`gpugrad doctor`: what works on this machine, what is missing, and the line that installs it."""

from __future__ import annotations

import json
import platform
from typing import NamedTuple

from .. import __version__
from . import cpu, cuda
from .check import OK, Check, attempt

__all__ = ["Check", "Report", "examine"]

_REQUIRED = ("ml_dtypes", "safetensors", "tqdm")
_OPTIONAL = {
    "tokenizers": ("text", "for subwords: --tokenizer bpe"),
    "PyYAML": ("yaml", "for configuration files in YAML"),
    "matplotlib": ("plot", "for loss curves as PNG"),
}


class Report(NamedTuple):
    """All checks, and whether training works on the CPU and on a GPU."""

    checks: list[Check]
    cpu: bool
    cuda: bool

    @property
    def works(self) -> bool:
        """Whether gpugrad can be used."""
        return self.cpu

    def to_json(self) -> str:
        """Return the report as JSON."""
        checks = [check._asdict() for check in self.checks]
        report = {"gpugrad": __version__, "cpu": self.cpu, "cuda": self.cuda, "checks": checks}
        return json.dumps(report, indent=2)

    def to_text(self) -> str:
        """Return the report as lines for a terminal."""
        width = max(len(check.name) for check in self.checks)
        indent = " " * (width + 11)
        lines = [f"gpugrad {__version__} on {platform.platform()}", ""]
        for check in self.checks:
            detail = check.detail.replace("\n", "\n" + indent)
            lines.append(f"{check.status:<7}  {check.name:<{width}}  {detail}")
            if check.fix:
                lines.append(f"{indent}-> {check.fix}")
        works = "works, with NumPy" if self.cpu else "DOES NOT WORK, see above"
        fast = "works, with CuPy" if self.cuda else "not available, see above"
        return "\n".join([*lines, "", f"CPU: {works}. GPU: {fast}."])


def examine() -> Report:
    """Check the machine, from Python to a matrix product on the GPU; takes a second or two."""
    needed = [
        attempt("Python", cpu.check_python),
        attempt("NumPy", cpu.check_numpy),
        attempt("gradient", cpu.check_gradient),
        *(attempt(name, cpu.check_library, name) for name in _REQUIRED),
    ]
    driver = cuda.find_driver()
    computing = attempt("GPU arrays", cuda.check_computing, driver)
    others = [
        driver.check,
        attempt("device", cuda.check_device, driver),
        attempt("CuPy", cuda.check_cupy, driver),
        attempt("NVRTC", cuda.check_nvrtc, driver),
        attempt("CUDA headers", cuda.check_headers, driver),
        attempt("cublasLt", cuda.check_cublaslt, driver),
        computing,
        attempt("g++", cpu.check_compiler),
        attempt("kernel cache", cpu.check_cache),
        *(attempt(name, cpu.check_library, name, *use) for name, use in _OPTIONAL.items()),
    ]
    works = all(check.status == OK for check in needed)
    return Report([*needed, *others], works, computing.status == OK)
