"""Gamma draws of whole shapes: their law, and that each is a function of its index and cell."""

import numpy as np
import pytest
from scipy import stats

from icrl.gammas import gammas_of_whole_shapes
from icrl.streams import Split, Stream

KEY = (3, Split.TRAIN, Stream.ALGORITHM)


def test_law_and_independence():
    shape = np.tile(np.array([1, 2, 1, 7, 40, 3], np.float32), (8000, 1))
    drawn = gammas_of_whole_shapes(*KEY, np.arange(8000), shape, start=8)
    assert drawn.dtype == np.float32
    assert drawn.min() > 0
    for cell, a in enumerate(shape[0]):
        assert stats.kstest(drawn[:, cell], stats.gamma(a).cdf).pvalue > 0.005, a
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 4.5 / np.sqrt(8000)


def test_a_draw_is_a_function_of_index_and_cell():
    shape = np.tile(np.array([1, 2, 1, 7, 1, 3, 1, 1, 2], np.float32), (5, 1))
    whole = gammas_of_whole_shapes(*KEY, np.arange(5), shape, start=2**31)
    part = gammas_of_whole_shapes(*KEY, np.array([3, 1]), shape[:2, 4:], start=2**31 + 4)
    np.testing.assert_array_equal(whole[[3, 1], 4:], part)
    other = shape.copy()
    other[:, 1] = 5  # what one cell needs changes no other
    changed = gammas_of_whole_shapes(*KEY, np.arange(5), other, start=2**31) != whole
    np.testing.assert_array_equal(changed.any(axis=0), np.arange(9) == 1)


def test_bad_shapes_and_cells():
    with pytest.raises(ValueError, match="multiple of 4"):
        gammas_of_whole_shapes(*KEY, np.arange(1), np.ones((1, 2), np.float32), start=2)
    with pytest.raises(ValueError, match="whole shapes"):
        gammas_of_whole_shapes(*KEY, np.arange(1), np.full((1, 2), 1.5, np.float32), start=0)
    with pytest.raises(ValueError, match="shapes"):
        gammas_of_whole_shapes(*KEY, np.arange(1), np.zeros((1, 2), np.float32), start=0)
