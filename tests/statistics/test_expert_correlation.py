"""Rank correlation over experts and their pairs, against scipy, plain loops, and simulated experts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, spearmanr, t

from moescope.measures.correlation import correlate_experts, pooled, spearman


def symmetric(generator: np.random.Generator, num_experts: int, own: float) -> NDArray:
    """Pairs of unit variance, of which a share `own` comes from the two experts and the rest from the pair."""
    effects = generator.normal(size=num_experts)
    noise = np.triu(generator.normal(size=(num_experts, num_experts)), 1)
    return math.sqrt(own / 2) * (effects[:, None] + effects) + math.sqrt(1 - own) * (noise + noise.T)


def test_pairs_are_spearman_of_scipy_whatever_the_diagonal_and_the_triangle() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(12, 12))
    b = np.round(a + generator.normal(size=(12, 12)))
    above = np.triu_indices(12, 1)
    expected = spearmanr(((a + a.T) / 2)[above], ((b + b.T) / 2)[above]).statistic
    np.fill_diagonal(a, 99.0)
    np.fill_diagonal(b, np.nan)
    found = correlate_experts(a, b, num_permutations=49)
    assert found.value == pytest.approx(expected)
    assert (found.num_experts, found.num_values) == (12, 66)
    assert found.low < found.value < found.high


def test_experts_are_spearman_of_scipy_also_with_ties_and_gaps() -> None:
    generator = np.random.default_rng(1)
    a = generator.integers(0, 5, 30).astype(float)
    b = a + generator.normal(size=30)
    a[3] = b[8] = np.nan
    known = np.isfinite(a) & np.isfinite(b)
    found = correlate_experts(a, b, num_permutations=49)
    assert found.value == pytest.approx(spearmanr(a[known], b[known]).statistic)
    assert (found.num_experts, found.num_values) == (28, 28)


@pytest.mark.parametrize("missing", [False, True])
def test_interval_is_a_plain_jackknife_over_experts(missing: bool) -> None:
    generator = np.random.default_rng(2)
    a, b = symmetric(generator, 14, 0.3), symmetric(generator, 14, 0.3)
    b = np.round(0.5 * a + b, 1)
    if missing:
        a[5] = a[:, 5] = np.nan
        a[2, 7] = a[7, 2] = np.nan
    found = correlate_experts(a, b, num_permutations=49)
    experts = [expert for expert in range(14) if not (missing and expert == 5)]
    values = []
    for left_out in experts:
        pairs = [(i, j) for i in experts for j in experts if i < j and left_out not in (i, j)]
        pairs = [pair for pair in pairs if not np.isnan(a[pair])]
        values.append(math.atanh(spearmanr([a[p] for p in pairs], [b[p] for p in pairs]).statistic))
    num = len(experts)
    expected = (num - 1) / num * sum((value - np.mean(values)) ** 2 for value in values)
    assert found.variance == pytest.approx(expected)
    assert found.degrees == num - 1


def test_more_experts_than_groups_are_left_out_together() -> None:
    generator = np.random.default_rng(3)
    a = symmetric(generator, 80, 0.5)
    found = correlate_experts(a, a + symmetric(generator, 80, 0.5), num_permutations=9)
    assert found.degrees == 63
    assert found.high - found.low == pytest.approx(0.25, abs=0.15)


@pytest.mark.parametrize("missing", [False, True])
def test_null_permutes_experts_of_one_measure(missing: bool) -> None:
    """Against the same correlation of matrices really permuted; where pairs are missing ranks are those of all."""
    generator = np.random.default_rng(4)
    a, b = symmetric(generator, 16, 0.5), symmetric(generator, 16, 0.5)
    if missing:
        gone = np.triu(generator.random((16, 16)) < 0.4, 1)
        a[gone | gone.T] = np.nan
    found = correlate_experts(a, b, num_permutations=600, seed=5)
    above = np.triu_indices(16, 1)
    values = []
    for _ in range(600):
        order = generator.permutation(16)
        values.append(spearmanr(a[above], b[np.ix_(order, order)][above], nan_policy="omit").statistic)
    spread = np.std(values)
    assert np.std(np.tanh(found.null_R)) == pytest.approx(spread, rel=0.12)
    assert found.null_low == pytest.approx(np.quantile(values, 0.025), abs=0.5 * spread)
    assert found.null_high == pytest.approx(np.quantile(values, 0.975), abs=0.5 * spread)


@pytest.mark.parametrize("own", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("r", [0.0, 0.6])
@pytest.mark.parametrize("times", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_coverage_over_experts(own: float, r: float, times: int) -> None:
    """Normal pairs of correlation r have Spearman's (6 / pi) asin(r / 2), however much of it is the experts' own.

    An interval that took the 276 pairs for independent ones would cover 49 % at own = 0.9. Bounds are those of the
    binomial distribution at 1 in 1,000 each side; intervals may cover 1 % less than they say.
    """
    generator = np.random.default_rng(6)
    true = 6 / math.pi * math.asin(r / 2)
    covered, rejected = 0, 0
    for _ in range(times):
        a = symmetric(generator, 24, own)
        b = r * a + math.sqrt(1 - r**2) * symmetric(generator, 24, own)
        found = correlate_experts(a, b, num_permutations=99)
        covered += found.low <= true <= found.high
        rejected += found.p_value <= 0.05
    assert covered >= binom.ppf(1e-3, times, 0.94)
    if r == 0:  # the permutation test is exact
        assert binom.ppf(1e-3, times, 0.05) <= rejected <= binom.ppf(1 - 1e-3, times, 0.05)


def test_pooled_is_the_mean_of_layers() -> None:
    generator = np.random.default_rng(7)
    parts = []
    for _ in range(3):
        a = symmetric(generator, 12, 0.2)
        parts.append(correlate_experts(a, 0.8 * a + symmetric(generator, 12, 0.2), num_permutations=99))
    parts.append(correlate_experts(np.full((12, 12), 1.0), a))
    assert math.isnan(parts[-1].value)
    whole = pooled(parts)
    assert whole.value == pytest.approx(math.tanh(np.mean([math.atanh(part.value) for part in parts[:3]])))
    assert whole.variance == pytest.approx(sum(part.variance for part in parts[:3]) / 9)
    assert whole.degrees == 33
    assert math.atanh(whole.high) - math.atanh(whole.value) == pytest.approx(t.ppf(0.975, 33) * whole.variance**0.5)
    assert np.allclose(whole.null_R, np.mean([part.null_R for part in parts[:3]], axis=0))
    assert whole.num_experts == 36
    assert math.isnan(pooled(parts[3:]).value)


def test_what_has_no_correlation() -> None:
    assert math.isnan(correlate_experts([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).value)
    assert math.isnan(correlate_experts(np.ones(9), np.arange(9.0)).value)
    assert math.isnan(correlate_experts(np.full((9, 9), np.nan), np.ones((9, 9))).value)
    assert math.isnan(spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    with pytest.raises(ValueError, match="shapes"):
        correlate_experts(np.ones(3), np.ones((3, 3)))
    perfect = correlate_experts(np.arange(9.0), np.arange(9.0))
    assert perfect.value == pytest.approx(1.0) and perfect.p_value < 0.01
