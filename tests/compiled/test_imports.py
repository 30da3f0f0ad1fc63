"""gg.compile: modules that a step imports are seen as those imported at the top of a file."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

import gpugrad as gg

pytestmark = pytest.mark.usefixtures("launched")
ONE = np.ones(2, np.float32)
SOURCE = "scale = 2.0\n\ndef helper(x):\n    return x * scale\n"


def import_module(x):
    import its_package.numbers

    return x * its_package.numbers.scale


def import_as(x):
    import its_package.numbers as its

    return x * its.scale


def import_name(x):
    from its_package.numbers import scale

    return x * scale


def import_part(x):
    from its_package import numbers

    return x * numbers.scale


def import_helper(x):
    from its_package.numbers import helper

    return helper(x)


def import_in_a_function(x):
    def scale():
        from its_package.numbers import scale

        return scale

    return x * scale()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the name of a module in a package, neither of which is imported yet."""
    (tmp_path / "its_package").mkdir()
    (tmp_path / "its_package" / "__init__.py").touch()
    (tmp_path / "its_package" / "numbers.py").write_text(SOURCE)
    relative = "def step(x):\n    from . import numbers\n    return x * numbers.scale\n"
    (tmp_path / "its_package" / "near.py").write_text(relative)
    monkeypatch.syspath_prepend(tmp_path)
    yield "its_package.numbers"
    for name in [name for name in sys.modules if name.startswith("its_package")]:
        del sys.modules[name]


STEPS = [
    import_module,
    import_as,
    import_name,
    import_part,
    import_helper,
    import_in_a_function,
    "relative",
]


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "not yet"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: getattr(step, "__name__", step))
def test_a_number_of_a_module_that_the_step_imports(step, loaded, package, monkeypatch):
    if step == "relative":
        step = importlib.import_module("its_package.near").step
    if loaded:
        importlib.import_module(package)
    step = gg.compile(step)
    assert step(ONE).tolist() == [2, 2]
    module = importlib.import_module(package)
    for number in (2.0, 3.0, 3.0, 2.0):
        monkeypatch.setattr(module, "scale", number)
        assert step(ONE).tolist() == [number] * 2
    assert step.recordings == (2 if loaded else 3)


def test_a_module_in_a_variable(package):
    module = importlib.import_module(package)

    def step(x):
        here = module
        return x * here.scale

    step = gg.compile(step)
    assert step(ONE).tolist() == [2, 2]
    module.scale = 3.0
    assert step(ONE).tolist() == [3, 3]


def test_a_module_that_is_not_there(package):
    def step(x):
        try:
            from its_package import missing
        except ImportError:
            return x
        return x * missing.scale

    step = gg.compile(step)
    for _ in range(3):
        assert step(ONE).tolist() == [1, 1]
    assert step.recordings <= 2  # the second has seen the package
