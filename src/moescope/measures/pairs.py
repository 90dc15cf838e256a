"""The median over all pairs of a layer's experts, and its standard error over experts.

Pairs share experts, so that they are not independent; experts are left out, each with all its pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_EXPERTS = 4
MOST_GROUPS = 64


def median_of_pairs(values_EE: ArrayLike) -> float:
    """The median over pairs of different experts that have a value; NaN where none has."""
    values = np.asarray(values_EE, dtype=np.float64)
    known_P = values[np.triu_indices(len(values), 1)]
    known_P = known_P[np.isfinite(known_P)]
    return float(np.median(known_P)) if known_P.size else math.nan


def error_over_experts(values_EE: ArrayLike, *, seed: int = 0) -> float:
    """Standard error of that median over experts: delete-one jackknife, `(G - 1) / G sum_g (m_(g) - mean m)^2`.

    More than 64 experts are left out in 64 random groups. NaN of fewer than four experts, or where too few pairs have a
    value.
    """
    values = np.asarray(values_EE, dtype=np.float64)
    num_experts = len(values)
    if num_experts < FEWEST_EXPERTS:
        return math.nan
    num_groups = min(num_experts, MOST_GROUPS)
    groups_E = np.random.default_rng(seed).permutation(num_experts) % num_groups
    return _jackknife_error(np.array([median_of_pairs(_without(values, groups_E == g)) for g in range(num_groups)]))


def error_over_documents(without_GEE: ArrayLike, present_G: ArrayLike) -> float:
    """The same over documents, from the pairs' values without each group of documents; NaN of fewer than two groups."""
    without = np.asarray(without_GEE, dtype=np.float64)[np.asarray(present_G, dtype=bool)]
    return _jackknife_error(np.array([median_of_pairs(values_EE) for values_EE in without]))


def _without(values_EE: NDArray[np.float64], out_E: NDArray[np.bool_]) -> NDArray[np.float64]:
    left = np.flatnonzero(~out_E)
    return values_EE[np.ix_(left, left)]


def _jackknife_error(medians_G: NDArray[np.float64]) -> float:
    count = len(medians_G)
    if count < 2 or not np.isfinite(medians_G).all():
        return math.nan
    return math.sqrt(float(((medians_G - medians_G.mean()) ** 2).sum()) * (count - 1) / count)
