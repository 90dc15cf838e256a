"""Counts made ready to draw."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.figures.bins import densities
from moescope.measures.histogram import LinearAxis, LogAxis


def padded(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1)


def test_densities_are_shares_per_unit_and_cover_all_but_the_cut() -> None:
    values = np.random.default_rng(0).normal(size=(2, 20_000)) * [[1.0], [2.0]]
    fine = LinearAxis(-64.0, 64.0, 2048).edges
    edges, density = densities(fine, np.stack([padded(row, fine) for row in values]), num_bins=40, cut=0.01)
    assert density.shape == (2, len(edges) - 1)
    assert 30 <= len(edges) - 1 <= 40
    shares = (density * np.diff(edges)).sum(axis=1)
    assert (shares >= 0.98).all()
    assert (shares <= 1).all()
    for row, heights in zip(values, density, strict=True):
        expected = np.histogram(row, edges)[0] / len(row) / np.diff(edges)
        np.testing.assert_allclose(heights, expected, atol=1e-12)
    assert set(edges) <= set(fine)


def test_logarithmic_densities_are_per_factor_of_ten_and_flat_where_values_are() -> None:
    values = 10 ** np.random.default_rng(1).uniform(-4, 0, 400_000)
    fine = LogAxis(-40, 8, 64).edges
    edges, density = densities(fine, padded(values, fine), num_bins=40, log=True)
    assert density[1:-1] == pytest.approx(0.25, rel=0.1)  # even over four powers of ten, without teeth
    assert edges[0] == pytest.approx(1e-4, rel=0.05)
    assert edges[-1] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("counts", [np.zeros(12), np.eye(12)[0], np.eye(12)[-1], np.eye(12)[5]], ids=str)
def test_nothing_or_one_bin_or_all_off_the_axis_is_still_drawable(counts: np.ndarray) -> None:
    edges, density = densities(np.arange(11.0), counts)
    assert len(edges) >= 2
    assert (np.diff(edges) > 0).all()
    assert np.isfinite(density).all()


def test_an_empty_row_is_flat_beside_a_full_one() -> None:
    counts = np.array([[0, 0, 5, 5, 0, 0], [0, 0, 0, 0, 0, 0]])
    edges, density = densities(np.arange(5.0), counts)
    assert edges[0] <= 1
    assert edges[-1] >= 3
    assert (density[1] == 0).all()
    assert (density[0] * np.diff(edges)).sum() == pytest.approx(1)
