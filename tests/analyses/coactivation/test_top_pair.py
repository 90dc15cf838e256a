"""The most co-activated pair, selected on half of the documents and measured on the others."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from moescope.analyses.coactivation.top_pair import top_pairs
from moescope.measures.constants import MIN_EXPECTED
from tests.analyses.random_routers import LAYERS, NUM_EXPERTS, NUM_SELECTED, per_document, per_token, routed


def paired(seed: int):
    """A router whose experts 2 and 9 are, for a third of all tokens, selected together; at layer 1 only."""

    def preferences(generator, tokens, layer):
        logits_TE = per_token(generator, tokens, layer)
        if layer == LAYERS[1]:
            logits_TE[np.ix_(generator.random(tokens.num_tokens) < 1 / 3, [2, 9])] += 4.0
        return logits_TE

    return routed(seed, preferences, per=20)


def test_a_planted_pair_is_found_and_its_lift_is_that_of_the_evaluation_half():
    sample = paired(1)
    at = top_pairs(sample, NUM_SELECTED).sel(layer=LAYERS[1])
    assert (int(at["top_expert"]), int(at["top_other_expert"])) == (2, 9)
    ids_NK = sample.expert_ids_NK(LAYERS[1])[sample.halves_N == 1].tolist()
    num_2, num_9 = sum(2 in ids for ids in ids_NK), sum(9 in ids for ids in ids_NK)
    together = sum(2 in ids and 9 in ids for ids in ids_NK)
    assert float(at["top_lift"]) == pytest.approx(len(ids_NK) * together / (num_2 * num_9))
    assert float(at["top_p_value"]) < 1e-6
    assert float(at["top_lift_chance"]) < 1 < float(at["top_lift_ci_low"]) < float(at["top_lift"])
    assert float(at["top_lift"]) < float(at["top_lift_ci_high"])
    assert float(at["top_excess_selection_half"]) > 5
    # At the layers of noise there is a pair too, with no lift on the other half.
    others = top_pairs(sample, NUM_SELECTED).drop_sel(layer=LAYERS[1])
    assert (others["top_excess_selection_half"] < float(at["top_excess_selection_half"])).all()
    assert (others["top_p_value"] > 0.001).all()


@pytest.mark.parametrize("router", [per_token])
def test_p_values_of_independent_selection(router):
    p_values = np.concatenate([top_pairs(routed(seed, router), NUM_SELECTED)["top_p_value"] for seed in range(40)])
    assert (p_values <= 0.05).sum() <= binom.ppf(0.999, len(p_values), 0.05)
    assert (p_values <= 0.5).sum() <= binom.ppf(0.999, len(p_values), 0.5)
    assert (p_values <= 0.5).sum() >= binom.ppf(0.001, len(p_values), 0.4)


def test_a_half_without_documents_and_pairs_too_rare_are_not_tested():
    sample = routed(2, per_document)
    for half in (0, 1):
        table = top_pairs(replace(sample, halves_N=np.full_like(sample.halves_N, half)), NUM_SELECTED)
        assert np.isnan(table["top_p_value"]).all() and (table["top_expert"] == -1).all()
    few = routed(2, per_token, num_domains=1, per=4, num_samples=MIN_EXPECTED * 4)
    table = top_pairs(few, NUM_SELECTED)
    assert np.isnan(table["top_excess_selection_half"]).all() and (table["top_expert"] == -1).all()
    assert few.num_experts == NUM_EXPERTS
