from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from moescope.statistics.rank_correlation import rank_correlation, rank_correlation_within


def test_it_is_spearman_of_scipy_also_with_ties_and_gaps() -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 6, 40).astype(float)
    y = x + generator.normal(size=40)
    x[3] = y[9] = np.nan
    known = np.isfinite(x) & np.isfinite(y)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(spearmanr(x[known], y[known]).statistic)
    assert found.num == 38
    assert -1 <= found.low < found.value < found.high <= 1


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Normal pairs with correlation r have Spearman's (6 / pi) asin(r / 2)."""
    generator = np.random.default_rng(1)
    for r in (0.0, 0.6):
        true = 6 / np.pi * np.arcsin(r / 2)
        covered = 0
        for _ in range(600):
            x = generator.normal(size=24)
            y = r * x + np.sqrt(1 - r**2) * generator.normal(size=24)
            found = rank_correlation(x, y)
            covered += found.low <= true <= found.high
        assert 0.92 < covered / 600 < 0.985


def test_within_rows_differences_between_rows_play_no_part() -> None:
    generator = np.random.default_rng(2)
    x_LE = generator.normal(size=(5, 200)) + 10 * np.arange(5)[:, None]
    y_LE = generator.normal(size=(5, 200)) + 10 * np.arange(5)[:, None]
    assert rank_correlation(x_LE.ravel(), y_LE.ravel()).value > 0.9
    within = rank_correlation_within(x_LE, y_LE)
    assert within.low < 0 < within.high
    assert within.num == 1000
    assert within.value == pytest.approx(
        np.mean([spearmanr(x, y).statistic for x, y in zip(x_LE, y_LE, strict=True)]), abs=0.01
    )


def test_what_has_no_answer() -> None:
    assert np.isnan(rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]).value)
    three = rank_correlation([1, 2, 3], [1, 3, 2])
    assert three.value == pytest.approx(0.5)
    assert np.isnan(three.low)
    assert np.isnan(rank_correlation([], []).value)
    assert np.isnan(rank_correlation_within([[1.0, 2.0]], [[1.0, 2.0]]).value)
    perfect = rank_correlation(range(9), range(9))
    assert perfect.value == pytest.approx(1)
    assert perfect.high == pytest.approx(1)
