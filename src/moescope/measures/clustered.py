"""Means over tokens whose uncertainty is that of documents: tokens of a document are not independent of each other.

With a score `s_t` for each of N tokens, the mean `m = Σ s_t / N` is a ratio of two sums over documents (of scores, of
lengths). Its variance is `(n - 1) / n Σ_d [Σ_{t in d} (s_t - m) / (1 - N_d / N)]² / N²` over n documents: the
delete-one-document jackknife (Cochran 1977, "Sampling techniques", section 6.3; Bell and McCaffrey 2002 for clusters).
Tests and intervals take Student's t with `ν - 1` degrees of freedom, `ν = (Σ_d N_d²)² / Σ_d N_d⁴`: what a variance made
of documents of these lengths has (Satterthwaite), if documents differ in what is measured.

The effective number of documents, `n_eff = N² / Σ_d N_d²`, is how many of equal length weigh as much (Kish 1965).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from moescope.measures.constants import COVERAGE, MIN_DOCUMENTS, MIN_EFFECTIVE_DOCUMENTS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over tokens, with the uncertainty of documents.

    Attributes:
        mean: `m`.
        standard_error: Of `m`; NaN under `MIN_DOCUMENTS` documents or `MIN_EFFECTIVE_DOCUMENTS` effective ones.
        num_documents: n.
        effective_documents: `n_eff`.
        degrees_of_freedom: `ν - 1`.
    """

    mean: float
    standard_error: float
    num_documents: int
    effective_documents: float
    degrees_of_freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; NaN where there is no standard error."""
        reach = float(student.ppf((1 + COVERAGE) / 2, self.degrees_of_freedom)) * self.standard_error
        return self.mean - reach, self.mean + reach

    def p_value(self, null: float = 0.0) -> float:
        """One-sided p-value of a mean no larger than `null`; NaN where there is no standard error."""
        if np.isnan(self.standard_error):
            return float("nan")
        if self.standard_error == 0:
            return 1.0 if self.mean <= null else 0.0
        return float(student.sf((self.mean - null) / self.standard_error, self.degrees_of_freedom))


def clustered_mean(scores_N: Floats, documents_N: Ints, *, num_margins: int = 1) -> ClusteredMean:
    """The mean of a score over tokens.

    Args:
        scores_N: The score of each token.
        documents_N: Index of each token's document.
        num_margins: How many means of the same tokens each score is a product of deviations from: 1 for a plain mean, 2
            for a dependence. Deviations from a mean that a document is part of are small by a factor of `1 - N_d / N`.
    """
    if not len(scores_N):
        return ClusteredMean(float("nan"), float("nan"), 0, 0.0, 0.0)
    _, documents_N = np.unique(documents_N, return_inverse=True)
    lengths_B = np.bincount(documents_N).astype(np.float64)
    mean = float(scores_N.mean())
    deviations_B = np.bincount(documents_N, weights=scores_N) - mean * lengths_B
    count, effective = len(lengths_B), float(lengths_B.sum() ** 2 / (lengths_B**2).sum())
    error = float("nan")
    if count >= MIN_DOCUMENTS and effective >= MIN_EFFECTIVE_DOCUMENTS:
        deviations_B /= (1 - lengths_B / lengths_B.sum()) ** num_margins
        error = float(np.sqrt((count - 1) / count * (deviations_B**2).sum()) / lengths_B.sum())
    degrees = float((lengths_B**2).sum() ** 2 / (lengths_B**4).sum()) - 1
    return ClusteredMean(mean, error, count, effective, degrees)


def not_distinguishable(scores_LN: Floats, documents_N: Ints) -> NDArray[np.bool_]:
    """Which rows (layers, domains, ...) have a mean that is not shown to lie below the highest mean.

    Row by row the difference to the highest, paired over documents, is tested one-sided at the level of an interval,
    divided by the number of comparisons (Bonferroni): the highest was selected on the same data.

    Returns:
        Of each row; True for the highest itself, and for all others where there are too few documents.
    """
    best = int(np.argmax(scores_LN.mean(axis=1)))
    level = (1 - COVERAGE) / max(1, len(scores_LN) - 1)
    ties = [
        row == best or not clustered_mean(scores_LN[best] - scores, documents_N).p_value() <= level
        for row, scores in enumerate(scores_LN)
    ]
    return np.array(ties)


def not_distinguishable_groups(sums_RG: Floats, tokens_RG: Ints) -> NDArray[np.bool_]:
    """`not_distinguishable` where only sums of groups of documents are known, by a delete-one-group jackknife.

    Args:
        sums_RG: Sum of the score over the tokens of each row (layer, domain, ...) and group of documents.
        tokens_RG: Those tokens.

    Returns:
        Of each row; True for the highest, for rows without tokens, and for all where fewer than `MIN_DOCUMENTS` groups
        hold anything.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_R = sums_RG.sum(axis=1) / tokens_RG.sum(axis=1)
        without_RG = (sums_RG.sum(axis=1, keepdims=True) - sums_RG) / (tokens_RG.sum(axis=1, keepdims=True) - tokens_RG)
    if np.isnan(mean_R).all():
        return np.ones(len(mean_R), dtype=bool)
    best = int(np.nanargmax(mean_R))
    level = (1 - COVERAGE) / max(1, len(mean_R) - 1)
    ties = np.ones(len(mean_R), dtype=bool)
    for row in range(len(mean_R)):
        present_G = (tokens_RG[best] > 0) | (tokens_RG[row] > 0)
        count = int(present_G.sum())
        differences = (without_RG[best] - without_RG[row])[present_G]
        if row == best or count < MIN_DOCUMENTS or not np.isfinite(differences).all():
            continue
        error = np.sqrt((count - 1) / count * ((differences - differences.mean()) ** 2).sum())
        difference = mean_R[best] - mean_R[row]
        if error == 0:
            ties[row] = difference == 0
        else:
            ties[row] = not student.sf(difference / error, count - 1) <= level
    return ties


def summarized(scores_LN: Floats, documents_N: Ints, name: str, *, num_margins: int = 1) -> dict[str, NDArray[Any]]:
    """Mean, interval, p-value and ties of rows of token scores, under `name` and its endings."""
    means = [clustered_mean(scores_N, documents_N, num_margins=num_margins) for scores_N in scores_LN]
    low_L, high_L = np.array([mean.interval for mean in means]).T
    known_L = np.array([mean.mean if not np.isnan(mean.standard_error) else np.nan for mean in means])
    return {
        name: known_L,
        f"{name}_ci_low": low_L,
        f"{name}_ci_high": high_L,
        f"{name}_p_value": np.array([mean.p_value() for mean in means]),
        f"{name}_tied": not_distinguishable(scores_LN, documents_N),
    }
