"""What nulls and intervals promise, over many corpora of known routing; see also `docs/make_coverage.py`."""

import numpy as np
import pytest
from scipy.stats import binom

from moescope.statistics.usage import ExpertUsage
from tests import simulations
from tests.records import random_batch, random_routings

LAYERS = [2, 3]
SLOW = pytest.mark.slow


def corpus(generator, design):
    """Lengths and domains of documents, whose routing will not depend on the domain."""
    if design in (4, 8):
        return generator.integers(20, 60, 4 * design), np.repeat(np.arange(4), design)
    lengths, domain_ids = (
        [],
        [],
    )  # every domain fills a budget of 600 tokens, from few long documents to many short ones
    for domain, longest in enumerate((150, 75, 40, 20)):
        left = 600
        while left:
            lengths.append(min(int(generator.integers(longest // 2, longest + 1)), left))
            domain_ids.append(domain)
            left -= lengths[-1]
    return lengths, domain_ids


@pytest.mark.parametrize("num_corpora", [40, pytest.param(400, marks=SLOW)])
@pytest.mark.parametrize("design", [4, 8, "number and length"])
def test_routing_that_depends_on_documents_alone_seldom_exceeds_the_null(design, num_corpora):
    """At most 5 % of corpora above the upper bound; the bound of the test is binomial at 1 in 10,000."""
    above, small = {"mutual_information": [], "divergence": []}, []
    for seed in range(num_corpora):
        lengths, domain_ids = corpus(np.random.default_rng(seed), design)
        tokens = random_batch(10_000 + seed, lengths=lengths, domain_ids=domain_ids)
        statistic = ExpertUsage(
            layers=LAYERS, num_experts=6, num_experts_per_token=2, domains=list("abcd"), seed=seed, num_null=199
        )
        for record in random_routings(
            tokens, seed, layers=LAYERS, num_experts=6, specialization=0.0, document_effect=1.0
        ):
            statistic.update(record)
        table = statistic.compute()
        for name, verdicts in above.items():
            verdicts.append((table[name] > table[f"{name}_null_high"]).values.reshape(2, -1))
        small.append(table["mutual_information_p_value_any_layer"].values.min() <= 0.05)
    information = np.concatenate(above["mutual_information"])
    assert information.sum() <= binom.ppf(1 - 1e-4, information.size, 0.05)
    # Experts of a layer share its tokens, so that only the first of each layer counts.
    divergence = np.concatenate(above["divergence"])[:, 0]
    assert divergence.sum() <= binom.ppf(1 - 1e-4, divergence.size, 0.05)
    assert sum(small) <= binom.ppf(1 - 1e-4, num_corpora, 0.05)
    if num_corpora > 100:
        assert information.sum() >= 1


def test_domains_that_differ_exceed_the_null():
    tokens = random_batch(1, lengths=[40] * 32, domain_ids=np.repeat(np.arange(4), 8))
    statistic = ExpertUsage(layers=LAYERS, num_experts=6, num_experts_per_token=2, domains=list("abcd"))
    for record in random_routings(tokens, 1, layers=LAYERS, num_experts=6, specialization=1.0, document_effect=0.5):
        statistic.update(record)
    table = statistic.compute()
    assert (table["mutual_information_p_value"] == 0.001).all()
    assert (table["mutual_information_p_value_tail"] < 1e-4).all()


def least(coverage, nominal=0.92):
    """The nominal share less two simulation errors."""
    num_known = coverage.num_corpora * (1 - coverage.refused)
    return nominal - 2 * np.sqrt(nominal * (1 - nominal) / num_known)


@pytest.mark.parametrize("num_corpora", [1000, pytest.param(10_000, marks=SLOW)])
@pytest.mark.parametrize("num_documents", [12, 30, 100])
@pytest.mark.parametrize("tails", simulations.TAILS)
@pytest.mark.parametrize("share", [0.125, 0.01], ids=["common", "rare"])
def test_intervals_of_shares_and_lifts_cover(share, tails, num_documents, num_corpora):
    for measure in (simulations.share_coverage, simulations.lift_coverage):
        found = measure(share, tails, num_documents, num_corpora)
        assert least(found) <= found.held <= 0.999, measure.__name__
        assert found.refused == 0
    assert (
        simulations.lift_false_positives(share, tails, num_documents, num_corpora, 0.05)
        <= binom.ppf(1 - 1e-4, num_corpora, 0.05) / num_corpora
    )


@pytest.mark.parametrize("num_corpora", [300, pytest.param(3000, marks=SLOW)])
@pytest.mark.parametrize("num_documents", [12, 30, 100])
@pytest.mark.parametrize("kind", ["light", "lognormal", "both signs"])
def test_intervals_of_effects_cover(kind, num_documents, num_corpora):
    found = simulations.effect_coverage(kind, num_documents, num_corpora)
    assert least(found) <= found.held <= 0.999
    assert found.refused <= 0.1


def test_what_one_document_in_ten_carries_is_covered_from_a_hundred_documents_on():
    found = simulations.effect_coverage("one in ten", 100, 500)
    assert found.held >= least(found)
    assert simulations.effect_coverage("one in ten", 12, 500).refused > 0.3  # the limit that docs/metrics.md states


@pytest.mark.parametrize("tails", simulations.TAILS)
def test_seven_documents_have_no_interval(tails):
    assert simulations.share_coverage(0.1, tails, 7, 50).refused == 1
    assert simulations.lift_coverage(0.1, tails, 7, 50).refused == 1
    assert simulations.effect_coverage("light", 7, 50).refused == 1


@pytest.mark.parametrize("common", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("num_draws", [60, pytest.param(600, marks=SLOW)])
def test_rank_correlations_within_domains_cover_where_domains_have_experts_in_common(common, num_draws):
    """`common`: share of the variance of both measures that is an expert's in all domains.

    An interval over domains would take them for independent and cover .93, .79 and less.
    """
    found = [simulations.rank_correlation_held(common, seed) for seed in range(num_draws)]
    low = 0.92 - (2 if num_draws > 100 else 3) * np.sqrt(0.92 * 0.08 / num_draws)
    assert np.mean(found) >= low
