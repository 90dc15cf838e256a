"""Several hypotheses at once, against the definition of Holm's procedure."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from moescope.measures.multiple import any_of, holm


def rejected_at(p_values: list[float], alpha: float) -> set[int]:
    """Step down: the smallest against α / m, the next against α / (m - 1), ... until one is not rejected."""
    rejected: set[int] = set()
    left = list(range(len(p_values)))
    while left:
        smallest = min(left, key=lambda index: p_values[index])
        if p_values[smallest] > alpha / len(left):
            break
        rejected.add(smallest)
        left.remove(smallest)
    return rejected


def test_adjusted_p_values_reject_what_the_procedure_rejects():
    generator = np.random.default_rng(1)
    for _ in range(300):
        p_values = (generator.random(generator.integers(1, 9)) ** 3).round(3).tolist()  # with ties
        adjusted = holm(p_values)
        for alpha in (0.01, 0.0503, 0.2, 0.7):
            assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected_at(p_values, alpha)


def test_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04]) == [0.04]
    assert holm([0.04, 0.5, 0.6, 0.7])[0] == pytest.approx(0.16)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_unknown_p_values_count_for_nothing():
    found = holm([math.nan, 0.02, math.nan, 0.03])
    assert math.isnan(found[0]) and math.isnan(found[2])
    assert [found[1], found[3]] == pytest.approx([0.04, 0.04])
    assert all(math.isnan(value) for value in holm([math.nan] * 3))


def test_false_rejections_are_held_to_the_level():
    generator = np.random.default_rng(2)
    repetitions = 1000
    # Two true hypotheses of five are false at any p-value; the nulls depend on each other.
    any_false = 0
    for _ in range(repetitions):
        nulls = generator.random(3)
        nulls[2] = nulls[0]
        any_false += min(holm([*nulls, 1e-9, 1e-6])[:3]) <= 0.05
    assert any_false <= binom.ppf(0.999, repetitions, 0.05)
    assert any_false >= binom.ppf(0.001, repetitions, 0.02)


def test_any_of_several():
    assert any_of([0.02, 0.5, math.nan]) == pytest.approx(0.04)
    assert any_of([0.6, 0.7]) == 1.0
    assert math.isnan(any_of([math.nan])) and math.isnan(any_of([]))
