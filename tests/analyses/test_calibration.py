"""How often findings are called shown where nothing depends on anything, and that planted dependence is found.

The routers of `random_routers`, the questions about routing with their own statistics and tables, and Holm's procedure
over all claims: at most 5 % of runs may show any. A router that draws at random for each document is the harder case,
since a document's tokens are alike for no reason.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from moescope.analyses.finding import Finding
from moescope.analyses.profile.labels import labels
from moescope.measures.constants import COVERAGE
from moescope.measures.multiple import any_of
from moescope.statistics.samples.tokens import TokenSample
from tests.analyses.random_routers import (
    LAYERS,
    NUM_EXPERTS,
    NUM_SELECTED,
    documents,
    findings,
    per_document,
    per_domain,
    per_token,
    per_type,
    routings,
)

TESTABLE = {"usage", "vocabulary", "coactivation", "paths"}
"""Topics whose claims are tested with these numbers of documents."""
MOST_OF_200 = 17
"""Runs of 200 that may show anything, if each does with 5 %: the probability of more is 1.2 %."""


def shown(found: list[Finding]) -> set[str]:
    return {finding.title for finding in found if finding.verdict == "shown"}


def runs_that_show_any(router, seeds: range) -> list[int]:
    """The seeds of runs with a finding that is shown; every run has to test all that it can."""
    wrong = []
    for seed in seeds:
        found = findings(seed, router)
        # A domain whose half has few documents may have too few for its specialist; the rest is always testable.
        assert {finding.topic for finding in found if finding.p_value is not None} == TESTABLE
        assert all(finding.verdict == "not testable" for finding in found if finding.p_value is None)
        if shown(found):
            wrong.append(seed)
    return wrong


@pytest.mark.parametrize("router", [per_token, per_document])
def test_random_routers_seldom_show_anything(router):
    wrong = runs_that_show_any(router, range(1000, 1006))
    assert len(wrong) <= binom.ppf(0.999, 6, 1 - COVERAGE), wrong


def label_p_values(seeds, router):
    """p-value of "some expert's label exceeds chance" of each run."""
    for seed in seeds:
        domains = [f"domain {index}" for index in range(4)]
        tokens = documents(seed, domains, 12)
        sample = TokenSample(layers=list(LAYERS), num_experts_per_token=NUM_SELECTED, num_samples=5000, seed=seed)
        for routing in routings(seed, tokens, router):
            sample.update(routing)
        found = [label for layer in LAYERS for label in labels(sample.sample(layer), NUM_EXPERTS, domains, {})]
        yield any_of([label.score.p_value for label in found if label is not None])


@pytest.mark.parametrize("router", [per_token, per_document])
def test_labels_of_random_routers_exceed_chance_in_at_most_5_percent_of_runs(router):
    p_values = list(label_p_values(range(40), router))
    assert not np.isnan(p_values).any()
    assert sum(value <= 1 - COVERAGE for value in p_values) <= binom.ppf(0.999, 40, 1 - COVERAGE)


def test_labels_of_domains_exceed_chance():
    assert max(label_p_values([1, 2], per_domain)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("router", [per_token, per_document])
def test_random_routers_show_anything_in_at_most_5_percent_of_runs(router):
    wrong = runs_that_show_any(router, range(200))
    assert len(wrong) <= MOST_OF_200, wrong


@pytest.mark.parametrize("seed", [1, 2])
def test_a_router_of_domains_carries_domain_information_and_none_of_the_token(seed):
    found = findings(seed, per_domain)
    (information,) = [finding for finding in found if "omain information" in finding.title]
    assert information.verdict == "shown"
    assert information.p_value is not None and information.p_value < 0.01
    # A domain that prefers some experts at one layer and others at the next makes layers dependent, and pairs.
    assert {finding.topic for finding in found if finding.verdict == "shown"} <= {"usage", "paths", "coactivation"}
    (token,) = [finding for finding in found if finding.topic == "vocabulary"]
    assert token.verdict == "not shown"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_router_of_types_depends_on_the_token_and_carries_no_domain(seed):
    found = findings(seed, per_type)
    (token,) = [finding for finding in found if finding.topic == "vocabulary"]
    assert token.verdict == "shown"
    assert "more on the input token" in token.title
    assert token.p_value is not None and token.p_value < 1e-4
    # Words are drawn without regard to the domain.
    assert not [finding for finding in found if finding.topic == "usage" and finding.verdict == "shown"]
    assert {finding.topic for finding in found if finding.verdict == "shown"} <= {"vocabulary", "paths", "coactivation"}
