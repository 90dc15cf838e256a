"""Dependence of two things known of each token, against loops in float64."""

import math

import numpy as np
import pytest

from moescope.measures.association import PRIOR, counts, held_out_scores, learned_scores, token_scores

X, E, K = 5, 6, 2


def drawn(seed: int, num_tokens: int = 200, *, dependent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A category of each token, and K distinct others; category 4 and 5 of them are never drawn."""
    generator = np.random.default_rng(seed)
    first_N = generator.integers(0, X - 1, num_tokens)
    preference_XE = np.random.default_rng(9).normal(size=(X, E)) * (2.0 if dependent else 0.0)
    noise_NE = generator.gumbel(size=(num_tokens, E)) + preference_XE[first_N]
    noise_NE[:, E - 1] = -np.inf
    return first_N, noise_NE.argsort(axis=1)[:, -K:]


def test_counts_and_learned_scores_are_their_formulas():
    first_N, second_NK = drawn(1)
    counts_XE = np.zeros((X, E))
    for x, selected in zip(first_N, second_NK, strict=True):
        for e in selected:
            counts_XE[x, e] += 1
    assert (counts(first_N, second_NK, X, E) == counts_XE).all()
    found_XE = learned_scores(first_N, second_NK, X, E)
    for x in range(X):
        for e in range(E):
            n_x, q_e = sum(first_N == x), counts_XE[:, e].sum() / counts_XE.sum()
            expected = 0.0
            if n_x and q_e:
                expected = math.log((counts_XE[x, e] + PRIOR * K * q_e) / ((n_x + PRIOR) * K * q_e))
            assert found_XE[x, e] == pytest.approx(expected, abs=1e-12)
    assert (found_XE[X - 1] == 0).all() and (found_XE[:, E - 1] == 0).all()
    assert np.abs(found_XE).max() > 0


def test_the_mean_of_token_scores_is_the_weighted_dependence():
    first_N, second_NK = drawn(2, dependent=True)
    scores_XE = np.random.default_rng(3).normal(size=(X, E))
    expected = 0.0
    for x in range(X):
        for e in range(E):
            p_x = np.mean(first_N == x)
            p_e = np.mean(second_NK == e)
            p_xe = np.mean((first_N[:, None] == x) & (second_NK == e))
            expected += (p_xe - p_x * p_e) * scores_XE[x, e]
    assert token_scores(scores_XE, first_N, second_NK).mean() == pytest.approx(expected, abs=1e-12)


def test_token_scores_have_the_influence_of_each_token():
    """Twice the weight of a token changes the mean by its score, less the mean, to first order."""
    first_N, second_NK = drawn(4, 400, dependent=True)
    scores_XE = np.random.default_rng(5).normal(size=(X, E))
    scores_N = token_scores(scores_XE, first_N, second_NK)
    for token in (0, 17, 200):
        more = np.append(np.arange(400), token)
        change = token_scores(scores_XE, first_N[more], second_NK[more]).mean() - scores_N.mean()
        assert 400 * change == pytest.approx(scores_N[token] - scores_N.mean(), abs=0.05)


def test_it_is_zero_in_expectation_where_the_two_are_independent():
    scores_XE = 3 * np.random.default_rng(6).normal(size=(X, E))
    means = np.array([token_scores(scores_XE, *drawn(seed, 60)).mean() for seed in range(600)])
    assert abs(means.mean()) < 4 * means.std() / math.sqrt(len(means))
    # Whereas what is learned on the very tokens that it is measured on looks dependent.
    biased = [token_scores(learned_scores(*drawn(seed, 60), X, E), *drawn(seed, 60)).mean() for seed in range(100)]
    assert np.mean(biased) > 10 * np.std(biased) / math.sqrt(len(biased))


def test_one_half_is_learned_from_and_the_other_measured():
    first_N, second_NK = drawn(7, dependent=True)
    halves_N = np.random.default_rng(8).integers(0, 2, len(first_N))
    scores_XE = learned_scores(first_N[halves_N == 0], second_NK[halves_N == 0], X, E)
    expected = token_scores(scores_XE, first_N[halves_N == 1], second_NK[halves_N == 1])
    found = held_out_scores(first_N, second_NK, halves_N, X, E)
    assert found.tolist() == expected.tolist()
    assert found.mean() > 0.1
