"""Values of the measures under independent routing, a router that ignores its input, at the same counts.

Overlaps, maxima and mutual information are all above zero (or above K / E) under a router that ignores its input, so
each is reported with its value under such a router. All values here are exact expectations or say where they are not;
nothing is simulated, so nothing depends on a seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

# Chernoff exponent at which a binomial tail is cut: exp(-28) = 7e-13 of probability is left out.
_TAIL = 28.0


def _binomial_cdf(trials: int, frequencies_X: Floats, low: int, high: int) -> Floats:
    """`P(Binomial(trials, f) <= m)` for m in low..high-1; shape (len(frequencies), high - low)."""
    f_X1 = np.clip(frequencies_X, 1e-300, 1.0 - 2.0**-53)[:, None]
    m_W = np.arange(low, high, dtype=np.float64)
    log_choose_W = special.gammaln(trials + 1.0) - special.gammaln(m_W + 1.0) - special.gammaln(trials - m_W + 1.0)
    pmf_XW = np.exp(log_choose_W + m_W * np.log(f_X1) + (trials - m_W) * np.log1p(-f_X1))
    if low > 0:
        pmf_XW[:, 0] += special.bdtr(low - 1, trials, f_X1[:, 0])
    cdf_XW: Floats = np.minimum(np.cumsum(pmf_XW, axis=1, out=pmf_XW), 1.0)
    return cdf_XW


def _upper_edge(trials: int, frequencies: Floats) -> NDArray[np.int64]:
    """The least m with `P(Binomial(trials, f) > m)` below the tail, by Chernoff's bound; at most `trials`."""
    mean = trials * frequencies
    edge = np.ceil(mean + _TAIL / 3 + np.sqrt((_TAIL / 3) ** 2 + 2 * _TAIL * mean)).astype(np.int64)
    return np.minimum(edge, trials)


def expected_maximum_share(trials_U: Ints, frequencies_LE: Floats) -> Floats:
    """`E[max_e N_e] / n` for a token type seen n times, where expert e is selected for each with its layer frequency.

    Each `N_e` is Binomial(n, f_e), independently of the others, so `P(max <= m) = Π_e F_e(m)`, and
    `E[max] = Σ_m P(max > m)`. In fact the experts of one token exclude each other, so the value is slightly
    low: by up to 0.01 at n = 10 with E = 64, by 0.02 with E = 8, and by less for larger n. The maximum is at least
    `n Σf / E` (pigeonhole), which is taken into account.

    Args:
        trials_U: Distinct numbers of occurrences n, each at least 1.
        frequencies_LE: Selection frequency of each expert in each layer, `N_e / N`, rows sum to K.

    Returns:
        Shape (L, U), shares in 0..1; NaN where a layer's frequencies are NaN.
    """
    num_layers, num_experts = frequencies_LE.shape
    shares_LU = np.full((num_layers, len(trials_U)), np.nan)
    known = np.flatnonzero(np.isfinite(frequencies_LE).all(axis=1))
    if not len(known):
        return shares_LU
    known_XE = frequencies_LE[known]
    for column, trials in enumerate(int(n) for n in trials_U):
        # Below `low` the busiest expert alone makes P(max > m) = 1; from `high` on it is 0.
        busiest = trials * known_XE.max(axis=1).min()
        floor_X = np.ceil(trials * known_XE.sum(axis=1) / num_experts - 1e-9)
        low = int(max(0.0, np.floor(busiest - np.sqrt(2 * _TAIL * busiest)), floor_X.min()))
        edges_XE = _upper_edge(trials, known_XE)
        high = max(int(edges_XE.max()), low + 1)
        below_XW = np.ones((len(known), high - low))
        # Experts too rare to reach `low` multiply by 1.
        for row in range(len(known)):
            reaching = edges_XE[row] > low
            cdf_EW = _binomial_cdf(trials, known_XE[row, reaching], low, high)
            below_XW[row] = cdf_EW.prod(axis=0)
        below_XW[np.arange(low, high) < floor_X[:, None]] = 0.0
        shares_LU[known, column] = (low + (1.0 - below_XW).sum(axis=1)) / trials
    return shares_LU


def expected_chosen_share(trials_U: Ints, frequencies_E: Floats) -> Floats:
    """`Σ_e P(e has the largest N_e) f_e`: the share on other text of the expert selected most of n times on this.

    Each `N_e` is Binomial(n, f_e), independently of the others; ties go to the lower id:
    `P = Σ_m P(N_e = m) Π_{j<e} P(N_j < m) Π_{j>e} P(N_j <= m)`.

    Args:
        trials_U: Distinct numbers of occurrences n, each at least 1.
        frequencies_E: Selection frequency of each expert, `N_e / N`.

    Returns:
        Shape (U,), shares in 0..1.
    """
    shares_U = np.empty(len(trials_U))
    for index, trials in enumerate(int(n) for n in trials_U):
        # As above: the largest is at least `low`, and experts too rare to reach it are not the largest.
        busiest = trials * frequencies_E.max()
        low = int(max(0.0, np.floor(busiest - np.sqrt(2 * _TAIL * busiest))))
        edges_E = _upper_edge(trials, frequencies_E)
        reaching_E = frequencies_E[(edges_E > low) & (frequencies_E > 0)]
        upto_EW = _binomial_cdf(trials, reaching_E, low, max(int(edges_E.max()), low) + 1)
        below_EW = np.concatenate([np.zeros((len(reaching_E), 1)), upto_EW[:, :-1]], axis=1)
        nothing_1W = np.ones((1, upto_EW.shape[1]))
        lower_EW = np.concatenate([nothing_1W, np.cumprod(below_EW, axis=0)[:-1]])
        higher_EW = np.concatenate([np.cumprod(upto_EW[::-1], axis=0)[::-1][1:], nothing_1W])
        largest_E = ((upto_EW - below_EW) * lower_EW * higher_EW).sum(axis=1)
        shares_U[index] = largest_E @ reaching_E / largest_E.sum()
    return shares_U


def expected_minimum_sum(trials_U: Ints, num_types_U: Ints, frequencies_E: Floats) -> Floats:
    """`Σ_x E[min(n_xi, n_xj)]` for every pair of experts, if `n_xe` is Binomial(N_x, f_e), independently.

    `E[min] = Σ_m P(n_i > m) P(n_j > m)`, a matrix product over m. The diagonal is `Σ_x E[n_xi]`.

    Args:
        trials_U: Distinct numbers of occurrences of a token type, each at least 1.
        num_types_U: How many token types occur that often.
        frequencies_E: Selection frequency of each expert, `N_e / N`.

    Returns:
        Shape (E, E), counts.
    """
    num_experts = len(frequencies_E)
    sums_EE = np.zeros((num_experts, num_experts))
    for trials, num_types in zip(trials_U.tolist(), num_types_U.tolist(), strict=True):
        high = max(int(_upper_edge(trials, frequencies_E).max()), 1)
        above_EW = 1.0 - _binomial_cdf(trials, frequencies_E, 0, high)
        sums_EE += num_types * (above_EW @ above_EW.T)
    np.fill_diagonal(sums_EE, frequencies_E * float((trials_U * num_types_U).sum()))
    return sums_EE


def pair_probabilities(frequencies_E: Floats, num_experts_per_token: int) -> Floats:
    """`P(i, j both selected)` if each token draws K distinct experts, with these frequencies and no other structure.

    Independent draws would break the rule that a token has exactly K experts: at E = 64, K = 8 they expect 12 % too
    many pairs. So the null is the maximum-entropy distribution over sets of K, `P(S) ∝ Π_{e∈S} w_e`, whose odds `w`
    are fitted until `P(e ∈ S) = f_e` (Chen, Dempster and Liu 1994, Biometrika 81). It keeps
    `Σ_{j≠i} P(i, j) = (K - 1) f_i`. Inclusion probabilities are read off the characteristic function of the number
    selected, which is exact: a discrete Fourier transform over more points than experts.

    Args:
        frequencies_E: `N_e / N`; sums to K.
        num_experts_per_token: K.

    Returns:
        Shape (E, E), symmetric, `f_e` on the diagonal; NaN where the frequencies are NaN.
    """
    num_experts = len(frequencies_E)
    if not np.isfinite(frequencies_E).all():
        return np.full((num_experts, num_experts), np.nan)
    # An expert that is always or never selected is independent of all others.
    pairs_EE = np.outer(frequencies_E, frequencies_E)
    some = np.flatnonzero((frequencies_E > 1e-12) & (frequencies_E < 1 - 1e-12))
    size = num_experts_per_token - int((frequencies_E >= 1 - 1e-12).sum())
    if len(some) > 1:
        target_X = frequencies_E[some]
        target_X = target_X * (size / target_X.sum())
        pairs_EE[np.ix_(some, some)] = _fixed_size_pairs(np.clip(target_X, 1e-15, 1 - 1e-15), size)
    np.fill_diagonal(pairs_EE, frequencies_E)
    return pairs_EE


def _fixed_size_pairs(target_X: Floats, size: int) -> Floats:
    """`pair_probabilities` for experts that are selected sometimes, `size` of them per token."""
    # An odd number of points: at angle pi a probability of 1/2 would be a zero divisor.
    points = len(target_X) + 1 + len(target_X) % 2
    turn_P = np.exp(2j * np.pi * np.arange(points) / points)
    goal_X = target_X / (1 - target_X)
    odds_X = goal_X.copy()
    for _ in range(1000):
        p_X = odds_X / (1 + odds_X)
        factors_XP = 1 - p_X[:, None] + p_X[:, None] * turn_P
        others_XP = factors_XP.prod(axis=0) / factors_XP
        with_X = p_X * (others_XP @ turn_P ** (1 - size)).real
        without_X = (1 - p_X) * (others_XP @ turn_P ** (-size)).real
        ratio_X = goal_X * without_X / with_X
        odds_X = odds_X * ratio_X
        if np.abs(ratio_X - 1).max() < 1e-12:
            break
    p_X = odds_X / (1 + odds_X)
    factors_XP = 1 - p_X[:, None] + p_X[:, None] * turn_P
    product_P = factors_XP.prod(axis=0)
    inverse_XP = 1 / factors_XP
    exactly = (product_P @ turn_P ** (-size)).real
    both_XX = ((inverse_XP * (product_P * turn_P ** (2 - size))) @ inverse_XP.T).real
    joint_XX: Floats = np.clip(np.outer(p_X, p_X) * both_XX / exactly, 0.0, 1.0)
    return joint_XX


def expected_mutual_information(counts_I: Ints, counts_J: Ints, num_tokens: int) -> float:
    """`Σ_ij E[(n_ij / N) ln(N n_ij / (n_i n_j))]` if one side's tokens were shuffled, nats.

    Under a shuffle each `n_ij` is hypergeometric with the margins as they are, whether or not a token belongs to one
    class only; so for K experts per token the expected mutual information of two layers is this divided by K². With one
    class per token it is the expected mutual information of Vinh, Epps and Bailey (2010, JMLR 11).

    Args:
        counts_I: Tokens of each class on one side.
        counts_J: Tokens of each class on the other.
        num_tokens: N.
    """
    if num_tokens < 2:
        return 0.0
    b_J = np.asarray(counts_J, dtype=np.float64)
    b_J = b_J[b_J > 0]
    values, repeats = np.unique(np.asarray(counts_I), return_counts=True)
    total = 0.0
    for a, repeat in zip(values.tolist(), repeats.tolist(), strict=True):
        if a > 0:
            total += repeat * _expected_row(float(a), b_J, float(num_tokens))
    return total


def _expected_row(a: float, b_J: Floats, n: float) -> float:
    """One row's share of `expected_mutual_information`."""
    mean_J = a * b_J / n
    reach_J = _TAIL / 3 + np.sqrt((_TAIL / 3) ** 2 + 2 * _TAIL * mean_J)
    low_J = np.maximum(np.floor(mean_J - reach_J), np.maximum(0.0, a + b_J - n))
    high_J = np.minimum(np.ceil(mean_J + reach_J), np.minimum(a, b_J))
    m_JW = low_J[:, None] + np.arange(int((high_J - low_J).max()) + 1)
    outside_JW = m_JW > high_J[:, None]
    # Weights relative to the lowest cell: ln of the ratio of neighboring hypergeometric probabilities, summed.
    with np.errstate(divide="ignore", invalid="ignore"):
        step_JW = np.log((a - m_JW) * (b_J[:, None] - m_JW) / ((m_JW + 1) * (n - a - b_J[:, None] + m_JW + 1)))
        log_weight_JW = np.concatenate([np.zeros((len(b_J), 1)), np.cumsum(step_JW[:, :-1], axis=1)], axis=1)
    log_weight_JW[outside_JW] = -np.inf
    weight_JW = np.exp(log_weight_JW - log_weight_JW.max(axis=1, keepdims=True))
    value_JW = special.xlogy(m_JW, m_JW * (n / (a * b_J[:, None])))
    value_JW[outside_JW] = 0.0
    return float(((weight_JW * value_JW).sum(axis=1) / weight_JW.sum(axis=1)).sum() / n)
