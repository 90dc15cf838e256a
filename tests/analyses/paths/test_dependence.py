"""Dependence of consecutive layers on held-out documents, on routers made by hand."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom

from moescope.analyses.paths.dependence import DEFINITIONS, dependence
from moescope.measures.association import learned_scores
from tests.analyses.random_routers import LAYERS, NUM_EXPERTS, per_document, per_domain, per_token, per_type, routed


def test_it_is_the_weighted_dependence_of_first_ranks_by_loops():
    sample = routed(1, per_type)
    table = dependence(sample)
    assert list(table["layer"].values) == list(LAYERS[:-1])
    judge = sample.halves_N == 1
    for here, following in pairwise(LAYERS):
        first_N, second_N = sample.expert_ids_NK(here)[:, 0], sample.expert_ids_NK(following)[:, 0]
        scores_EE = learned_scores(first_N[~judge], second_N[~judge, None], NUM_EXPERTS, NUM_EXPERTS)
        expected = 0.0
        for i in range(NUM_EXPERTS):
            for j in range(NUM_EXPERTS):
                both = np.mean((first_N[judge] == i) & (second_N[judge] == j))
                expected += (both - np.mean(first_N[judge] == i) * np.mean(second_N[judge] == j)) * scores_EE[i, j]
        assert float(table["dependence"].sel(layer=here)) == pytest.approx(expected, abs=1e-12)


def strongly_per_type(generator, tokens, layer):
    return 4 * per_type(generator, tokens, layer)


@pytest.mark.parametrize("router", [per_domain, strongly_per_type])
def test_a_common_cause_makes_layers_dependent(router):
    table = dependence(routed(2, router))
    assert (table["dependence_p_value"] < 0.001).all()
    assert (table["dependence_ci_low"] > 0).all()
    assert table["dependence_tied"].any()


def test_a_layer_that_copies_the_one_before_is_the_highest():
    sample = routed(3, per_token)
    ids_LNK = sample.expert_ids_LNK.copy()
    ids_LNK[2] = ids_LNK[1]
    table = dependence(replace(sample, expert_ids_LNK=ids_LNK))
    assert table["dependence_tied"].values.tolist() == [False, True, False]
    p_value_L = table["dependence_p_value"].values
    assert p_value_L[1] < 1e-6 and (p_value_L[[0, 2]] > 0.001).all()


@pytest.mark.parametrize("router", [per_token, per_document])
def test_p_values_of_layers_that_ignore_each_other(router):
    p_values = np.concatenate([dependence(routed(seed, router))["dependence_p_value"] for seed in range(40)])
    assert (p_values <= 0.05).sum() <= binom.ppf(0.999, len(p_values), 0.05)
    assert (p_values <= 0.5).sum() <= binom.ppf(0.999, len(p_values), 0.5)
    assert (p_values <= 0.5).sum() >= binom.ppf(0.001, len(p_values), 0.4)


def test_too_few_documents_and_one_layer_are_not_tested():
    for sample in (routed(4, per_type, num_domains=1, per=8), routed(4, per_type, num_samples=1)):
        table = dependence(sample)
        assert list(table) == list(DEFINITIONS)
        numbers = [table[name].values for name in DEFINITIONS if name != "dependence_tied"]
        assert np.isnan(numbers).all()
    one = replace(routed(4, per_type), layers=LAYERS[:1])
    assert dependence(one).sizes["layer"] == 0
