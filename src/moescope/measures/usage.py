"""Measures of usage counts: load, divergence, mutual information, and ranges of replicates; all on numpy arrays.

Counts come with any leading dimensions (layers, replicates); experts are last, domains before them. Undefined
values (no token, expert never used) are NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, rel_entr

from moescope.measures.constants import COVERAGE

Floats = NDArray[np.float64]
Numbers = NDArray[Any]
"""Counts, or sums of reals."""


def ratio(numerator: Numbers | float, denominator: Numbers | float) -> Floats:
    """`numerator / denominator` in float64, NaN where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(numerator), np.asarray(denominator))
    quotient = np.full(above.shape, np.nan)
    np.divide(above, below, out=quotient, where=below != 0)
    return quotient


SILENT = 1e-3
"""An expert whose mean output norm is at most this share of its layer's median gives nothing."""


def silent(norms_LE: Numbers) -> NDArray[np.bool_]:
    """Experts with an output norm near zero: 0, or at most `SILENT` times the median of the layer's norms above 0.

    NaN (an expert that no token was routed to) is not known to be silent.
    """
    norms = np.asarray(norms_LE, dtype=np.float64)
    above = np.where(norms > 0, norms, np.nan)
    known = np.isfinite(above).any(-1, keepdims=True)
    median = np.nanmedian(np.where(known, above, 0.0), axis=-1, keepdims=True)
    found: NDArray[np.bool_] = (norms == 0) | (norms <= SILENT * median)
    return found


def normalized_usage_entropy(counts_E: Numbers) -> Floats:
    """`-Σ_e q_e ln q_e / ln E` with `q_e = N_e / Σ N_e`: 1 for uniform load, 0 if one expert has it all."""
    shares_E = ratio(counts_E, counts_E.sum(axis=-1, keepdims=True))
    return ratio(entr(shares_E).sum(axis=-1), np.log(counts_E.shape[-1]))


def coefficient_of_variation(counts_E: Numbers) -> Floats:
    """Standard deviation of `N_e` over experts (divided by n, not n - 1) divided by their mean."""
    return ratio(counts_E.std(axis=-1), counts_E.mean(axis=-1))


def gini(counts_E: Numbers) -> Floats:
    """`Σ_i Σ_j |N_i - N_j| / (2 E Σ N_e)`: 0 for uniform load, (E - 1) / E if one expert has it all."""
    num_experts = counts_E.shape[-1]
    ranks_E = 2 * np.arange(1, num_experts + 1) - num_experts - 1
    return ratio((np.sort(counts_E, axis=-1) * ranks_E).sum(axis=-1), num_experts * counts_E.sum(axis=-1))


def max_violation(counts_E: Numbers) -> Floats:
    """MaxVio, `max_e N_e / mean_e N_e - 1` (Wang et al. 2024, arXiv 2408.15664): 0 for uniform load."""
    return ratio(counts_E.max(axis=-1), counts_E.mean(axis=-1)) - 1


def auxiliary_loss(counts_E: Numbers, probability_sums_E: Numbers, num_tokens: Numbers) -> Floats:
    """`E Σ_e (N_e / N) P_e`, `P_e` the mean router probability: K when balanced.

    Switch Transformer's loss (arXiv 2101.03961, eq. 4) without its factor alpha, for K experts as in transformers, but
    for one layer: pooled over layers, two that have collapsed onto different experts would look balanced. NaN where no
    router probabilities were counted.
    """
    products_E = ratio(counts_E, num_tokens[..., None]) * ratio(probability_sums_E, num_tokens[..., None])
    losses = counts_E.shape[-1] * products_E.sum(axis=-1)
    return np.where(probability_sums_E.sum(axis=-1) > 0, losses, np.nan)


def divergence(counts_DE: Numbers, tokens_D: Numbers) -> Floats:
    """Jensen-Shannon divergence, bits, between each expert's distribution over domains and its layer's.

    `JS(p, q) = KL(p ‖ m) / 2 + KL(q ‖ m) / 2`, `m = (p + q) / 2`, with `p_d = N_ed / N_e` and `q_d = N_d / N`; 0 to 1.
    """
    experts_DE = ratio(counts_DE, counts_DE.sum(axis=-2, keepdims=True))
    layer_D1 = ratio(tokens_D, tokens_D.sum(axis=-1, keepdims=True))[..., None]
    middle_DE = (experts_DE + layer_D1) / 2
    nats_E = (rel_entr(experts_DE, middle_DE) + rel_entr(layer_D1, middle_DE)).sum(axis=-2)
    bits_E: Floats = nats_E / (2 * np.log(2))
    return bits_E


def mutual_information(counts_DE: Numbers) -> Floats:
    """`I(expert; domain) = Σ_ed p_ed log2(p_ed / (p_e p_d))`, bits, over token-expert assignments."""
    joint_DE = ratio(counts_DE, counts_DE.sum(axis=(-2, -1), keepdims=True))
    independent_DE = joint_DE.sum(axis=-2, keepdims=True) * joint_DE.sum(axis=-1, keepdims=True)
    bits: Floats = rel_entr(joint_DE, independent_DE).sum(axis=(-2, -1)) / np.log(2)
    return bits


def domain_entropy(tokens_D: Numbers) -> Floats:
    """`H(domain) = -Σ_d (N_d / N) log2(N_d / N)`, bits."""
    bits: Floats = entr(ratio(tokens_D, tokens_D.sum(axis=-1, keepdims=True))).sum(axis=-1) / np.log(2)
    return bits


def lift(specialization_DE: Floats) -> Floats:
    """Domain specialization divided by its mean over the domains that have tokens; domains have equal weight.

    NaN where fewer than two domains have tokens: there is nothing to compare.
    """
    known_DE = ~np.isnan(specialization_DE)
    num_known_1E = known_DE.sum(axis=-2, keepdims=True)
    means_1E = ratio(
        np.where(known_DE, specialization_DE, 0.0).sum(axis=-2, keepdims=True),
        np.where(num_known_1E > 1, num_known_1E, 0),
    )
    return ratio(specialization_DE, np.where(np.isnan(means_1E), 0.0, means_1E))


def replicate_range(replicates_R: Floats) -> tuple[Floats, Floats]:
    """The 2.5 and 97.5 % quantiles over replicates, which are the first dimension; both NaN without replicates.

    Quantile q of R replicates is taken at rank q (R + 1): a further draw from the same distribution falls outside the
    range with 5 % probability. NaN replicates are left out.
    """
    shape = replicates_R.shape[1:]
    if replicates_R.size == 0:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    sorted_XR = np.sort(replicates_R.reshape(replicates_R.shape[0], -1).T, axis=1)  # NaN last
    num_known_X = (~np.isnan(sorted_XR)).sum(axis=1)
    last_X = np.maximum(num_known_X - 1, 0)
    bounds = []
    for quantile in ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2):
        rank_X = np.clip(quantile * (num_known_X + 1) - 1, 0, last_X)
        below_X = rank_X.astype(np.int64)
        above_X = np.minimum(below_X + 1, last_X)
        lower_X, upper_X = (np.take_along_axis(sorted_XR, at_X[:, None], axis=1)[:, 0] for at_X in (below_X, above_X))
        bounds.append((lower_X + (rank_X - below_X) * (upper_X - lower_X)).reshape(shape))
    return bounds[0], bounds[1]


def replicate_mean(replicates_R: Floats) -> Floats:
    """The mean over replicates, which are the first dimension; NaN is left out."""
    known_R = ~np.isnan(replicates_R)
    return ratio(np.where(known_R, replicates_R, 0.0).sum(axis=0), known_R.sum(axis=0))
