"""The median over pairs and its standard errors, against loops and against what other experts would have given."""

import numpy as np
import pytest

from moescope.measures.pairs import error_over_documents, error_over_experts, median_of_pairs
from moescope.measures.usage import silent


def symmetric(values: np.ndarray) -> np.ndarray:
    return (values + values.T) / 2


def test_the_median_is_over_pairs_of_different_experts_with_a_value() -> None:
    values = symmetric(np.random.default_rng(0).normal(size=(9, 9)))
    values[2] = values[:, 2] = np.nan
    pairs = [values[i, j] for i in range(9) for j in range(i) if 2 not in (i, j)]
    assert median_of_pairs(values) == pytest.approx(np.median(pairs))
    assert np.isnan(median_of_pairs(np.full((3, 3), np.nan)))


def test_the_error_over_experts_is_a_delete_one_jackknife() -> None:
    values = symmetric(np.random.default_rng(1).normal(size=(12, 12)))
    without = []
    for expert in range(12):
        left = [other for other in range(12) if other != expert]
        without.append(np.median([values[i, j] for i in left for j in left if i < j]))
    expected = np.sqrt(11 / 12 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert error_over_experts(values) == pytest.approx(expected)
    assert np.isnan(error_over_experts(values[:3, :3]))


def test_the_error_over_experts_is_the_spread_over_other_experts() -> None:
    """Experts that differ in their mean similarity to all others, drawn anew 200 times."""
    medians, errors = [], []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        own_E = generator.normal(size=40)
        values = own_E[:, None] + own_E + symmetric(generator.normal(size=(40, 40)))
        medians.append(median_of_pairs(values))
        errors.append(error_over_experts(values))
    # Conservative where it errs: a jackknife of a median.
    assert 0.9 < np.sqrt(np.mean(np.square(errors))) / np.std(medians) < 1.6


def test_the_error_over_documents_leaves_out_groups_that_hold_something() -> None:
    without = np.stack([symmetric(np.random.default_rng(seed).normal(size=(5, 5))) for seed in range(4)])
    medians = [median_of_pairs(values) for values in without[[0, 1, 3]]]
    expected = np.sqrt(2 / 3 * np.sum((np.array(medians) - np.mean(medians)) ** 2))
    assert error_over_documents(without, [True, True, False, True]) == pytest.approx(expected)
    assert np.isnan(error_over_documents(without, [True, False, False, False]))


def test_silent_is_near_zero_beside_the_layer() -> None:
    norms = np.array([[1.0, 2.0, 0.0, 1e-4, np.nan], [1e-6, 2e-6, 3e-6, 1e-6, 1e-9], [0.0, 0.0, np.nan, 0.0, 0.0]])
    assert silent(norms).tolist() == [
        [False, False, True, True, False],
        [False, False, False, False, True],
        [True, True, False, True, True],
    ]
