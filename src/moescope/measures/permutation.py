"""Nulls of divergence and mutual information: routing permuted over documents.

Documents are the unit: the tokens of one are not independent. Domains keep their documents with their lengths, since
both measures grow with how unevenly tokens are divided; what is permuted is how documents are routed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import xlogy
from scipy.stats import norm, pearson3

from moescope.measures.usage import Floats, Numbers, ratio, replicate_mean, replicate_range

_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class Null:
    """Both measures under R permutations of the labels.

    Attributes:
        information_RL: Mutual information, bits.
        divergence_RLE: Jensen-Shannon divergence, bits.
        entropy_RL: Entropy of the tokens' domains, bits.
    """

    information_RL: Floats
    divergence_RLE: Floats
    entropy_RL: Floats


def permutation_null(
    counts_LBE: Numbers,
    domain_ids_B: NDArray[np.integer],
    *,
    num_permutations: int,
    assigned_D: Numbers,
    documents_D: Numbers,
    seed: int = 0,
) -> Null:
    """Both measures where documents' deviations from the layer's rates are permuted, in all layers alike.

    The rates of a document, `q_i`, deviate from those of all tokens, `q`, by more if it is short. A replicate gives
    document i the rates `q + h_i z_j`, with `z_j` the standardized deviation of the document that a permutation puts in
    its place and `h_i` the scale of its own (see `standardized`). For documents of one length this is a permutation of
    their labels, with fixed numbers of documents per domain.

    Where the B documents are a sample of those that were counted (b_d of the n_d of domain d), the deviation of a
    domain's rates is multiplied by `sqrt(b_d / n_d)`, the ratio of the standard errors.

    Args:
        counts_LBE: Tokens of each document that select each expert, each document with at least one.
        domain_ids_B: Each document's domain, in ascending order.
        num_permutations: R.
        assigned_D: Assignments of each domain (K for each token) in all its documents.
        documents_D: Documents of each domain, of which these are all or a sample.
        seed: Chooses the permutations.
    """
    num_layers, num_documents, num_experts = counts_LBE.shape
    num_domains = len(documents_D)
    sampled_D = np.bincount(domain_ids_B, minlength=num_domains)
    information_RL, entropy_RL = (np.full((num_permutations, num_layers), np.nan) for _ in range(2))
    divergence_RLE = np.full((num_permutations, num_layers, num_experts), np.nan)
    together = max(1, _CHUNK_NUMBERS // max(num_domains * num_experts, num_documents))
    done = 0
    for orders_RB in _orders(num_documents, num_permutations, together, seed):
        rows = orders_RB.shape[0]
        at = slice(done, done + rows)
        done += rows
        # Row (r, d) sums the documents of domain d as permutation r routes them.
        starts = np.concatenate([[0], np.cumsum(np.tile(sampled_D, rows))])
        for layer, counts_BE in enumerate(counts_LBE):
            sizes_B = counts_BE.sum(1, dtype=np.float64)
            rates_E, standard_BE, scale_B = standardized(counts_BE)
            placed = csr_array(
                (np.tile(sizes_B * scale_B, rows), orders_RB.ravel(), starts), (len(starts) - 1, num_documents)
            )
            deviations_RDE = (placed @ standard_BE).reshape(rows, num_domains, num_experts)
            sums_D = np.bincount(domain_ids_B, weights=sizes_B, minlength=num_domains)
            scale_D = np.nan_to_num(ratio(assigned_D, sums_D) * np.sqrt(ratio(sampled_D, documents_D)))
            drawn_RDE = assigned_D[:, None] * rates_E + scale_D[:, None] * deviations_RDE
            information_RL[at, layer], divergence_RLE[at, layer], entropy_RL[at, layer] = measured(
                np.maximum(drawn_RDE, 0.0)
            )
    return Null(information_RL, divergence_RLE, entropy_RL)


def standardized(counts_BE: Numbers) -> tuple[Floats, Floats, Floats]:
    """Rates of all documents (E,), the standardized deviation of each document's from them (B, E), and its scale (B,).

    With `a_i` assignments of document i and `u_i = a_i / Σ a`, rates are `q_i = c_i / a_i` and `q = Σ u_i q_i`. A
    document's rates have the variance `v_i = s + w / a_i` around the expected ones, summed over experts: s between
    documents, w from assignments; so `E Σ_e (q_ie - q_e)² = g_i² = v_i (1 - 2 u_i) + Σ_j u_j² v_j`. w is the mean of
    `a / (a - 1) Σ_e q_ie (1 - q_ie)`, s that which gives the sum of the squared deviations, or 0. Standardized are
    `(q_i - q) / g_i`, their scale is `√(v_i (B - 1) / B)`: of documents of one length, g_i itself.
    """
    sizes_B = counts_BE.sum(1, dtype=np.float64)
    weights_B = sizes_B / sizes_B.sum()
    rates_BE = counts_BE / sizes_B[:, None]
    rates_E = weights_B @ rates_BE
    deviations_BE = rates_BE - rates_E
    several_B = sizes_B > 1
    within = (rates_BE * (1 - rates_BE)).sum(1) * ratio(sizes_B, sizes_B - 1)
    noise = float(within[several_B].mean()) if several_B.any() else 0.0

    def squares(variance_B: Floats) -> Floats:
        expected_B: Floats = variance_B * (1 - 2 * weights_B) + (weights_B**2 * variance_B).sum()
        return expected_B

    of_noise_B, of_documents_B = squares(noise / sizes_B), squares(np.ones_like(sizes_B))
    excess = float((deviations_BE**2).sum() - of_noise_B.sum())
    between = max(excess / max(float(of_documents_B.sum()), 1e-300), 0.0)
    spread_B = np.sqrt(np.maximum(of_noise_B + between * of_documents_B, 0.0))
    spread_B = np.where(spread_B > 1e-12, spread_B, 1.0)
    scale_B = np.sqrt((noise / sizes_B + between) * (len(sizes_B) - 1) / len(sizes_B))
    return rates_E, deviations_BE / spread_B[:, None], scale_B


def measured(counts_DE: Numbers) -> tuple[Floats, Floats, Floats]:
    """Mutual information, divergence of each expert and entropy of the domains, bits, of counts of (…, D, E).

    As `measures.usage` defines them, by entropies, of which they share the logarithms: many permutations take long.
    Every token has the same number of experts, so that a domain's share of assignments is its share of tokens.
    """
    counts_DE = np.asarray(counts_DE, dtype=np.float64)
    assigned_E, assigned_D = counts_DE.sum(-2), counts_DE.sum(-1)
    total = assigned_D.sum(-1)
    logs_DE = xlogy(counts_DE, counts_DE)
    domains_D = ratio(assigned_D, total[..., None])
    entropy = -xlogy(domains_D, domains_D).sum(-1)
    sums = logs_DE.sum((-2, -1)) - xlogy(assigned_E, assigned_E).sum(-1) - xlogy(assigned_D, assigned_D).sum(-1)
    information = ratio(sums + xlogy(total, total), total)
    experts_DE = ratio(counts_DE, assigned_E[..., None, :])
    middle_DE = (experts_DE + domains_D[..., None]) / 2
    own_E = ratio(logs_DE.sum(-2), assigned_E) - np.log(np.where(assigned_E > 0, assigned_E, 1.0))
    divergence_E = (own_E - entropy[..., None]) / 2 - xlogy(middle_DE, middle_DE).sum(-2)
    bits = np.log(2)
    return information / bits, divergence_E / bits, entropy / bits


def _orders(num_documents: int, num_permutations: int, together: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng([seed % 2**63, 0x6E756C6C])
    for start in range(0, num_permutations, together):
        rows = min(together, num_permutations - start)
        yield generator.permuted(np.tile(np.arange(num_documents), (rows, 1)), axis=1)


def p_values(value: Numbers, replicates_R: Floats) -> dict[str, Floats]:
    """How far a value lies above its replicates under the null, the first dimension of which is R.

    * `p_value`: `(1 + #{replicates >= value}) / (1 + R)`.
    * `p_value_tail`: upper tail of the Pearson III distribution (a shifted gamma) with the replicates' mean, variance
      and skewness. Permutation distributions of quadratic statistics are close to it (Mielke and Berry 2007,
      "Permutation Methods"), and it goes on where a share of replicates is 0.
    * `p_value_any`: the same share for the largest standardized excess of all cells: adjusted for looking at all of
      them (Westfall and Young 1993, "Resampling-Based Multiple Testing", single-step maxT). Replicates of all cells
      belong to the same permutations.

    NaN where value or replicates are NaN.
    """
    num_replicates = len(replicates_R)
    value = np.asarray(value, dtype=np.float64)
    if not num_replicates:
        nothing = np.full(value.shape, np.nan)
        return {name: nothing.copy() for name in ("p_value", "p_value_tail", "p_value_any")}
    known = np.isfinite(value) & np.isfinite(replicates_R).all(0)
    mean = replicates_R.mean(0)
    deviations_R = replicates_R - mean
    spread = np.sqrt((deviations_R**2).mean(0))
    varies = known & (spread > 1e-9 * np.maximum(np.abs(mean), 1e-9))
    scale = np.where(varies, spread, 1.0)
    slack = 1e-9 * np.maximum(np.abs(mean), 1e-9)  # a permutation that changes nothing is as large but for rounding
    reached = (replicates_R >= value - slack).sum(0)
    excess, excess_R = np.where(varies, (value - mean) / scale, 0.0), np.where(varies, deviations_R / scale, 0.0)
    skewness = (excess_R**3).mean(0)
    straight = np.abs(skewness) < 1e-3
    tail = np.where(straight, norm.sf(excess), pearson3.sf(excess, np.where(straight, 1.0, skewness)))
    cells = varies.reshape(-1)
    largest_R = excess_R.reshape(num_replicates, -1)[:, cells].max(1) if cells.any() else np.zeros(num_replicates)
    any_reached = num_replicates - np.searchsorted(np.sort(largest_R), excess - 1e-9, side="left")
    return {
        "p_value": np.where(known, (1 + reached) / (1 + num_replicates), np.nan),
        "p_value_tail": np.where(varies, tail, np.where(known, 1.0, np.nan)),
        "p_value_any": np.where(known, np.where(varies, (1 + any_reached) / (1 + num_replicates), 1.0), np.nan),
    }


def null_summary(replicates_R: Floats) -> dict[str, Floats]:
    """Mean, and 2.5 and 97.5 % quantiles of replicates, by the endings of tables' columns."""
    low, high = replicate_range(replicates_R)
    return {"null_mean": replicate_mean(replicates_R), "null_low": low, "null_high": high}
