"""Intervals over documents from sums: proportions, lifts and effects per token as ratios of totals.

A document is a cluster of tokens: the standard error of a ratio `q = Σ c_i / Σ t_i` over documents i comes from the
residuals `c_i - q t_i` (linearization; Cochran 1977, "Sampling Techniques", chapter 6), the interval from Student's t,
for proportions on the scale of the logit. docs/metrics.md states how often these intervals hold the true value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student

from moescope.measures.constants import COVERAGE, MIN_DOCUMENTS, MIN_EFFECTIVE_DOCUMENTS
from moescope.measures.usage import Floats, Numbers, ratio, replicate_range

TAIL = (1 - COVERAGE) / 2
LEAST_DEGREES = 3.0
"""Fewest degrees of freedom of a proportion that is in few documents, where there are more documents."""
LEAST_CARRYING = 3.0
"""Effective number of documents that carry an effect, below which its interval is refused."""


@dataclass(frozen=True)
class DocumentSums:
    """Sums over documents, with tokens t_i and counts c_i of each; arrays that broadcast, experts last.

    Attributes:
        counts: `Σ c_i`.
        tokens: `Σ t_i`.
        count_squares: `Σ c_i²`.
        products: `Σ c_i t_i`.
        token_squares: `Σ t_i²`.
        documents: Documents with a token.
    """

    counts: Numbers
    tokens: Numbers
    count_squares: Numbers
    products: Numbers
    token_squares: Numbers
    documents: Numbers

    @property
    def share(self) -> Floats:
        """`q = Σ c_i / Σ t_i`."""
        return ratio(self.counts, self.tokens)

    @property
    def variance(self) -> Floats:
        """`n / (n - 1) Σ (c_i - q t_i)² / (Σ t_i)²`; NaN of fewer than two documents."""
        q = self.share
        squares = np.maximum(self.count_squares - 2 * q * self.products + q**2 * self.token_squares, 0.0)
        documents = np.asarray(self.documents, dtype=np.float64)
        return ratio(squares * documents, np.where(documents > 1, documents - 1, 0) * np.float64(self.tokens) ** 2)

    @property
    def effective(self) -> Floats:
        """Effective number of documents by tokens, `(Σ t_i)² / Σ t_i²` (Kish 1965, "Survey Sampling")."""
        return ratio(np.float64(self.tokens) ** 2, self.token_squares)

    @property
    def degrees(self) -> Floats:
        """Degrees of freedom: `(Σ c_i)² / Σ c_i² - 1`, at least 3 and at most n - 1.

        The effective number of documents that hold the counts, less one: where few documents hold most of them the
        standard error is as uncertain as from that many. NaN of fewer than two documents.
        """
        carrying = np.nan_to_num(ratio(np.float64(self.counts) ** 2, self.count_squares))
        most = np.asarray(self.documents, dtype=np.float64) - 1
        degrees = np.minimum(np.maximum(carrying - 1, LEAST_DEGREES), most)
        return np.where(degrees > 0, degrees, np.nan)


def enough(documents: Numbers | int, effective: Floats | float) -> NDArray[np.bool_]:
    """Whether there are documents enough for an interval."""
    known: NDArray[np.bool_] = np.asarray(documents) >= MIN_DOCUMENTS
    return known & (np.nan_to_num(effective) >= MIN_EFFECTIVE_DOCUMENTS)


def none_of(effective: Floats) -> Floats:
    """Upper end of a share that no document shows: `1 - 0.025^(1 / n)` of n effective documents.

    Clopper's and Pearson's of 0 of n, as if a document's tokens were one: wide, and certain to be wide enough.
    """
    return 1 - TAIL ** ratio(1.0, effective)


def share_interval(share: Floats, variance: Floats, degrees: Floats, effective: Floats) -> tuple[Floats, Floats]:
    """Ends of the 95 % interval of a share: `expit(logit q ∓ t se / (q (1 - q)))`.

    A share of 0 or 1 has no logit: its interval ends as `none_of` says.
    """
    inside = (share > 0) & (share < 1)
    q = np.where(inside, share, 0.5)
    reach = student.ppf(1 - TAIL, degrees) * np.sqrt(variance) / (q * (1 - q))
    far = none_of(effective)
    known = np.isfinite(share)
    low = np.where(inside, expit(logit(q) - reach), np.where(share == 1, 1 - far, 0.0))
    high = np.where(inside, expit(logit(q) + reach), np.where(share == 1, 1.0, far))
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


@dataclass(frozen=True)
class Lifts:
    """Lifts of each domain and expert with what is known of their error, (D, E).

    Attributes:
        lift: `q_d / mean of q over the domains with tokens`.
        low: Lower end of the 95 % interval.
        high: Upper end.
        error: Standard error of `logit(lift / D)`.
        degrees: Its degrees of freedom.
        p_value: One-sided, of a lift of at most 1.
    """

    lift: Floats
    low: Floats
    high: Floats
    error: Floats
    degrees: Floats
    p_value: Floats


def domain_variances(sums: DocumentSums) -> tuple[Floats, Floats]:
    """Variance of each domain's share and its degrees of freedom, (D, E).

    A domain of one document has no variance of its own: it is then the squared deviation from the share of all
    domains' tokens, with one degree of freedom.
    """
    overall_1E = ratio(sums.counts.sum(0, keepdims=True), np.sum(sums.tokens, axis=0, keepdims=True))
    single = np.broadcast_to(sums.documents == 1, sums.counts.shape)
    variance = np.where(single, (sums.share - overall_1E) ** 2, sums.variance)
    return variance, np.where(single, 1.0, sums.degrees)


def pooled_interval(sums: DocumentSums) -> tuple[Floats, Floats]:
    """Ends of the 95 % interval of the share of all domains' tokens, (E,).

    Domains keep their shares of the tokens: `q = Σ_d s_d q_d`, `v = Σ_d s_d² v_d`, with Satterthwaite's degrees of
    freedom, `v² / Σ_d (s_d² v_d)² / ν_d`.
    """
    variance_DE, degrees_DE = domain_variances(sums)
    shares_D1 = ratio(sums.tokens, np.sum(sums.tokens))
    parts_DE = np.nan_to_num(shares_D1**2 * variance_DE)
    variance_E, degrees_E = _satterthwaite(parts_DE, degrees_DE)
    effective = ratio(np.float64(np.sum(sums.tokens)) ** 2, np.sum(sums.token_squares))
    share_E = ratio(sums.counts.sum(0), np.sum(sums.tokens))
    low_E, high_E = share_interval(share_E, variance_E, degrees_E, np.broadcast_to(effective, share_E.shape))
    known = enough(np.sum(sums.documents), effective)
    return np.where(known, low_E, np.nan), np.where(known, high_E, np.nan)


def lifts(sums: DocumentSums) -> Lifts:
    """Lifts with intervals; domains are independent samples of documents, (D, E) from sums of (D, E) and (D, 1).

    With `s = q_d / Σ q` over the D domains with tokens the lift is `D s`. The interval is one of s on the scale of the
    logit, `ln q_d - ln O` with O the sum over the other domains: `v = v_d / q_d² + Σ_others v / O²`, Satterthwaite's
    degrees of freedom. Where the expert is never selected in the domain, or in no other, the end is from `none_of`.
    Ends are not masked for few documents: see `enough`.
    """
    share_DE = sums.share
    variance_DE, degrees_DE = domain_variances(sums)
    known_DE = np.isfinite(share_DE)
    q_DE, v_DE = np.where(known_DE, share_DE, 0.0), np.nan_to_num(variance_DE)
    num_domains_1E = known_DE.sum(0, keepdims=True)
    others_DE, other_variance_DE = q_DE.sum(0) - q_DE, np.maximum(v_DE.sum(0) - v_DE, 0.0)
    others_DE = np.where(others_DE > 1e-15, others_DE, 0.0)
    squares_DE = np.nan_to_num(ratio(v_DE**2, np.nan_to_num(degrees_DE, nan=1.0)))
    other_squares_DE = np.maximum(squares_DE.sum(0) - squares_DE, 0.0)
    inside = known_DE & (q_DE > 0) & (others_DE > 0)
    lift_DE = num_domains_1E * ratio(q_DE, q_DE + others_DE)
    q, o = np.where(inside, q_DE, 1.0), np.where(inside, others_DE, 1.0)
    variance = v_DE / q**2 + other_variance_DE / o**2
    degrees = ratio(variance**2, squares_DE / q**4 + other_squares_DE / o**4)
    degrees = np.where(inside & (variance > 0), np.maximum(degrees, 1.0), np.nan)
    error = np.where(inside, np.sqrt(variance), np.nan)
    center = np.log(q / o)
    reach = np.nan_to_num(student.ppf(1 - TAIL, degrees)) * np.nan_to_num(error)
    low, high = num_domains_1E * expit(center - reach), num_domains_1E * expit(center + reach)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = (center - logit(ratio(1.0, num_domains_1E))) / error
    p_value = np.where(statistic > 0, student.sf(np.abs(statistic), degrees), student.cdf(np.abs(statistic), degrees))
    edges = _lift_edges(sums, q_DE, v_DE, degrees_DE, others_DE, num_domains_1E)
    edge_low, edge_high, edge_p, edge_degrees = edges
    several = known_DE & (num_domains_1E > 1) & ((q_DE > 0) | (others_DE > 0))
    spread = np.isfinite(degrees_DE)
    return Lifts(
        lift=np.where(known_DE & (q_DE + others_DE > 0), lift_DE, np.nan),
        low=np.where(several & spread, np.where(inside, low, edge_low), np.nan),
        high=np.where(several & spread, np.where(inside, high, edge_high), np.nan),
        error=np.where(several & spread, error, np.nan),
        degrees=np.where(several & spread, np.where(inside, degrees, edge_degrees), np.nan),
        p_value=np.where(several & spread, np.where(inside, p_value, edge_p), np.nan),
    )


def _lift_edges(
    sums: DocumentSums, q_DE: Floats, v_DE: Floats, degrees_DE: Floats, others_DE: Floats, num_domains_1E: Numbers
) -> tuple[Floats, Floats, Floats, Floats]:
    """Ends, p-value and degrees of freedom where the share of the domain, or of all others, is 0.

    Without another domain the test is of the difference of q_d from 0, the mean of the others.
    """
    effective_DE = np.broadcast_to(np.nan_to_num(sums.effective), q_DE.shape)
    others_high = (num_domains_1E - 1) * none_of(effective_DE.sum(0) - effective_DE)
    own_low, _ = share_interval(q_DE, v_DE, np.nan_to_num(degrees_DE, nan=1.0), effective_DE)
    own_high = none_of(effective_DE)
    never = q_DE == 0
    low = np.where(never, 0.0, num_domains_1E * ratio(own_low, own_low + others_high))
    high = np.where(never, num_domains_1E * ratio(own_high, own_high + others_DE), num_domains_1E)
    statistic = ratio(q_DE, np.sqrt(v_DE))
    p_value = np.where(never, 1.0, student.sf(statistic, degrees_DE))
    return low, high, p_value, np.where(never, np.nan, degrees_DE)


def _satterthwaite(parts_DE: Floats, degrees_DE: Floats) -> tuple[Floats, Floats]:
    variance_E = parts_DE.sum(0)
    squares_E = np.nan_to_num(ratio(parts_DE**2, np.nan_to_num(degrees_DE, nan=1.0))).sum(0)
    return variance_E, ratio(variance_E**2, squares_E)


@dataclass(frozen=True)
class Effects:
    """Effects per token with intervals, (P,).

    Attributes:
        mean: `Σ e_i / Σ t_i`.
        low: Lower end of the 95 % interval; NaN where it is refused.
        high: Upper end.
        p_value: One-sided, of an effect of at most 0; NaN where the interval is refused.
        effective: The smaller of the effective numbers of documents by tokens and by effect.
    """

    mean: Floats
    low: Floats
    high: Floats
    p_value: Floats
    effective: Floats


def effect_intervals(effects_GP: Floats, tokens_G: Numbers, weights_GR: Numbers) -> Effects:
    """`θ = Σ e_i / Σ t_i` over G documents for each of P changes, with intervals for skewed effects.

    `[θ - b se, θ + a se]`, se by linearization; a and b are the larger of Student's t with G - 1 degrees of freedom and
    of the bootstrap-t's quantiles (the 97.5 % quantile of `(θ* - θ) / se*` for b, minus the 2.5 % one for a; Efron and
    Tibshirani 1993, chapter 12), both times `t_ν / t_(G-1)`: ν is the effective number of documents that carry the
    effect, `(Σ|e_i|)² / Σ e_i²`, less one (at least 2). The p-value is Student's t with ν degrees of freedom.

    Refused under `MIN_DOCUMENTS` documents, under `MIN_EFFECTIVE_DOCUMENTS` effective ones by tokens, and where fewer
    than `LEAST_CARRYING` carry the effect: it may be of one document alone.

    Args:
        effects_GP: Sums over each document's tokens.
        tokens_G: Tokens of each.
        weights_GR: Poisson weights of each document in R replicates; R = 0: no intervals.
    """
    tokens_G = np.asarray(tokens_G, dtype=np.float64)
    shape = effects_GP.shape[1:]
    nothing = np.full(shape, np.nan)
    total = tokens_G.sum()
    if not total:
        return Effects(nothing, nothing, nothing, nothing, np.zeros(shape))
    mean = effects_GP.sum(0) / total
    carrying = ratio(np.abs(effects_GP).sum(0) ** 2, (effects_GP**2).sum(0))
    effective = float(ratio(total**2, (tokens_G**2).sum()))
    smaller = np.minimum(np.nan_to_num(carrying, nan=effective), effective)
    counted = int((tokens_G > 0).sum())
    if not enough(counted, effective) or not weights_GR.shape[1]:
        return Effects(mean, nothing, nothing, nothing, smaller)
    error = _errors(effects_GP, tokens_G, np.ones((len(tokens_G), 1)))[1][0]
    ends = []
    for start in range(0, shape[0], 1024):  # replicates of many changes at once take too much memory
        at = slice(start, start + 1024)
        drawn_RP, errors_RP = _errors(effects_GP[:, at], tokens_G, np.asarray(weights_GR, dtype=np.float64))
        tiny = errors_RP <= 1e-9 * error[at]  # one document alone has no spread
        ends.append(replicate_range(ratio(drawn_RP - mean[at], np.where(tiny, 0.0, errors_RP))))
    lower, upper = (np.concatenate([pair[end] for pair in ends]) for end in range(2))
    plain = student.ppf(1 - TAIL, counted - 1)
    degrees = np.clip(np.nan_to_num(carrying, nan=float(counted)) - 1, 2, counted - 1)
    wider = student.ppf(1 - TAIL, degrees) / plain
    above, below = np.fmax(-lower, plain) * wider, np.fmax(upper, plain) * wider
    known = np.isfinite(mean) & ~(carrying < LEAST_CARRYING)
    p_value = student.sf(ratio(mean, error), degrees)
    return Effects(
        mean=mean,
        low=np.where(known, mean - below * error, np.nan),
        high=np.where(known, mean + above * error, np.nan),
        p_value=np.where(known, np.where(error > 0, p_value, np.where(mean > 0, 0.0, 1.0)), np.nan),
        effective=smaller,
    )


def _errors(effects_GP: Floats, tokens_G: Floats, weights_GR: Floats) -> tuple[Floats, Floats]:
    """Ratio and its linearized standard error in each replicate, (R, P); NaN of one document."""
    weights_RG = weights_GR.T
    tokens_R1, num_R1 = (weights_RG @ tokens_G)[:, None], weights_RG.sum(1)[:, None]
    mean_RP = ratio(weights_RG @ effects_GP, tokens_R1)
    squares_RP = (
        weights_RG @ effects_GP**2
        - 2 * mean_RP * (weights_RG @ (effects_GP * tokens_G[:, None]))
        + mean_RP**2 * (weights_RG @ tokens_G**2)[:, None]
    )
    variance_RP = ratio(np.maximum(squares_RP, 0.0) * num_R1, np.maximum(num_R1 - 1, 0) * tokens_R1**2)
    return mean_RP, np.sqrt(variance_RP)
