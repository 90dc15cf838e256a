"""Whether two things that are known of each token depend on each other, tested on documents not looked at before.

Counts of one sample always look dependent: of few tokens by noise, of long documents because a document has topics and
routing of its own. So the dependence is learned on one half of the documents and measured on the other, with documents
as the unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR = 10.0
"""Tokens at the overall frequencies that every category is taken to have had, beside its own."""


def learned_scores(first_N: Ints, second_NK: Ints, num_first: int, num_second: int) -> Floats:
    """How much more often than overall each category of the second goes with each of the first, as a logarithm.

    `W_xe = ln [ (n_xe + a K q_e) / ((n_x + a) K q_e) ]`: `n_x` tokens of category x, `n_xe` of their K assignments to
    e, `q_e` its share of all assignments, `a` the weight of the prior. 0 where x or e does not occur.

    Returns:
        Shape (num_first, num_second), nats.
    """
    counts_XE = counts(first_N, second_NK, num_first, num_second)
    totals_X = np.bincount(first_N, minlength=num_first).astype(np.float64)
    share_E = counts_XE.sum(axis=0) / max(1.0, counts_XE.sum())
    expected_XE = (totals_X[:, None] + PRIOR) * second_NK.shape[1] * share_E
    with np.errstate(divide="ignore", invalid="ignore"):
        scores_XE = np.log((counts_XE + PRIOR * second_NK.shape[1] * share_E) / expected_XE)
    known: Floats = np.where((totals_X[:, None] > 0) & (share_E > 0), scores_XE, 0.0)
    return known


def token_scores(scores_XE: Floats, first_N: Ints, second_NK: Ints) -> Floats:
    """Scores of tokens whose mean is the dependence `Σ_xe (P(x, e) - P(x) P(e)) W_xe`, nats per assignment.

    P are shares of these tokens' assignments, W scores learned on other documents: the mean is zero in expectation
    where the two are independent, whatever W is, and its influence function is `token score - mean`, so that the
    clustered variance of the scores is that of the dependence.

    Returns:
        Shape (N,).
    """
    num_first, num_second = scores_XE.shape
    share_X = np.bincount(first_N, minlength=num_first) / max(1, len(first_N))
    share_E = np.bincount(second_NK.ravel(), minlength=num_second) / max(1, second_NK.size)
    by_first_X, by_second_E = scores_XE @ share_E, share_X @ scores_XE
    joint_N = scores_XE[first_N[:, None], second_NK].mean(axis=1)
    values: Floats = joint_N - by_first_X[first_N] - by_second_E[second_NK].mean(axis=1) + share_X @ by_first_X
    return values


def held_out_scores(first_N: Ints, second_NK: Ints, halves_N: Ints, num_first: int, num_second: int) -> Floats:
    """`token_scores` on half 1 of the documents, of what was learned on half 0."""
    learn, judge = halves_N == 0, halves_N == 1
    scores_XE = learned_scores(first_N[learn], second_NK[learn], num_first, num_second)
    return token_scores(scores_XE, first_N[judge], second_NK[judge])


def counts(first_N: Ints, second_NK: Ints, num_first: int, num_second: int) -> Floats:
    """How many assignments of each category of the first go to each of the second, (num_first, num_second)."""
    num_tokens, num_ranks = second_NK.shape
    rows = np.repeat(first_N, num_ranks)
    values = np.ones(num_tokens * num_ranks)
    table = csr_array((values, (rows, second_NK.ravel())), shape=(num_first, num_second))
    dense: Floats = table.toarray()
    return dense
