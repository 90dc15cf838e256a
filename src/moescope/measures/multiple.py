"""Tests of several hypotheses at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: of m hypotheses the i-th smallest is multiplied by `m + 1 - i`, none below one before it.

    Rejecting those of at most α makes any false rejection at most α probable, whatever the dependence between the tests
    (Holm 1979, "A simple sequentially rejective multiple test procedure"). NaN stays NaN and counts for nothing.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in adjusted]


def any_of(p_values: Sequence[float]) -> float:
    """p-value of "at least one of these hypotheses is false": the smallest times their number (Bonferroni).

    NaN counts for nothing; NaN where nothing is known.
    """
    known = [value for value in p_values if not np.isnan(value)]
    return float(min(1.0, len(known) * min(known))) if known else float("nan")
