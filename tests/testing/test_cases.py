"""The awkward shapes and layouts really are awkward."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.testing import LENGTHS, layouts, shapes


def test_shapes_cover_what_breaks_kernels() -> None:
    found = shapes()
    assert len(set(found)) == len(found)
    assert () in found
    assert (0,) in found
    assert (1, 1, 1) in found
    assert {len(shape) for shape in found} == {0, 1, 2, 3}
    assert any(0 in shape[:-1] for shape in found)
    assert any(shape[-1:] == (0,) and len(shape) > 1 for shape in found)
    assert any(shape[-1:] == (1023,) for shape in found)
    assert max(len(shape) for shape in shapes(2)) == 2
    assert (2, 77) in shapes(2, length=77)
    assert {0, 1, 1023} <= set(LENGTHS)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 5), (0, 3)], ids=str)
def test_layouts_hold_the_same_values(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=float).reshape(shape)
    found = dict(layouts(array))
    for view in found.values():
        np.testing.assert_array_equal(view, array)
        assert not np.shares_memory(view, array)
    if array.ndim > 1 and array.size:
        assert not found["transposed"].flags.c_contiguous
        assert found["transposed"].strides != array.strides
    if array.ndim and array.size:
        assert all(stride < 0 for stride in found["reversed"].strides)
        assert not found["strided"].flags.contiguous
