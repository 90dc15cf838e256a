"""How well one ranking of experts foretells another, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

LEVEL_QUANTILE = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
FEWEST = 4


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation.

    Attributes:
        value: Between -1 and 1; NaN where fewer than two are known or all are equal.
        low: Lower end of the 95 % interval; NaN under four.
        high: Upper end.
        num: Pairs it is from.
    """

    value: float
    low: float
    high: float
    num: int


def rank_correlation(x: ArrayLike, y: ArrayLike) -> RankCorrelation:
    """Spearman's `ρ` (ties share their mean rank) and its interval over pairs, `tanh(artanh ρ ∓ 1.96 se)`.

    `se² = (1 + ρ²/2) / (n - 3)` (Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and
    Spearman correlations"): the pairs are taken as drawn independently. Pairs of which either is NaN are left out.
    """
    value, num = _spearman(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    return _with_interval(value, math.sqrt(_variance(value, num)) if num >= FEWEST else math.nan, num)


def rank_correlation_within(x_LE: ArrayLike, y_LE: ArrayLike) -> RankCorrelation:
    """The mean of the rows' `ρ` (averaged as `artanh ρ`), so that differences between rows play no part."""
    rows = [_spearman(x_E, y_E) for x_E, y_E in zip(np.asarray(x_LE, float), np.asarray(y_LE, float), strict=True)]
    known = [(value, num) for value, num in rows if not math.isnan(value) and num >= FEWEST]
    if not known:
        return RankCorrelation(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(_artanh(value) for value, _ in known) / len(known)
    error = math.sqrt(math.fsum(_variance(value, num) for value, num in known)) / len(known)
    return _with_interval(math.tanh(mean), error, sum(num for _, num in known))


def _spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    known = np.isfinite(x) & np.isfinite(y)
    num = int(known.sum())
    if num < 2:
        return math.nan, num
    ranks_x, ranks_y = (rankdata(values[known]) - (num + 1) / 2 for values in (x, y))
    scale = math.sqrt(float(ranks_x @ ranks_x) * float(ranks_y @ ranks_y))
    return (float(ranks_x @ ranks_y) / scale if scale else math.nan), num


def _variance(value: float, num: int) -> float:
    return (1 + value**2 / 2) / (num - 3)


def _artanh(value: float) -> float:
    return math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))


def _with_interval(value: float, error: float, num: int) -> RankCorrelation:
    reach = LEVEL_QUANTILE * error
    centre = _artanh(value) if not math.isnan(value) else math.nan
    return RankCorrelation(value, math.tanh(centre - reach), math.tanh(centre + reach), num)
