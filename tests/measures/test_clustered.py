"""Means over tokens with the uncertainty of documents: against a plain loop and against simulation."""

import math
import warnings

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from moescope.measures.clustered import clustered_mean, not_distinguishable, not_distinguishable_groups, summarized
from moescope.measures.constants import MIN_DOCUMENTS


def clustered(seed: int, num_documents: int = 40, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of mean 0 that a document's tokens share half of, and each token's document (numbers with gaps)."""
    generator = np.random.default_rng([seed, 1])
    documents_N = np.repeat(3 * np.arange(num_documents) + 5, generator.integers(5, 41, num_documents))
    shared_N = spread * generator.normal(size=num_documents)[(documents_N - 5) // 3]
    return shared_N + generator.normal(size=len(documents_N)), documents_N


def test_it_is_the_mean_with_its_jackknife_by_a_plain_loop():
    scores_N, documents_N = clustered(1)
    order = np.random.default_rng(0).permutation(len(scores_N))  # the order of tokens has no part in it
    found = clustered_mean(scores_N[order], documents_N[order])
    mean = math.fsum(scores_N) / len(scores_N)
    squares, lengths = 0.0, []
    for name in sorted(set(documents_N.tolist())):
        others = [score for score, document in zip(scores_N, documents_N, strict=True) if document != name]
        squares += (math.fsum(others) / len(others) - mean) ** 2
        lengths.append(len(scores_N) - len(others))
    count = len(lengths)
    error = math.sqrt((count - 1) / count * squares)
    effective = sum(lengths) ** 2 / sum(length**2 for length in lengths)
    freedom = sum(length**2 for length in lengths) ** 2 / sum(length**4 for length in lengths) - 1
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(error)
    assert (found.num_documents, found.effective_documents) == (40, pytest.approx(effective))
    assert found.degrees_of_freedom == pytest.approx(freedom) and freedom < count - 1
    reach = student.ppf(0.975, freedom) * error
    assert found.interval == pytest.approx((mean - reach, mean + reach))
    assert found.p_value(0.1) == pytest.approx(student.sf((mean - 0.1) / error, freedom))


def test_each_margin_that_a_document_is_part_of_enlarges_its_deviation():
    scores_N, documents_N = clustered(2, num_documents=12)
    sizes = {name: int((documents_N == name).sum()) for name in set(documents_N.tolist())}
    for margins in (1, 2):
        squares = sum(
            ((scores_N - scores_N.mean())[documents_N == name].sum() / (1 - size / len(scores_N)) ** margins) ** 2
            for name, size in sizes.items()
        )
        found = clustered_mean(scores_N, documents_N, num_margins=margins)
        assert found.standard_error == pytest.approx(math.sqrt(11 / 12 * squares) / len(scores_N))


def test_documents_of_one_token_are_a_t_test():
    from scipy.stats import ttest_1samp

    scores_N = np.random.default_rng(2).normal(0.3, size=25)
    expected = ttest_1samp(scores_N, 0, alternative="greater")
    found = clustered_mean(scores_N, np.arange(25))
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(ttest_1samp(scores_N, 0).confidence_interval(0.95)))


def test_intervals_of_clustered_scores_cover_their_mean():
    repetitions, covered, rejected, naive = 1500, 0, 0, 0
    for seed in range(repetitions):
        scores_N, documents_N = clustered(seed)
        found = clustered_mean(scores_N, documents_N)
        low, high = found.interval
        covered += low <= 0 <= high
        rejected += found.p_value() <= 0.05
        naive += abs(scores_N.mean()) <= 1.96 * scores_N.std() / np.sqrt(len(scores_N))
    # Degrees of freedom are approximate: a percent either way.
    assert binom.ppf(1e-4, repetitions, 0.94) <= covered <= binom.ppf(1 - 1e-4, repetitions, 0.965)
    assert binom.ppf(1e-4, repetitions, 0.035) <= rejected <= binom.ppf(1 - 1e-4, repetitions, 0.06)
    assert naive < 0.6 * repetitions  # tokens taken as independent: what the document is there for


def test_too_few_documents_have_no_test():
    scores_N = np.arange(100.0)
    few = clustered_mean(scores_N, np.arange(100) % (MIN_DOCUMENTS - 1))
    assert (few.mean, few.num_documents) == (49.5, MIN_DOCUMENTS - 1)
    assert math.isnan(few.standard_error) and math.isnan(few.p_value()) and np.isnan(few.interval).all()
    enough = clustered_mean(scores_N, np.arange(100) % MIN_DOCUMENTS)
    assert 0 <= enough.p_value() < 1e-6
    # Twenty documents, of which one has nearly all tokens.
    long = clustered_mean(np.arange(1019.0), np.concatenate([np.zeros(1000, int), np.arange(1, 20)]))
    assert long.num_documents == 20 and long.effective_documents < 1.1 and math.isnan(long.p_value())
    empty = clustered_mean(np.zeros(0), np.zeros(0, int))
    assert math.isnan(empty.mean) and math.isnan(empty.p_value()) and empty.num_documents == 0


def test_scores_that_do_not_vary():
    documents_N = np.arange(30) // 2
    assert clustered_mean(np.ones(30), documents_N).p_value() == 0.0
    assert clustered_mean(np.zeros(30), documents_N).p_value() == 1.0


def rows(seed: int, *means: float, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Rows that share their documents' effects, which cancel in paired differences."""
    scores_N, documents_N = clustered(seed)
    generator = np.random.default_rng([seed, 2])
    return np.stack([scores_N + mean + noise * generator.normal(size=len(scores_N)) for mean in means]), documents_N


def test_rows_below_the_highest_are_told_apart_by_paired_differences():
    scores_LN, documents_N = rows(3, 0.0, 0.5, 0.4, 0.5)
    # The difference of 0.1 is far below a document's own spread of 1, which both rows share.
    ties = not_distinguishable(scores_LN, documents_N)
    assert not ties[0] and not ties[2] and ties.sum() >= 1
    assert ties[scores_LN.mean(axis=1).argmax()]


def test_exact_ties_and_few_documents_are_not_distinguishable():
    scores_LN, documents_N = rows(4, 0.0, 1.0)
    assert not_distinguishable(scores_LN[[1, 0, 1, 1]], documents_N).tolist() == [True, False, True, True]
    assert not_distinguishable(scores_LN, documents_N % 3).tolist() == [True, True]
    assert not_distinguishable(scores_LN[:1], documents_N).tolist() == [True]


def test_of_equal_rows_seldom_any_is_called_lower():
    repetitions = 200
    wrong = sum(not not_distinguishable(*rows(seed, 0.0, 0.0, 0.0, 0.0)).all() for seed in range(repetitions))
    wrong_groups = sum(
        not not_distinguishable_groups(*grouped(*rows(seed, 0.0, 0.0, 0.0, 0.0))).all() for seed in range(repetitions)
    )
    # The highest of four was selected on the same data: of 3 comparisons each is tested at 5 % / 3.
    # Between two rows drawn equal, the highest lies above by selection: at most twice the level.
    assert wrong <= binom.ppf(0.999, repetitions, 0.1)
    assert wrong_groups <= binom.ppf(0.999, repetitions, 0.1)


def grouped(scores_LN: np.ndarray, documents_N: np.ndarray, num_groups: int = 20) -> tuple[np.ndarray, np.ndarray]:
    groups_N = documents_N // 3 % num_groups
    sums_RG = np.stack([np.bincount(groups_N, weights=scores_N, minlength=num_groups) for scores_N in scores_LN])
    tokens_RG = np.stack([np.bincount(groups_N, minlength=num_groups)] * len(scores_LN))
    return sums_RG, tokens_RG


def test_groups_of_documents_give_the_same_ties():
    scores_LN, documents_N = rows(3, 0.0, 0.5, 0.4, 0.5)
    ties = not_distinguishable_groups(*grouped(scores_LN, documents_N))
    assert not ties[0] and not ties[2]
    assert ties[scores_LN.mean(axis=1).argmax()]


def test_ties_of_groups_that_are_exact_or_unknown():
    scores_LN, documents_N = rows(4, 0.0, 1.0)
    sums_RG, tokens_RG = grouped(scores_LN[[1, 0, 1, 0]], documents_N)
    sums_RG[3], tokens_RG[3] = 0, 0  # a row without tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not_distinguishable_groups(sums_RG, tokens_RG).tolist() == [True, False, True, True]
        assert not_distinguishable_groups(0 * sums_RG, 0 * tokens_RG).all()
        # A difference without any spread is one.
        flat_RG = np.array([[2.0], [1.0], [2.0]]) * tokens_RG[:3]
        assert not_distinguishable_groups(flat_RG, tokens_RG[:3]).tolist() == [True, False, True]
        few = np.arange(20) < MIN_DOCUMENTS - 1
        assert not_distinguishable_groups(sums_RG[:3] * few, tokens_RG[:3] * few).all()
        enough = np.arange(20) < MIN_DOCUMENTS
        assert not not_distinguishable_groups(sums_RG[:3] * enough, tokens_RG[:3] * enough)[1]


def test_a_summary_has_each_rows_values():
    scores_LN, documents_N = rows(5, 0.0, 1.0)
    found = summarized(scores_LN, documents_N, "thing")
    assert sorted(found) == ["thing", "thing_ci_high", "thing_ci_low", "thing_p_value", "thing_tied"]
    for row, scores_N in enumerate(scores_LN):
        alone = clustered_mean(scores_N, documents_N)
        values = [found[name][row] for name in ("thing", "thing_ci_low", "thing_ci_high", "thing_p_value")]
        assert values == pytest.approx([alone.mean, *alone.interval, alone.p_value()])
    assert found["thing_tied"].tolist() == [False, True]
    few = summarized(scores_LN, documents_N % 3, "thing")
    assert all(np.isnan(few[name]).all() for name in few if name != "thing_tied")
