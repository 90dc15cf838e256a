"""Rank correlations over rows that are of the same experts: values by scipy, intervals and null by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from moescope.measures.correlation import correlate_experts, correlate_rows, pooled


def some_rows(seed: int, num_experts: int, shared: float, num_rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Two unrelated measures in several domains; a share of the variance of each is the expert's own in all of them."""
    generator = np.random.default_rng(seed)

    def measure() -> np.ndarray:
        own_E, noise_DE = generator.normal(size=num_experts), generator.normal(size=(num_rows, num_experts))
        return np.sqrt(shared) * own_E + np.sqrt(1 - shared) * noise_DE

    return measure(), measure()


def test_the_value_is_the_mean_over_rows_also_with_gaps() -> None:
    a_DE, b_DE = some_rows(0, 40, 0.3)
    b_DE = b_DE + a_DE
    a_DE[2, 5] = b_DE[4, 7] = np.nan
    a_DE[:, 3] = np.nan  # an expert without values
    b_DE[1] = np.nan  # and a row
    found = correlate_rows(a_DE, b_DE, num_permutations=99)
    known = [np.isfinite(a) & np.isfinite(b) for a, b in zip(a_DE, b_DE, strict=True)]
    rows = [spearmanr(a[k], b[k]).statistic for a, b, k in zip(a_DE, b_DE, known, strict=True) if k.sum() > 3]
    assert len(rows) == 5
    assert found.value == pytest.approx(np.tanh(np.arctanh(rows).mean()))
    assert (found.num_experts, found.num_values) == (39, sum(int(k.sum()) for k in known))
    assert found.low < found.value < found.high


def test_a_single_row_has_the_interval_of_its_experts() -> None:
    a_DE, b_DE = some_rows(1, 100, 0.0, num_rows=1)
    rows, experts = correlate_rows(a_DE, b_DE), correlate_experts(a_DE[0], b_DE[0])
    assert (rows.value, rows.low, rows.high) == pytest.approx((experts.value, experts.low, experts.high))
    assert rows.null_high == pytest.approx(experts.null_high, abs=0.03)


def test_intervals_cover_where_rows_share_their_experts() -> None:
    """Where each expert is alike in all rows, they count as little more than one; adding variances would not do."""
    covered = apart = rejected = 0
    for seed in range(60):
        a_DE, b_DE = some_rows(seed, 40, 0.9)
        found = correlate_rows(a_DE, b_DE, num_permutations=199, seed=seed)
        added = pooled([correlate_experts(a, b, num_permutations=1) for a, b in zip(a_DE, b_DE, strict=True)])
        covered += found.low <= 0 <= found.high
        apart += added.low <= 0 <= added.high
        rejected += found.p_value <= 0.05
    # Binomial(60, 0.95) is below 53 once in 150.
    assert covered >= 52
    assert apart < covered - 5
    assert rejected <= 9


def test_what_has_no_answer() -> None:
    few = correlate_rows([[1, 2, 3]], [[3, 1, 2]])
    assert np.isnan([few.value, few.low, few.null_low, few.p_value]).all()
    same = correlate_rows(np.ones((2, 9)), np.arange(18.0).reshape(2, 9))
    assert np.isnan(same.value)
    assert same.num_values == 0
    with pytest.raises(ValueError, match="shapes"):
        correlate_rows([[1.0, 2.0]], [1.0, 2.0])
