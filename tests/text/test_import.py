from __future__ import annotations

import subprocess
import sys

import gpugrad.text


def test_import_does_not_load_the_tokenizers_library() -> None:
    code = "import sys, gpugrad.text; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_explicit() -> None:
    names = gpugrad.text.__all__
    assert names == sorted(names, key=lambda name: (name.islower(), name))
    assert all(hasattr(gpugrad.text, name) for name in names)
