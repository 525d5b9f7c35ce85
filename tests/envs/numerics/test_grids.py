"""Axes and grids: spacing, coordinates and refused sizes."""

import math

import numpy as np
import pytest

from envs.numerics.grids import Axis, Grid


@pytest.mark.parametrize(
    ("layout", "spacing", "first", "last"), [("periodic", 0.5, 0.0, 1.5), ("vertex", 2 / 3, 0.0, 2.0), ("cell", 0.5, 0.25, 1.75)]
)
def test_axis_spacing_and_coordinates(layout, spacing, first, last):
    axis = Axis(name="x", extent=2.0, size=4, layout=layout)
    assert axis.spacing == pytest.approx(spacing)
    assert axis.coordinates[[0, -1]] == pytest.approx([first, last])
    assert np.diff(axis.coordinates) == pytest.approx(np.full(3, spacing))


def test_grid_lists_rows_first():
    rows = Axis(name="t", extent=1.0, size=5, layout="vertex")
    grid = Grid(rows=rows, columns=Axis(name="x", extent=1.0, size=8, layout="periodic"))
    assert (grid.shape, grid.spacing, grid.periodic) == ((5, 8), (0.25, 0.125), (False, True))


@pytest.mark.parametrize(
    ("extent", "size", "got"), [(1.0, 1, "got 1"), (0.0, 4, "got 0"), (-1.0, 4, "got -1"), (math.nan, 4, "nan")]
)
def test_degenerate_axes_are_refused(extent, size, got):
    with pytest.raises(ValueError, match=f"axis 'y'.*{got}"):
        Axis(name="y", extent=extent, size=size, layout="cell")
