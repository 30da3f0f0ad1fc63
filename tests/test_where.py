"""Where a program is: the user's line and the path of modules."""

from __future__ import annotations

import inspect

import numpy as np

import gpugrad as gg
from gpugrad import _where, nn


class Spy(nn.Module):
    def __init__(self):
        self.places = []

    def forward(self, x):
        self.places.append(_where.here())
        return x


def test_the_line_and_the_modules():
    spy = Spy()
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh(), spy))
    model(gg.ones((1, 2)))
    (place,) = spy.places
    assert place.path == "Sequential.1.1"
    assert place.modules == (model, model[1], spy)
    assert place.file == __file__
    assert place.line == f"{__file__}:{place.number}: self.places.append(_where.here())"


def test_a_module_that_no_other_holds_is_called_by_its_class():
    spy = Spy()

    class Model(nn.Module):
        def forward(self, x):
            return nn.Sequential(spy)(x)

    Model()(gg.ones(1))
    assert spy.places[0].path == "Model > Sequential.0"


def test_outside_of_modules():
    place = _where.here()
    assert place.path == ""
    assert place.number == inspect.currentframe().f_lineno - 2
    line = _where.user_line()
    assert line.endswith(": line = _where.user_line()")


def test_what_decorates_a_function_of_the_package_is_nobodys_line():
    place = np.errstate(all="ignore")(_where.here)()
    assert place.file == __file__
