"""Spearman's rank correlation of two measures of experts, or of pairs of experts, with intervals over experts.

Pairs share experts: E (E - 1) / 2 of them are not independent observations, and an interval that treats them as such is
far too narrow if experts differ in their mean similarity to all others. Uncertainty here is over experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from moescope.measures.constants import COVERAGE, NUM_PERMUTATIONS

MOST_GROUPS = 64
FEWEST_EXPERTS = 4
_CHUNK_NUMBERS = 2**17

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]


@dataclass(frozen=True)
class ExpertCorrelation:
    """Spearman's rank correlation with its interval over experts, beside its null.

    Attributes:
        value: Between -1 and 1; NaN of fewer than four experts, or where either measure is the same for all.
        low: Lower end of the 95 % interval.
        high: Upper end.
        null_low: Lower end of the middle 95 % of the values under permutation of the experts.
        null_high: Upper end.
        p_value: Share of permutations (and the measured value itself) with a value as far from 0.
        num_experts: Experts it is from.
        num_values: Experts, or pairs of experts, that have both measures.
        variance: Of `artanh value`.
        degrees: Of freedom of that variance.
        null_R: `artanh` of the value under each permutation.
    """

    value: float
    low: float
    high: float
    null_low: float
    null_high: float
    p_value: float
    num_experts: int
    num_values: int
    variance: float
    degrees: int
    null_R: Floats


def correlate_experts(
    a: ArrayLike, b: ArrayLike, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> ExpertCorrelation:
    """Rank correlation of two measures of the same experts, or of the same pairs of experts.

    **Interval**: delete-one-expert jackknife of `z = artanh rho`: `v = (G - 1) / G sum_g (z_(g) - mean z)^2`, ends
    `tanh(z -+ t sqrt(v))` with Student's t of G - 1 degrees of freedom; leaving out an expert leaves out all its pairs,
    and what is left is ranked anew. More than 64 experts are left out in 64 random groups. No bootstrap: it draws
    experts twice, and an expert is no pair with itself. The jackknife is correct where experts differ in their mean
    similarity to all others, and up to 1.4 times too wide where pairs are independent (Efron and Stein 1981:
    second-order terms count twice).

    **Null**: the Mantel test (Mantel 1967): the experts of one measure are permuted, rows and columns alike, so that
    each measure keeps its structure and only their relation is removed.

    Args:
        a: (E,), or (E, E) of which the mean of both triangles is taken and the diagonal is left out; NaN: no value.
        b: Likewise, of the same shape.
        num_permutations: R.
        seed: Of permutations and groups.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.shape != second.shape or first.ndim not in (1, 2):
        raise ValueError(f"measures of shapes {first.shape} and {second.shape}")
    both = np.isfinite(first) & np.isfinite(second)
    if first.ndim == 2:
        np.fill_diagonal(both, False)
        kept = np.flatnonzero((both & both.T).any(1))
        i_P, j_P = np.triu_indices(len(kept), 1)
        x_P, y_P = (_symmetric(values[np.ix_(kept, kept)])[i_P, j_P] for values in (first, second))
    else:
        kept = np.flatnonzero(both)
        i_P = j_P = np.arange(len(kept))
        x_P, y_P = first[kept], second[kept]
    known_P = np.isfinite(x_P) & np.isfinite(y_P)
    value = spearman(x_P[known_P], y_P[known_P])
    if len(kept) < FEWEST_EXPERTS or math.isnan(value):
        return _unknown(len(kept), int(known_P.sum()))
    generator = np.random.default_rng(seed)
    variance, degrees = _jackknife(_without_each_group(x_P, y_P, i_P, j_P, _groups(len(kept), generator)))
    null_R = _null(x_P, y_P, i_P, j_P, len(kept), num_permutations, generator)
    return _finish(value, variance, degrees, null_R, len(kept), int(known_P.sum()))


def correlate_rows(
    a_DE: ArrayLike, b_DE: ArrayLike, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> ExpertCorrelation:
    """The mean of `artanh rho` over rows, such as domains, that are of the same experts.

    Rows of the same experts are not independent, so that their variances do not add as in `pooled`: an expert is left
    out of all rows together, and permuted in all rows alike; otherwise as `correlate_experts`.

    Args:
        a_DE: (D, E); NaN: no value. Rows with fewer than four experts, or where either measure is the same for all, are
            left out.
        b_DE: Likewise, of the same shape.
        num_permutations: R.
        seed: Of permutations and groups.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (a_DE, b_DE))
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"measures of shapes {first.shape} and {second.shape}")
    both = np.isfinite(first) & np.isfinite(second)
    kept = np.flatnonzero(both.any(0))
    first, second = (np.where(both, values, np.nan)[:, kept] for values in (first, second))
    known_D = zip(first, second, both[:, kept], strict=True)
    values_D = np.array([_artanh(spearman(x_E[known_E], y_E[known_E])) for x_E, y_E, known_E in known_D])
    rows = np.flatnonzero(np.isfinite(values_D) & (both.sum(1) >= FEWEST_EXPERTS))
    if not rows.size:
        return _unknown(len(kept), 0)
    experts = np.arange(len(kept))
    groups_E = _groups(len(kept), np.random.default_rng(seed))
    without_DG = [_without_each_group(first[row], second[row], experts, experts, groups_E) for row in rows]
    variance, degrees = _jackknife(np.mean(without_DG, axis=0))
    null_DR = [
        # The same permutations for each row.
        _null(first[row], second[row], experts, experts, len(kept), num_permutations, np.random.default_rng([seed, 1]))
        for row in rows
    ]
    value = math.tanh(float(values_D[rows].mean()))
    return _finish(value, variance, degrees, np.mean(null_DR, axis=0), len(kept), int(both[rows].sum()))


def pooled(parts: Sequence[ExpertCorrelation]) -> ExpertCorrelation:
    """The mean of `artanh rho` over layers, whose experts are different ones: variances add, nulls are averaged."""
    known = [part for part in parts if not math.isnan(part.value)]
    sizes = sum(part.num_experts for part in known), sum(part.num_values for part in known)
    if not known:
        return _unknown(*sizes)
    mean = math.fsum(_artanh(part.value) for part in known) / len(known)
    variance = math.fsum(part.variance for part in known) / len(known) ** 2
    null_R = np.mean([part.null_R for part in known], axis=0)
    return _finish(math.tanh(mean), variance, sum(part.degrees for part in known), null_R, *sizes)


@dataclass(frozen=True)
class CorrelationDifference:
    """By how much one measure's rank correlation with an outcome exceeds another's, over the same experts.

    Attributes:
        value: Difference of the two, mean over layers; NaN of fewer than four experts, or where a measure is constant.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: One-sided, of a difference of 0 or below.
    """

    value: float
    low: float
    high: float
    p_value: float


def correlation_difference(
    a_LE: ArrayLike, b_LE: ArrayLike, outcome_LE: ArrayLike, *, signs: tuple[float, float] = (1.0, 1.0), seed: int = 0
) -> CorrelationDifference:
    """`mean over layers of s_a rho(a, y) - s_b rho(b, y)`, paired: both on the experts that have all three values.

    Interval and p-value: delete-one-expert jackknife of the difference itself, with the groups of `correlate_experts`;
    layers have different experts, so that their variances add. Student's t with the layers' degrees of freedom.

    Args:
        a_LE: (L, E); NaN: no value.
        b_LE: Likewise.
        outcome_LE: Likewise, y.
        signs: Of the two correlations: with -1 for a negative one, sizes are compared.
        seed: Of the groups.
    """
    values, variances, degrees = [], [], 0
    for rows in zip(*(np.asarray(given, dtype=np.float64) for given in (a_LE, b_LE, outcome_LE)), strict=True):
        known_3e = np.stack(rows)[:, np.isfinite(rows).all(0)]
        num_experts = known_3e.shape[1]
        if num_experts < FEWEST_EXPERTS:
            continue
        groups_e = _groups(num_experts, np.random.default_rng(seed))
        without_G = np.array([_difference(known_3e[:, groups_e != g], signs) for g in range(int(groups_e.max()) + 1)])
        variance, free = _jackknife(without_G)
        values.append(_difference(known_3e, signs))
        variances.append(variance)
        degrees += free
    value = float(np.mean(values)) if values else math.nan
    error = math.sqrt(math.fsum(variances)) / len(variances) if variances else math.nan
    if not degrees or math.isnan(value) or math.isnan(error):
        return CorrelationDifference(value, math.nan, math.nan, math.nan)
    reach = float(student.ppf((1 + COVERAGE) / 2, degrees)) * error
    p_value = float(student.sf(value / error, degrees)) if error else float(value <= 0)
    return CorrelationDifference(value, value - reach, value + reach, p_value)


def _difference(values_3e: Floats, signs: tuple[float, float]) -> float:
    first_e, second_e, outcome_e = values_3e
    return signs[0] * spearman(first_e, outcome_e) - signs[1] * spearman(second_e, outcome_e)


def spearman(x: Floats, y: Floats) -> float:
    """Pearson's correlation of ranks, ties sharing their mean rank; NaN where either is constant."""
    return _correlation_of(rankdata(x), rankdata(y))


def _correlation_of(ranks_x: Floats, ranks_y: Floats) -> float:
    if len(ranks_x) < 3:
        return math.nan
    ranks_x, ranks_y = ranks_x - (len(ranks_x) + 1) / 2, ranks_y - (len(ranks_y) + 1) / 2
    scale = math.sqrt(float(ranks_x @ ranks_x) * float(ranks_y @ ranks_y))
    return float(ranks_x @ ranks_y) / scale if scale else math.nan


def _ranks_of(indices: Indices) -> Floats:
    """Ranks from 1, ties sharing their mean, of values given as their index among all distinct values; no sorting."""
    counts = np.bincount(indices)
    ranks: Floats = counts.cumsum() - (counts - 1) / 2
    return ranks[indices]


def _unknown(num_experts: int, num_values: int) -> ExpertCorrelation:
    nan = math.nan
    return ExpertCorrelation(nan, nan, nan, nan, nan, nan, num_experts, num_values, nan, 0, np.empty(0))


def _finish(
    value: float, variance: float, degrees: int, null_R: Floats, num_experts: int, num_values: int
) -> ExpertCorrelation:
    center = _artanh(value)
    reach = float(student.ppf((1 + COVERAGE) / 2, degrees)) * math.sqrt(variance) if degrees else math.nan
    null_low, null_high = np.tanh(np.nanquantile(null_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])).tolist()
    as_far = int((np.abs(null_R) >= abs(center) - 1e-12).sum())
    return ExpertCorrelation(
        value=value,
        low=math.tanh(center - reach),
        high=math.tanh(center + reach),
        null_low=null_low,
        null_high=null_high,
        p_value=(1 + as_far) / (1 + len(null_R)),
        num_experts=num_experts,
        num_values=num_values,
        variance=variance,
        degrees=degrees,
        null_R=null_R,
    )


def _groups(num_experts: int, generator: np.random.Generator) -> Indices:
    """The group that each expert is left out with: its own, or one of 64."""
    return generator.permutation(num_experts) % min(num_experts, MOST_GROUPS)


def _without_each_group(x_P: Floats, y_P: Floats, i_P: Indices, j_P: Indices, groups_E: Indices) -> Floats:
    """`artanh rho` without each group of experts."""
    known_P = np.isfinite(x_P) & np.isfinite(y_P)
    groups_i, groups_j = groups_E[i_P[known_P]], groups_E[j_P[known_P]]
    distinct = [np.unique(values_P[known_P], return_inverse=True)[1] for values_P in (x_P, y_P)]
    without = []
    for group in range(int(groups_E.max()) + 1):
        left = (groups_i != group) & (groups_j != group)
        without.append(_artanh(_correlation_of(*(_ranks_of(indices_P[left]) for indices_P in distinct))))
    return np.array(without)


def _jackknife(values_G: Floats) -> tuple[float, int]:
    """Variance of an estimate from its values without each group, and its degrees of freedom."""
    num_groups = len(values_G)
    if not np.isfinite(values_G).all():
        return math.nan, 0
    return float(((values_G - values_G.mean()) ** 2).sum() * (num_groups - 1) / num_groups), num_groups - 1


def _null(
    x_P: Floats,
    y_P: Floats,
    i_P: Indices,
    j_P: Indices,
    num_experts: int,
    num_permutations: int,
    generator: np.random.Generator,
) -> Floats:
    """`artanh` of the correlation of ranks under permutations of the second measure's experts.

    Ranks are taken once. Where pairs are missing, each permutation matches different ones, ranked among all.
    """
    sums_3P, flat_3N = _known_ranks(x_P), _known_ranks(y_P)
    of_pairs = i_P is not j_P  # of experts, both are the same array
    if of_pairs:
        ranks_3EE = np.zeros((3, num_experts, num_experts))
        ranks_3EE[:, i_P, j_P] = ranks_3EE[:, j_P, i_P] = flat_3N
        flat_3N = ranks_3EE.reshape(3, -1)
    found = np.empty(num_permutations)
    together = max(1, _CHUNK_NUMBERS // len(i_P))
    for start in range(0, num_permutations, together):
        size = min(together, num_permutations - start)
        orders_RE = generator.permuted(np.tile(np.arange(num_experts), (size, 1)), axis=1)
        cells_RP = orders_RE[:, i_P] * num_experts + orders_RE[:, j_P] if of_pairs else orders_RE
        found[start : start + size] = _correlations(sums_3P, flat_3N, cells_RP)
    return np.arctanh(np.clip(found, -1 + 1e-12, 1 - 1e-12))


def _correlations(sums_3P: Floats, flat_3N: Floats, cells_RP: Indices) -> Floats:
    """Pearson's correlation of the first measure's ranks with those at each row of cells, where both are known."""
    if sums_3P[0].all() and flat_3N[0][cells_RP[0]].all():  # then permuting changes no sum but that of products
        squares_P = flat_3N[2][cells_RP[0]]
        products_R: Floats = flat_3N[1][cells_RP] @ sums_3P[1]
        return products_R / math.sqrt(float(sums_3P[2].sum() * squares_P.sum()))
    known_RP, ranks_RP, squares_RP = (values_N[cells_RP] for values_N in flat_3N)
    num = known_RP @ sums_3P[0]
    first, second = known_RP @ sums_3P[1], ranks_RP @ sums_3P[0]
    product = ranks_RP @ sums_3P[1] - first * second / num
    squares = (known_RP @ sums_3P[2] - first**2 / num) * (squares_RP @ sums_3P[0] - second**2 / num)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((num >= 3) & (squares > 0), product / np.sqrt(squares), np.nan)


def _known_ranks(values_P: Floats) -> Floats:
    """Whether each has a value, its rank around 0, and the square of that; zeros where it has none."""
    known_P = np.isfinite(values_P)
    ranks_P = np.zeros(len(values_P))
    ranks_P[known_P] = rankdata(values_P[known_P]) - (known_P.sum() + 1) / 2
    return np.stack([known_P.astype(np.float64), ranks_P, ranks_P**2])


def _symmetric(values_EE: Floats) -> Floats:
    return (values_EE + values_EE.T) / 2


def _artanh(value: float) -> float:
    return value if math.isnan(value) else math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
