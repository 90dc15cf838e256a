"""Information of the set of selected experts about the domain, on routers made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from moescope.analyses.usage.set_information import set_information
from moescope.measures.constants import MIN_DOCUMENTS
from tests.analyses.random_routers import LAYERS, NUM_EXPERTS, NUM_SELECTED, per_document, per_domain, per_token, routed


def decided(seed: int = 1):
    """At layer 0 the domain decides the set, at layer 1 one rank in one domain, elsewhere noise."""
    sample = routed(seed, per_token, per=40)
    ids_LNK = sample.expert_ids_LNK.copy()
    ids_LNK[0] = (NUM_SELECTED * sample.domain_ids_N[:, None] + np.arange(NUM_SELECTED)) % NUM_EXPERTS
    return replace(sample, expert_ids_LNK=ids_LNK)


def test_a_set_that_the_domain_decides_tells_all_of_it():
    sample = decided()
    table = set_information(sample, 4, seed=1)
    domains_N = sample.domain_ids_N[sample.halves_N == 1]
    share_D = np.bincount(domains_N) / len(domains_N)
    entropy = -float((share_D * np.log2(share_D)).sum())
    assert entropy > 1.8
    value_L = table["set_information"].values
    assert 0.97 * entropy < value_L[0] <= entropy
    assert table["set_information_share"].values[0] == pytest.approx(value_L[0] / entropy)
    assert table["set_information_p_value"].values[0] == 1e-4  # the least of 9,999 permutations
    assert table["set_information_tied"].values.tolist() == [True, False, False, False]
    # Noise tells nothing: the lower bound is not above 0, and within its null.
    low_L, high_L = table["set_information_null_low"].values, table["set_information_null_high"].values
    assert (table["set_information_p_value"].values[1:] > 0.05).all()
    assert (value_L[1:] < 0.02).all()
    assert ((low_L < value_L) & (value_L < high_L))[1:].all()
    assert (low_L < high_L).all() and value_L[0] > high_L[0]
    assert (table["set_information_ci_low"].values <= value_L).all()
    assert (table["set_information_ci_high"].values >= value_L).all()


def test_a_preference_of_the_domain_is_found_at_every_layer():
    table = set_information(routed(2, per_domain), 4, seed=2)
    assert (table["set_information_p_value"].values <= 0.001).all()
    assert (table["set_information"].values > 0.1).all()


@pytest.mark.parametrize("router", [per_token, per_document])
def test_p_values_of_routers_that_ignore_the_domain(router):
    seeds = 10
    tables = [set_information(routed(seed, router), 4, seed) for seed in range(seeds)]
    smallest = [float(table["set_information_p_value"].min()) for table in tables]
    # Of the highest layer, so that the smallest of the layers is a p-value.
    assert sum(value <= 0.05 for value in smallest) <= binom.ppf(0.999, seeds, 0.05)
    assert max(smallest) > 0.3
    assert all(table["set_information_null_mean"].max() < 0.05 for table in tables)


def test_the_same_seed_gives_the_same_permutations():
    sample = routed(3, per_document)
    first, again, other = (set_information(sample, 4, seed) for seed in (1, 1, 2))
    assert first.identical(again)
    assert (first["set_information"] == other["set_information"]).all()
    assert not first["set_information_null_mean"].equals(other["set_information_null_mean"])


def only_documents(sample, keep):
    """The part of a sample whose documents are to be kept."""
    rows = np.flatnonzero(keep(sample))
    names = ("documents_N", "positions_N", "domain_ids_N", "token_ids_N", "next_token_ids_N", "halves_N", "groups_N")
    changes = {name: getattr(sample, name)[rows] for name in names}
    return replace(sample, **changes, expert_ids_LNK=sample.expert_ids_LNK[:, rows])


@pytest.mark.parametrize("half", [0, 1])
def test_too_few_documents_or_one_domain_are_not_tested(half):
    sample = routed(4, per_domain)

    def first(number):
        names = np.unique(sample.documents_N[sample.halves_N == half])[:number]
        return only_documents(sample, lambda s: (s.halves_N != half) | np.isin(s.documents_N, names))

    def untested(part):
        table = set_information(part, 4, seed=1)
        values = [table[name].values for name in table if name != "set_information_tied"]
        known = {bool(one) for value in values for one in np.isfinite(value)}
        assert known in ({True}, {False}), "all known or nothing"
        assert bool(table["set_information_tied"].any()) == known.pop()
        return not np.isfinite(values[0]).any()

    assert untested(first(MIN_DOCUMENTS - 1)) and untested(first(0))
    assert not untested(sample)
    assert untested(only_documents(sample, lambda s: (s.halves_N != half) | (s.domain_ids_N == 2)))


def test_a_selection_half_whose_first_tokens_are_of_one_domain_is_fitted_all_the_same(monkeypatch):
    monkeypatch.setattr("moescope.analyses.usage.set_information.NUM_FITTED", 5)
    table = set_information(routed(5, per_domain), 4, seed=1)
    assert np.isfinite(table["set_information"].values).all()
    assert len(table["set_information"]) == len(LAYERS)
